"""Prompts of any source: what must be known at the start, which are held out, and each built when it is used."""
