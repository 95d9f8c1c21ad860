"""What happens, in order: the only place that puts decisions and I/O after one another."""
