"""Processes that chronomerge starts for its flows, and the messages that they send back."""
