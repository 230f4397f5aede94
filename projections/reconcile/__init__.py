"""Holds settled usage against a provider's exported bill, and explains each difference."""
