"""Judges, ranking and metrics: what a completion is worth, measured against what is in the picture."""
