"""Jenga memory for SGLang: `python -m sglang.launch_server --memory-backend jenga`."""

__version__ = "0.1.0"
