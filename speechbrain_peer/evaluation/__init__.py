"""Where a trained model works and where it does not, in figures."""
