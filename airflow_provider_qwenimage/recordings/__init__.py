"""Recordings of the API's answers: what they leave out, and the format of their files. No I/O."""
