"""Checkpoints on disk: which of their tensors hold which parameters of a model, and writing new ones."""
