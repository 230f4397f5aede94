"""Projections fold events into the tables that people read; each can be dropped and replayed.

Nothing here decides: a number that a decision needs is the stream's state, never a read table.
"""
