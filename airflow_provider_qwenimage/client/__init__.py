"""HTTP clients of the API and of image hosts."""
