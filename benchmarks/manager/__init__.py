"""What the core manager's operations cost on the host, and whether that grows with anything."""
