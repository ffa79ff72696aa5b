"""From a run to a model that others load, and back."""
