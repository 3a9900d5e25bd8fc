"""Batch inference on Ray Data: questions about media in, scored answers and metrics out."""
