"""Scenes of the synthetic benchmarks: coloured things and glyphs on a noisy background.

A scene is a description, of which `draw` makes the pixels, so that a question about a scene can be
checked without looking at them. No font is needed: glyphs are bitmaps of 5 x 7 dots, the same on
every machine.
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
_OVERSAMPLING = 4  # outlines are drawn on a grid this much finer than a pixel
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


class Phrase(NamedTuple):
    """A phrase of a question, and the things or glyphs that it refers to."""

    text: str
    numbers: Sequence[int]
    part: str = "thing"


class Draft(NamedTuple):
    """A question before its phrases are inserted into the {} of a wording."""

    phrases: Sequence[Phrase]
    answer: str
    wording: str = ""  # empty: any of those of its type
    options: Sequence[str] = ()  # empty: those of its type


def pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def random_thing(
    rng: np.random.Generator, shape: str, colour: str, size: str, x: float, y: float
) -> Thing:
    tint = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 9, 3), 0, 255).astype(int)
    radius = float(rng.uniform(*SIZES[size]))
    return Thing(shape, colour, size, x, y, radius, float(rng.uniform(-5, 5)), tuple(tint.tolist()))


def fits(thing: Thing, others: Iterable[Thing], side: int) -> bool:
    """Tell whether it is in the picture and hides no centre: things overlap by a rim at most."""
    margin = thing.radius + 1
    inside = margin <= thing.x <= side - margin and margin <= thing.y <= side - margin
    return inside and all(
        hypot(thing.x - other.x, thing.y - other.y) >= 0.85 * (thing.radius + other.radius)
        for other in others
    )


@lru_cache(maxsize=64)
def cover(thing: Thing, side: int) -> Array:
    """Return the share of each pixel of a picture that a thing covers, (side, side) float32."""
    reach = int(np.ceil(thing.radius)) + 1
    left, top = int(thing.x) - reach, int(thing.y) - reach
    x, y, radius = (_OVERSAMPLING * size for size in (thing.x - left, thing.y - top, thing.radius))
    width = _OVERSAMPLING * (2 * reach + 1)
    box = Image.new("L", (width, width))
    pen = ImageDraw.Draw(box)
    if thing.shape == "circle":
        pen.circle((x, y), radius, fill=255)
    else:
        cos, sin = np.cos(np.deg2rad(thing.tilt)), np.sin(np.deg2rad(thing.tilt))
        corners = [
            (x + radius * (cos * dx - sin * dy), y + radius * (sin * dx + cos * dy))
            for dx, dy in _OUTLINES[thing.shape]
        ]
        pen.polygon(corners, fill=255)
    picture = Image.new("L", (side, side))
    picture.paste(box.reduce(_OVERSAMPLING), (left, top))  # cut at the edges
    return np.asarray(picture, dtype=np.float32) / 255


def ink(glyph: Glyph, side: int) -> Array:
    """Return the pixels of a picture that a glyph's dots cover, (side, side) bool."""
    dots = GLYPHS[glyph.name].repeat(DOT, 0).repeat(DOT, 1)
    height, width = dots.shape
    top, left = round(glyph.y) - height // 2, round(glyph.x) - width // 2
    picture = np.zeros((side, side), bool)
    picture[top : top + height, left : left + width] = dots
    return picture


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
        tint = np.array(thing.tint, dtype=np.float32)
        canvas += cover(thing, scene.side)[..., None] * (tint - canvas)
    for glyph in scene.glyphs:
        canvas[ink(glyph, scene.side)] = 250 if glyph.light else 12
    rng = np.random.default_rng([scene.backdrop, 1, noise])
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * 9
    return canvas.clip(0, 255).astype(np.uint8)
