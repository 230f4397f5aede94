"""The audit: proof that the log is whole, that it adds up, and that every table says what it says."""
