"""The method: what branches lend each other, predictors, losses, curves."""
