"""Decisions without I/O: pure functions and values, for the sync and the async client alike."""
