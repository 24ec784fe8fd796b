"""When things happen: Prefect flows over the nodes in `tasks`, and the command line. Nothing is computed here."""
