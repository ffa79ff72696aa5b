"""Data: rendering, manifests, enrollments, peers and the training pipeline."""
