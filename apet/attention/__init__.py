"""Attention in the decoder: the kernel for packed rows, causal masks, and weights recomputed for methods that read them."""
