"""Attach a compression method to a transformers model by hooks, and detach it again."""
