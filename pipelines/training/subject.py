"""What a student studies: one interface over the benchmarks `shapes` and `motion`.

A picture is a tuple of scenes: one for an image, one a sampled frame for a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipelines.benchmarks import shapes
from pipelines.benchmarks.scenes import Labels, Question, Scene, labels


class Subject(Protocol):
    name: str
    frames: int
    cls: bool  # whether the decoder sees the tower's CLS token of each frame

    def show(self, number: int) -> Any:
        """The training split's scene or clip of that number."""

    def scenes(self, shown: Any) -> tuple[Scene, ...]: ...

    def crowd(self, rng: np.random.Generator) -> Scene:
        """One picture full of things, for the tower alone."""

    def ask(self, shown: Any, rng: np.random.Generator, number: int) -> list[Question]: ...


@dataclass(frozen=True)
class Shapes:
    name: str = "demo-llava"
    frames: int = 1
    cls: bool = False

    def show(self, number: int) -> Scene:
        return shapes.scene(shapes.dice("train", 0, number))

    def scenes(self, shown: Scene) -> tuple[Scene, ...]:
        return (shown,)

    def crowd(self, rng: np.random.Generator) -> Scene:
        return shapes.scene(rng, crowd=True)

    def ask(self, shown: Scene, rng: np.random.Generator, number: int) -> list[Question]:
        asked: list[Question] = []
        while len(asked) < number:
            asked += shapes.questions(shown, rng, number - len(asked))
        return asked


def together(frames: Sequence[Scene]) -> Labels:
    """The labels of several frames as if they were one picture; things and glyphs keep their numbers."""
    seen = [labels(frame) for frame in frames]
    centre = np.concatenate([one.centre + at * len(one.thing) for at, one in enumerate(seen)])
    return Labels(
        *(np.concatenate([getattr(one, part) for one in seen]) for part in ("thing", "glyph")),
        centre,
        *(np.concatenate([getattr(one, part) for one in seen]) for part in ("cover", "ink")),
    )
