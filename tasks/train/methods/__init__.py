"""Training methods, one file each or a family; `tasks.choice` finds them here."""
