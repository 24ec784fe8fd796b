"""Trackers: what a report has of each recorded state, sent to MLflow, Weights & Biases or Trackio.

A tracker is a view. Whatever happens to it, a run goes on: it works in a process of its own with a time limit, and a
state that it could not be told is told with the next one.
"""

from __future__ import annotations

from tasks.track.telling import check, tell

__all__ = ["check", "tell"]
