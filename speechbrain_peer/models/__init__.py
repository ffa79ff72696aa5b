"""Backbones: each file holds the stages of one target speech extractor."""
