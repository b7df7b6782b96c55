"""From a loaded model to a pool: which groups its layers form, and what is refused."""
