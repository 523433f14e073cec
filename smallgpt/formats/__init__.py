"""Model files as others write and read them."""
