"""Attention in the decoder: a kernel for packed rows, causal masks, and recomputed weights."""
