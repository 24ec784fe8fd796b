"""The command ``chronomerge``: application, options, one module for each group of verbs, and their tables."""
