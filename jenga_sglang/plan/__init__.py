"""`jenga plan`: what a model's KV cache takes, from its ``config.json`` alone."""
