"""Training methods, one file each or a family; `tasks.train.choice` finds them here."""
