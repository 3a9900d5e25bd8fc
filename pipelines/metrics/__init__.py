"""Metrics from answers: accuracy, intervals, comparisons and tests. No I/O."""
