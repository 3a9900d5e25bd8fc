"""Answers on disk exactly once, locks, run records, and their copy in MLflow."""
