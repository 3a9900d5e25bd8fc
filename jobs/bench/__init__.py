"""Speed benchmarks. Each script prints a table for people, and one JSON line for machines last."""
