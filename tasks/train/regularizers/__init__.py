"""Regularizers across time steps, one file each; `tasks.train.choice` finds them here."""
