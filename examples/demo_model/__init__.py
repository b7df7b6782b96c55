"""A small model made on the spot, to try the server without downloading anything."""
