"""Who carries rows to the kernel."""
