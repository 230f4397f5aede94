"""The words everyone shares: events, money, ids, errors, wire types.

msgspec and the standard library only; nothing here opens a socket or reads a clock.
"""
