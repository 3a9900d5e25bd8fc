"""Figures 2 and 4 of the paper for rows of stored runs: which tokens are kept, and their scores."""

from pipelines.visualize.draw import visualize

__all__ = ["visualize"]
