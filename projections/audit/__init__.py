"""The audit: the log is whole, it adds up, and every table says what the log says."""
