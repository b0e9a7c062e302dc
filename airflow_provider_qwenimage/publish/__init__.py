"""Makes of stored images what can be published: marked files, contact sheets, datasets; and requests from sweeps."""
