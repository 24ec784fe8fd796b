"""Regularizers across time steps, one file each; `tasks.choice` finds them here."""
