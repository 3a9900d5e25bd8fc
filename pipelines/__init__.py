"""Rows in, answer rows out: sources, decoding, the actors that answer, scores, Parquet and tracking, on Ray Data."""
