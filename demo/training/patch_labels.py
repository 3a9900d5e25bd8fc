"""Labels of the patches of a scene: the things and glyphs that each of them shows."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.benchmarks.synthetic import scenes

Array = NDArray[Any]

PATCH = 8  # pixels a side
_MIN_COVER = 0.2  # share of a patch's pixels that makes it a thing's; half of it makes it a glyph's


class PatchLabels(NamedTuple):
    """The contents of N patches.

    thing, glyph: (N,) index of the thing and glyph that the patch shows, or -1
    centre: the patch of each thing's centre
    cover, ink: (N, 16) share of each sixteenth of a patch that is a thing's and a glyph's
    """

    thing: Array
    glyph: Array
    centre: Array
    cover: Array
    ink: Array


@lru_cache(maxsize=64)  # every question about a scene reads them
def labels(scene: scenes.Scene) -> PatchLabels:
    side = scene.side // PATCH
    owner = np.full((scene.side, scene.side), -1)
    for number, thing in enumerate(scene.things):
        owner[scenes.cover(thing, scene.side) > 0.5] = number
    ink = np.full_like(owner, -1)
    for number, glyph in enumerate(scene.glyphs):
        ink[scenes.ink(glyph, scene.side)] = number
    centre = [int(thing.y) // PATCH * side + int(thing.x) // PATCH for thing in scene.things]
    shown = _majority(owner, side, _MIN_COVER)
    if scene.numbers:
        shown = np.array([*scene.numbers, -1])[shown]
    return PatchLabels(
        shown,
        _majority(ink, side, _MIN_COVER / 2),
        np.array(centre, dtype=int),
        _sixteenths(owner >= 0, side),
        _sixteenths(ink >= 0, side),
    )


def _sixteenths(mask: Array, side: int) -> Array:
    step = PATCH // 4
    cells: Array = mask.reshape(side, 4, step, side, 4, step).mean((2, 5), dtype=np.float32)
    sixteenths: Array = cells.transpose(0, 2, 1, 3).reshape(side * side, 16)
    return sixteenths


def _majority(owner: Array, side: int, min_share: float) -> Array:
    """Return the owner of most pixels of each patch, or -1 if its share is below `min_share`."""
    patches = owner.reshape(side, PATCH, side, PATCH).transpose(0, 2, 1, 3).reshape(side * side, -1)
    counts = [(patches == number).sum(1) for number in range(owner.max() + 1)]
    stacked = np.stack(counts or [np.zeros(side * side)])
    return np.where(stacked.max(0) >= min_share * PATCH * PATCH, stacked.argmax(0), -1)
