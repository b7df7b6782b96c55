"""Times of the kernels on a GPU; see README.md."""
