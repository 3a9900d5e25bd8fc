"""What the synthetic benchmarks show: things of a shape, a colour and a size, and glyphs, on a noisy background.

A scene is a description; `draw` makes its pixels and `labels` says what each patch of them shows. Both read the
description alone, so a question about it can be checked without looking at pixels. Nothing here needs a font: glyphs
are bitmaps of five by seven dots, the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import hypot
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

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
GLYPHS = {
    glyph: np.array(
        [[int(dots, 16) >> bit & 1 for bit in (4, 3, 2, 1, 0)] for dots in rows.split()], dtype=bool
    )
    for glyph, rows in {
        "0": "0E 11 13 15 19 11 0E",
        "1": "04 0C 04 04 04 04 0E",
        "2": "0E 11 01 02 04 08 1F",
        "3": "1F 02 04 02 01 11 0E",
        "4": "02 06 0A 12 1F 02 02",
        "5": "1F 10 1E 01 01 11 0E",
        "6": "06 08 10 1E 11 11 0E",
        "7": "1F 01 02 04 08 08 08",
        "8": "0E 11 11 0E 11 11 0E",
        "9": "0E 11 11 0F 01 02 0C",
        "A": "0E 11 11 1F 11 11 11",
        "C": "0E 11 10 10 10 11 0E",
        "E": "1F 10 10 1E 10 10 1F",
        "F": "1F 10 10 1E 10 10 10",
        "H": "11 11 11 1F 11 11 11",
        "K": "11 12 14 18 14 12 11",
        "L": "10 10 10 10 10 10 1F",
        "T": "1F 04 04 04 04 04 04",
        "X": "11 11 0A 04 0A 11 11",
        "Z": "1F 01 02 04 08 10 1F",
    }.items()
}
DIGITS = tuple(glyph for glyph in GLYPHS if glyph.isdigit())
LETTERS = tuple(glyph for glyph in GLYPHS if glyph.isalpha())
DOT = 2  # pixels a side of a glyph's dot: a glyph is 10 x 14 pixels
PATCH = 8  # pixels a side of what `labels` names
_FINE = 4  # how much finer than a pixel outlines are drawn
_COVER = 0.2  # of a patch's pixels make it a thing's, and half of that a glyph's


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    tilt: float  # degrees
    tint: tuple[int, int, int]  # its own shade of the colour


@dataclass(frozen=True)
class Glyph:
    name: str
    x: float
    y: float
    on: int | None  # which thing it is written on, or none: it stands free
    light: bool

    @property
    def kind(self) -> str:
        return "digit" if self.name in DIGITS else "letter"


@dataclass(frozen=True)
class Scene:
    side: int
    things: tuple[Thing, ...]  # from back to front
    glyphs: tuple[Glyph, ...]
    backdrop: int  # the seed of background and noise
    numbers: tuple[
        int, ...
    ] = ()  # of a clip's things, which ones these are; none: they are all there are


class PatchLabels(NamedTuple):
    """What each patch shows: which thing and which glyph (or -1), and the patch that holds each thing's centre.

    `cover` and `ink` say how much of each quarter of a quarter of a patch is a thing's and a glyph's, (N, 16).
    """

    thing: np.ndarray
    glyph: np.ndarray
    centre: np.ndarray
    cover: np.ndarray
    ink: np.ndarray


class PhraseTarget(NamedTuple):
    """What a phrase of a question means: `part` is `whole`, `centre` or `glyph`; `end` is where its text ends."""

    end: int
    part: str
    which: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    type: str
    text: str
    answer: str
    options: tuple[str, ...]
    points: tuple[PhraseTarget, ...] = ()


def build_question(
    kind: str,
    wording: str,
    phrases: Sequence[tuple[str, str, Sequence[int]]],
    answer: str,
    options: Sequence[str],
) -> Question:
    """Put phrases, each with what it points at, into a wording."""
    text, points = "", []
    for piece, phrase in zip(wording.split("{}"), [*phrases, None], strict=True):
        text += piece
        if phrase:
            text += phrase[0]
            points.append(PhraseTarget(len(text), phrase[1], tuple(phrase[2])))
    return Question(kind, text, answer, tuple(options), tuple(points))


def pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def random_thing(
    rng: np.random.Generator, shape: str, colour: str, size: str, x: float, y: float
) -> Thing:
    tint = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 9, 3), 0, 255).astype(int)
    radius = float(rng.uniform(*SIZES[size]))
    return Thing(
        shape,
        colour,
        size,
        x,
        y,
        radius,
        float(rng.uniform(-5, 5)),
        tuple(int(part) for part in tint),
    )


def fits(one: Thing, others: Sequence[Thing], side: int) -> bool:
    """Inside the picture, and at most a rim of it before or behind another: no thing's centre is hidden."""
    margin = one.radius + 1
    inside = margin <= one.x <= side - margin and margin <= one.y <= side - margin
    return inside and all(
        hypot(one.x - other.x, one.y - other.y) >= 0.85 * (one.radius + other.radius)
        for other in others
    )


def _outline(one: Thing) -> list[tuple[float, float]]:
    if one.shape == "square":
        corners = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    elif one.shape == "triangle":
        corners = [(np.sin(turn), -np.cos(turn)) for turn in 2 * np.pi * np.arange(3) / 3]
    elif one.shape == "cross":
        a, b = 0.34, 1.0
        corners = [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
        ]
        corners += [(-a, -a)]
    else:
        turns = np.pi * np.arange(10) / 5
        corners = [
            (r * np.sin(turn), -r * np.cos(turn))
            for r, turn in zip((1, 0.42) * 5, turns, strict=True)
        ]
    cos, sin = np.cos(np.deg2rad(one.tilt)), np.sin(np.deg2rad(one.tilt))
    return [
        (one.radius * (cos * x - sin * y), one.radius * (sin * x + cos * y)) for x, y in corners
    ]


def _cover(one: Thing, side: int) -> tuple[slice, slice, np.ndarray]:
    """The rows and columns of a thing's box, and how much of each of its pixels it covers (0 to 1)."""
    reach = int(np.ceil(one.radius)) + 1
    left, top = int(one.x) - reach, int(one.y) - reach
    width = 2 * reach + 1
    fine = Image.new("L", (width * _FINE, width * _FINE))
    x, y = one.x - left, one.y - top
    pen = ImageDraw.Draw(fine)
    if one.shape == "circle":
        box = [
            _FINE * value
            for value in (x - one.radius, y - one.radius, x + one.radius, y + one.radius)
        ]
        pen.ellipse(box, fill=255)
    else:
        pen.polygon([(_FINE * (x + dx), _FINE * (y + dy)) for dx, dy in _outline(one)], fill=255)
    mask = np.asarray(fine.reduce(_FINE), dtype=np.float32) / 255
    rows = slice(max(0, top), min(side, top + width))
    columns = slice(max(0, left), min(side, left + width))
    return (
        rows,
        columns,
        mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left],
    )


def _dots(one: Glyph) -> tuple[slice, slice, np.ndarray]:
    dots = GLYPHS[one.name].repeat(DOT, 0).repeat(DOT, 1)
    top, left = round(one.y) - dots.shape[0] // 2, round(one.x) - dots.shape[1] // 2
    return slice(top, top + dots.shape[0]), slice(left, left + dots.shape[1]), dots


@lru_cache(maxsize=2)  # the frames of a clip share it
def backdrop(side: int, seed: int) -> np.ndarray:
    """A dull, blotchy, striped picture (side, side, 3) float32."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(60, 130) + rng.normal(0, 6, 3)
    blotches = np.clip(base + rng.normal(0, 14, (7, 7, 3)), 0, 255).astype(np.uint8)
    smooth = Image.fromarray(blotches).resize((side, side), Image.Resampling.BICUBIC)
    turn, wave = rng.uniform(0, np.pi), rng.uniform(0.2, 0.9)
    place = np.arange(side, dtype=np.float32)
    stripes = np.sin(wave * (np.cos(turn) * place[None] + np.sin(turn) * place[:, None]))
    return np.asarray(smooth, dtype=np.float32) + float(rng.uniform(0, 10)) * stripes[..., None]


def draw(scene: Scene, noise: int = 0) -> np.ndarray:
    """The picture, (side, side, 3) uint8. `noise` tells the frames of a clip apart: their noise differs."""
    canvas = backdrop(scene.side, scene.backdrop).copy()
    for one in scene.things:
        rows, columns, mask = _cover(one, scene.side)
        canvas[rows, columns] += mask[..., None] * (
            np.array(one.tint, dtype=np.float32) - canvas[rows, columns]
        )
    for glyph in scene.glyphs:
        rows, columns, dots = _dots(glyph)
        canvas[rows, columns][dots] = 250 if glyph.light else 12
    rng = np.random.default_rng([scene.backdrop, 1, noise])
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * 9
    return canvas.clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=64)  # every question about a scene asks for them
def labels(scene: Scene) -> PatchLabels:
    side = scene.side // PATCH
    owner = np.full((scene.side, scene.side), -1)
    for number, one in enumerate(scene.things):
        rows, columns, mask = _cover(one, scene.side)
        owner[rows, columns][mask > 0.5] = number
    ink = np.full_like(owner, -1)
    for number, glyph in enumerate(scene.glyphs):
        rows, columns, dots = _dots(glyph)
        ink[rows, columns][dots] = number
    centre = [int(one.y) // PATCH * side + int(one.x) // PATCH for one in scene.things]
    thing = _most(owner, side, _COVER)
    if scene.numbers:
        thing = np.array([*scene.numbers, -1])[thing]
    return PatchLabels(
        thing,
        _most(ink, side, _COVER / 2),
        np.array(centre, dtype=int),
        _quarters(owner >= 0, side),
        _quarters(ink >= 0, side),
    )


def _quarters(mask: np.ndarray, side: int) -> np.ndarray:
    step = PATCH // 4
    cells = mask.reshape(side, 4, step, side, 4, step).mean((2, 5), dtype=np.float32)
    return cells.transpose(0, 2, 1, 3).reshape(side * side, 16)


def _most(owner: np.ndarray, side: int, share: float) -> np.ndarray:
    """For each patch, the owner of most of its pixels, if it has at least that share of them, else -1."""
    patches = owner.reshape(side, PATCH, side, PATCH).transpose(0, 2, 1, 3).reshape(side * side, -1)
    counts = np.stack(
        [(patches == number).sum(1) for number in range(owner.max() + 1)] or [np.zeros(side * side)]
    )
    best = counts.argmax(0)
    return np.where(counts.max(0) >= share * PATCH * PATCH, best, -1)
