"""A watched inbox: each finished drop in a folder or an S3 prefix becomes an arrival once, however often it is seen."""

from tasks.inbox.scan import Drop, Scan, scan

__all__ = ["Drop", "Scan", "scan"]
