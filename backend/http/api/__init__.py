"""The site's own API under `/api`: JSON in, JSON out, problem+json for what is refused.

Every route declares the scope that opens it; one that does not is closed to everybody.
"""
