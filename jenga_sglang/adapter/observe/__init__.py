"""What people see of a running pool: metrics, log lines, the facts of `/server_info`."""
