"""Temporal states: recorded atomically, found in git, restored from the cache or an S3-compatible store."""
