"""Shipped checkpoints, a model card each."""
