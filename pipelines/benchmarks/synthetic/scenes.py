"""Scenes of the synthetic benchmarks: coloured things and glyphs on a noisy background.

A scene is a description; `draw` makes its pixels, and `labels` tells what each patch of them shows.
Both read only the description, so that a question about a scene can be checked without looking at
pixels. No font is needed: glyphs are bitmaps of 5 x 7 dots, the same on every machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from math import hypot
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[Any]

SHAPES = ("circle", "square", "triangle", "cross", "star")
COLOURS = {
    "red": (205, 40, 40),
    "orange": (235, 130, 25),
    "yellow": (235, 215, 55),
    "green": (45, 160, 65),
    "cyan": (65, 205, 215),
    "blue": (45, 75, 210),
    "purple": (145, 55, 175),
    "white": (242, 242, 242),
}
SIZES = {"small": (9.0, 11.0), "large": (17.0, 22.0)}  # radius in pixels
# Seven rows of five dots each.
GLYPHS = {
    name: np.array([[dot == "#" for dot in row] for row in rows], bool)
    for line in files(__package__).joinpath("glyphs.txt").read_text().splitlines()
    for name, *rows in [line.split()]
}
DIGITS = tuple(glyph for glyph in GLYPHS if glyph.isdigit())
LETTERS = tuple(glyph for glyph in GLYPHS if glyph.isalpha())
DOT = 2  # pixels a side of a glyph's dot: a glyph is 10 x 14 pixels
PATCH = 8  # pixels a side of the patches of `labels`
_OVERSAMPLING = 4  # outlines are drawn on a grid this much finer than a pixel
_MIN_COVER = 0.2  # share of a patch's pixels that makes it a thing's; half of it makes it a glyph's
_CROSS = (-0.34, -1), (0.34, -1), (0.34, -0.34), (1, -0.34), (1, 0.34), (0.34, 0.34)
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(np.sin(turn), -np.cos(turn)) for turn in 2 * np.pi * np.arange(3) / 3],
    "cross": [*_CROSS, *((-x, -y) for x, y in _CROSS)],
    "star": [
        (radius * np.sin(turn), -radius * np.cos(turn))
        for radius, turn in zip((1, 0.42) * 5, np.pi * np.arange(10) / 5, strict=True)
    ],
}


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    tilt: float  # degrees
    tint: tuple[int, ...]  # RGB, its own shade of the colour

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Glyph:
    name: str
    x: float
    y: float
    on: int | None  # index of the thing that it is written on; None: it stands free
    light: bool

    @property
    def kind(self) -> str:
        return "digit" if self.name in DIGITS else "letter"


@dataclass(frozen=True)
class Scene:
    side: int
    things: tuple[Thing, ...]  # from back to front
    glyphs: tuple[Glyph, ...]
    backdrop: int  # seed of background and noise
    numbers: tuple[int, ...] = ()  # of its things within their clip, where some of them are hidden


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


class PhraseTarget(NamedTuple):
    """The things or glyphs that a phrase of a question refers to."""

    end: int  # of the phrase within the question's text
    part: str  # "thing", "centre" or "glyph"
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    type: str
    text: str
    answer: str
    options: tuple[str, ...]
    targets: tuple[PhraseTarget, ...] = ()


Phrase = tuple[str, str, Sequence[int]]  # text, then `part` and `numbers` of its target


def build_question(
    type: str, wording: str, phrases: Sequence[Phrase], answer: str, options: Iterable[str]
) -> Question:
    """Insert phrases into the {} of a wording."""
    text, targets = "", []
    for piece, phrase in zip(wording.split("{}"), [*phrases, None], strict=True):
        text += piece
        if phrase:
            text += phrase[0]
            targets.append(PhraseTarget(len(text), phrase[1], tuple(phrase[2])))
    return Question(type, text, answer, tuple(options), tuple(targets))


def pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def random_thing(
    rng: np.random.Generator, shape: str, colour: str, size: str, x: float, y: float
) -> Thing:
    tint = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 9, 3), 0, 255).astype(int)
    radius = float(rng.uniform(*SIZES[size]))
    return Thing(shape, colour, size, x, y, radius, float(rng.uniform(-5, 5)), tuple(tint.tolist()))


def fits(thing: Thing, others: Iterable[Thing], side: int) -> bool:
    """Is it inside the picture, overlapping others by a rim at most? No centre is then hidden."""
    margin = thing.radius + 1
    inside = margin <= thing.x <= side - margin and margin <= thing.y <= side - margin
    return inside and all(
        hypot(thing.x - other.x, thing.y - other.y) >= 0.85 * (thing.radius + other.radius)
        for other in others
    )


def _cover(thing: Thing, side: int) -> tuple[slice, slice, Array]:
    """Return the rows and columns of a thing's box, and the covered share of its pixels."""
    reach = int(np.ceil(thing.radius)) + 1
    left, top = int(thing.x) - reach, int(thing.y) - reach
    width = 2 * reach + 1
    image = Image.new("L", (width * _OVERSAMPLING, width * _OVERSAMPLING))
    x, y, radius = thing.x - left, thing.y - top, thing.radius
    pen = ImageDraw.Draw(image)
    if thing.shape == "circle":
        box = x - radius, y - radius, x + radius, y + radius
        pen.ellipse([_OVERSAMPLING * edge for edge in box], fill=255)
    else:
        cos, sin = np.cos(np.deg2rad(thing.tilt)), np.sin(np.deg2rad(thing.tilt))
        corners = [
            (
                _OVERSAMPLING * (x + radius * (cos * dx - sin * dy)),
                _OVERSAMPLING * (y + radius * (sin * dx + cos * dy)),
            )
            for dx, dy in _OUTLINES[thing.shape]
        ]
        pen.polygon(corners, fill=255)
    mask = np.asarray(image.reduce(_OVERSAMPLING), dtype=np.float32) / 255
    rows = slice(max(0, top), min(side, top + width))
    columns = slice(max(0, left), min(side, left + width))
    inside = (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )
    return rows, columns, mask[inside]


def _dots(glyph: Glyph) -> tuple[slice, slice, Array]:
    dots = GLYPHS[glyph.name].repeat(DOT, 0).repeat(DOT, 1)
    top, left = round(glyph.y) - dots.shape[0] // 2, round(glyph.x) - dots.shape[1] // 2
    return slice(top, top + dots.shape[0]), slice(left, left + dots.shape[1]), dots


@lru_cache(maxsize=2)  # shared by the frames of a clip
def backdrop(side: int, seed: int) -> Array:
    """Return a dull, blotchy, striped picture, (side, side, 3) float32."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(60, 130) + rng.normal(0, 6, 3)
    blotches = np.clip(base + rng.normal(0, 14, (7, 7, 3)), 0, 255).astype(np.uint8)
    smooth = Image.fromarray(blotches).resize((side, side), Image.Resampling.BICUBIC)
    turn, wave = rng.uniform(0, np.pi), rng.uniform(0.2, 0.9)
    pixel = np.arange(side, dtype=np.float32)
    stripes = np.sin(wave * (np.cos(turn) * pixel[None] + np.sin(turn) * pixel[:, None]))
    strength = float(rng.uniform(0, 10))
    picture: Array = np.asarray(smooth, dtype=np.float32) + strength * stripes[..., None]
    return picture


def draw(scene: Scene, noise: int = 0) -> Array:
    """Return the picture, (side, side, 3) uint8. Each frame of a clip has its own `noise` seed."""
    canvas = backdrop(scene.side, scene.backdrop).copy()
    for thing in scene.things:
        rows, columns, mask = _cover(thing, scene.side)
        tint = np.array(thing.tint, dtype=np.float32)
        canvas[rows, columns] += mask[..., None] * (tint - canvas[rows, columns])
    for glyph in scene.glyphs:
        rows, columns, dots = _dots(glyph)
        canvas[rows, columns][dots] = 250 if glyph.light else 12
    rng = np.random.default_rng([scene.backdrop, 1, noise])
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * 9
    return canvas.clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=64)  # every question about a scene reads them
def labels(scene: Scene) -> PatchLabels:
    side = scene.side // PATCH
    owner = np.full((scene.side, scene.side), -1)
    for number, thing in enumerate(scene.things):
        rows, columns, mask = _cover(thing, scene.side)
        owner[rows, columns][mask > 0.5] = number
    ink = np.full_like(owner, -1)
    for number, glyph in enumerate(scene.glyphs):
        rows, columns, dots = _dots(glyph)
        ink[rows, columns][dots] = number
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
