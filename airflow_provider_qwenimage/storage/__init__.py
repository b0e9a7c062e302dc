"""Files on any object storage, and the images among them."""
