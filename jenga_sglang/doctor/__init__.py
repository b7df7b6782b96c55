"""`jenga doctor`: whether `--memory-backend jenga` can start in this environment."""
