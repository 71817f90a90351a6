"""Judges that are models and give a number: similarity to the picture, and reward models."""
