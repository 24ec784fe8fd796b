"""Nodes on other machines: the workers of a Dask scheduler, which share nothing with the project but its store."""
