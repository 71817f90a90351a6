"""Weights on the wire: what both ends of a push must agree on."""
