"""TIME's grid: what its cells are (`cells`)."""
