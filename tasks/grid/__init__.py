"""TIME's grid: its cells (`cells`), the work to do (`plan`) and how long it takes (`estimate`)."""
