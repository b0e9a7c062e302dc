"""HTTP to the API and to the image host."""
