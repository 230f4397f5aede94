"""Measures the relay against the same call made straight to the upstream: `python -m bench`."""
