"""How the pool's bytes are cut into large and small pages: runs once, before there is a pool."""
