"""Labels of patches, against the pixels that are drawn."""

from __future__ import annotations

import math

import numpy as np

from demo.training.patch_labels import labels
from pipelines.benchmarks.synthetic import shapes
from pipelines.benchmarks.synthetic.scenes import Thing, draw


def test_labels_match_the_drawn_pixels() -> None:
    """A patch covered by one thing has its colour; the patch of a centre belongs to its thing."""
    for sample in range(30):
        scene = shapes.scene(shapes.rng_for("test", 0, sample))
        patches, picture = labels(scene), draw(scene).astype(float)
        for number, thing in enumerate(scene.things):
            assert patches.thing[patches.centre[number]] == number
            assert int(thing.y // 8) * 24 + int(thing.x // 8) == patches.centre[number]
        for patch in np.flatnonzero(
            (patches.cover.min(1) == 1) & (patches.glyph < 0) & (patches.ink.max(1) == 0)
        ):
            row, column = divmod(int(patch), 24)
            mean = picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].mean((0, 1))
            tint = np.array(scene.things[patches.thing[patch]].tint)
            if len({other.colour for other in scene.things if _touch(other, row, column)}) == 1:
                assert np.abs(mean - tint).max() < 14


def _touch(thing: Thing, row: int, column: int) -> bool:
    return math.hypot(thing.x - 8 * column - 4, thing.y - 8 * row - 4) < 1.3 * thing.radius + 8
