"""Heads, one file each; see `tasks.evaluate.head`."""
