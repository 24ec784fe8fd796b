"""What recorded states say: one tidy table, figures, and a page of both (`report`)."""
