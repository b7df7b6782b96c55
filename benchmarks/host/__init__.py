"""What a step costs the host before its kernels: see README.md."""
