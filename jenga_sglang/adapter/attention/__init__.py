"""Attention and recurrent layers over the pool's pages, by backend."""
