"""What is decided: pure functions and values, without I/O, for the sync and the async path alike."""
