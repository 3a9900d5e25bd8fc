"""Short answers after the prompt: the same tokens as `generate`, without copying caches."""
