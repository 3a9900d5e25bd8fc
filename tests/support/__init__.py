"""Helpers that several tests share: tiny models, sample data, an independent oracle."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
