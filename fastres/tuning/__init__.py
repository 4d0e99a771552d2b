"""`fastres tune`: measures the kernels' configs on this GPU and writes the user's table."""
