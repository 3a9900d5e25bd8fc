"""Greedy answers over caches of different lengths: the loop, its steps, and their CUDA graphs."""
