"""Benchmarks: one folder per question, one command per folder."""
