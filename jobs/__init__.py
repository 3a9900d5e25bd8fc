"""Command-line entry points. Each parses its flags and calls `pipelines`."""
