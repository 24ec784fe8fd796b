"""What a time step does: one package a node, each a plain library that runs and is tested alone."""
