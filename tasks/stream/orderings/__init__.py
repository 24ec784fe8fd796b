"""Stream orderings, one file each; `tasks.choice` finds them here."""
