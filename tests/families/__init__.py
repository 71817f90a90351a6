"""Tiny random models of every family, in the files that a published checkpoint has, and what is claimed of each."""
