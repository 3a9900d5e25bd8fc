"""Generated benchmarks: `shapes` (images) and `motion` (video clips)."""
