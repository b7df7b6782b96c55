"""Integers only: which pages exist, who owns them, and which of them are still needed.

Nothing here imports torch or sglang; the adapter executes what this package decides.
"""
