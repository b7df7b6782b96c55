"""Seeded traces."""
GENERATORS = {}
