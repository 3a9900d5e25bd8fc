"""Benchmarks that are drawn, not downloaded: `shapes` (images) and `motion` (video clips)."""
