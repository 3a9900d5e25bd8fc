"""What the synthetic benchmarks share: rows made on the spot, one-word answers that are right or wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.benchmarks.base import Benchmark, Score, normalised
from pipelines.data.rows import Kind, Row


def cache() -> Path:
    """Where what can be made again is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apet"


@dataclass(frozen=True)
class Synthetic(Benchmark):
    """A benchmark that is drawn from a seed: the same files on every machine, so its version stands for its rows."""

    name: str
    version: str
    kind: Kind
    make: Callable[[Path, str, int | None], Path]
    chances: Mapping[str, float]

    def manifest(self, split: str, limit: int | None) -> Path:
        return self.make(cache(), split, limit)

    def digest(self, split: str) -> str:
        return f"{self.name}-{self.version}-{split}"

    def prompt(self, row: Row) -> str:
        return row.question

    def score(self, row: Row, prediction: str) -> Score:
        return Score.of(normalised(prediction) in {normalised(answer) for answer in row.answers})

    def chance(self, type: str) -> float | None:
        return self.chances.get(type)
