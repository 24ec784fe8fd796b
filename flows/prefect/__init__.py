"""All that knows Prefect's server: the server itself, its API, its runs and its schedules."""
