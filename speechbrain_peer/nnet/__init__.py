"""The layers that backbones are made of."""
