"""A page of pictures and words, laid out in pixels: an image on it is there pixel by pixel, and no text covers another.

Words come from data sets and models. They are shown as they are, on a few lines, whatever they hold.
"""

from __future__ import annotations

import io
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import islice
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from PIL import Image

from pipelines.data.media.content import Pixels

WIDTH = 1240
MARGIN, GAP, SLIT = 28, 20, 8
INK, GREY, RIGHT, WRONG = (
    "#1a1a1a",
    "#5c5c5c",
    "#00597a",
    "#a63600",
)  # blue and vermillion differ for everyone
STRIP = 8  # pictures side by side, of a video or of crops
DPI = 100
LONGEST = 400  # characters
OTHERS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans",
)


@dataclass(frozen=True)
class Line:
    """Words, in `size` pixels, perhaps behind a little picture, `before` which there may be others."""

    words: str
    size: int = 17
    colour: str = INK
    bold: bool = False
    swatch: Pixels | None = None
    before: str = ""
    most: int = 3  # lines that it may take


@dataclass(frozen=True)
class Panel:
    """Pictures of one kind, of one medium, with what is to be said about them."""

    title: str
    note: str
    pictures: Sequence[Pixels]
    names: Sequence[str]  # of the pictures; may be empty
    lines: Sequence[Line]


@dataclass
class _Page:
    images: list[tuple[float, float, Pixels]] = field(default_factory=list)  # left, top
    words: list[tuple[float, float, str, Line]] = field(default_factory=list)

    def write(self, line: Line, left: float, top: float, width: float) -> float:
        """Returns where the next line begins."""
        start = left
        if line.before:
            self.words.append((start, top, line.before, line))
            start += _length(line.before, line.size, line.bold) + 8
        if line.swatch is not None:
            self.images.append(
                (start, top + (1.3 * line.size - line.swatch.shape[0]) / 2, line.swatch)
            )
            start += line.swatch.shape[1] + 8
        for part in wrapped(line.words, left + width - start, line.size, line.bold, line.most):
            self.words.append((start, top, part, line))
            top += 1.3 * line.size
        return top

    def title(self, panel: Panel, left: float, top: float, width: float) -> float:
        top = self.write(Line(panel.title, 18, bold=True), left, top, width)
        return self.write(Line(panel.note, 15, GREY), left, top, width)

    def png(self, height: float) -> bytes:
        high = round(height)
        figure = Figure((WIDTH / DPI, high / DPI), dpi=DPI, facecolor="white")
        for left, top, pixels in self.images:
            figure.figimage(pixels, round(left), high - round(top) - len(pixels), origin="upper")
        for left, top, words, line in self.words:
            figure.text(
                left / WIDTH,
                1 - (top + 0.98 * line.size) / high,
                words,
                color=line.colour,
                fontproperties=_font(line.size, line.bold),
                va="baseline",
                parse_math=False,
            )
        canvas: Any = FigureCanvasAgg(figure)
        packed = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # shown as a box
            canvas.draw()
        Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(packed, format="PNG")
        return packed.getvalue()


def drawn(head: Sequence[Line], panels: Sequence[Panel]) -> bytes:
    """A PNG: panels of one picture side by side, others below each other."""
    page, top = _Page(), float(MARGIN)
    for line in head:
        top = page.write(line, MARGIN, top, WIDTH - 2 * MARGIN) + 4
    top += 14
    alone = all(len(panel.pictures) == 1 for panel in panels)
    top = _abreast(page, panels, top) if alone else _stacked(page, panels, top)
    return page.png(top + MARGIN - 10)


def room(panels: int, pictures: int) -> int:
    """How wide a picture may be."""
    if pictures == 1:
        return min(440, (WIDTH - 2 * MARGIN - (panels - 1) * GAP) // panels)
    across = min(STRIP, max(pictures, 3))
    return (WIDTH - 2 * MARGIN - (across - 1) * SLIT) // across


def _abreast(page: _Page, panels: Sequence[Panel], top: float) -> float:
    width = room(len(panels), 1)
    lefts = [MARGIN + place * (width + GAP) for place in range(len(panels))]
    columns = list(zip(lefts, panels, strict=True))
    top = max(page.title(panel, left, top, width) for left, panel in columns) + 8
    for left, panel in columns:
        page.images.append((left, top, panel.pictures[0]))
    top += max(len(panel.pictures[0]) for panel in panels) + 10
    ends = [top]
    for left, panel in columns:
        end = top
        for line in panel.lines:
            end = page.write(line, left, end, width) + 4
        ends.append(end)
    return max(ends) + 8


def _stacked(page: _Page, panels: Sequence[Panel], top: float) -> float:
    for panel in panels:
        top = page.title(panel, MARGIN, top, WIDTH - 2 * MARGIN) + 4
        for line in panel.lines:
            top = page.write(line, MARGIN, top, WIDTH - 2 * MARGIN) + 2
        top += 6
        width = room(len(panels), len(panel.pictures))
        for start in range(0, len(panel.pictures), STRIP):
            row = list(zip(panel.pictures, panel.names, strict=True))[start : start + STRIP]
            for place, (pixels, name) in enumerate(row):
                left = MARGIN + place * (width + SLIT)
                page.images.append((left, top, pixels))
                page.write(Line(name, 14, GREY, most=1), left, top + len(pixels) + 3, width)
            top += max(len(pixels) for pixels, _ in row) + 26
        top += 12
    return top


def wrapped(words: str, width: float, size: int, bold: bool = False, most: int = 3) -> list[str]:
    """The words on at most so many lines of at most so many pixels, cut with an ellipsis if they do not fit."""
    lines = list(islice(_lines(_shown(words), width, size, bold), most + 1))
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    return [
        *lines[: most - 1],
        last[: _fitting(last, width - _length("…", size, bold), size, bold)] + "…",
    ]


def _lines(words: str, width: float, size: int, bold: bool) -> Iterator[str]:
    line = ""
    for word in words.split():
        if line and _length(f"{line} {word}", size, bold) > width:
            yield line
            line = ""
        line = f"{line} {word}" if line else word
        while (
            len(line) > 1 and _length(line, size, bold) > width
        ):  # a word that is longer than a line
            end = max(1, _fitting(line, width, size, bold))
            yield line[:end]
            line = line[end:]
    if line:
        yield line


def _fitting(line: str, width: float, size: int, bold: bool) -> int:
    """How many letters of it are at most so wide."""
    return bisect_right(
        range(1, len(line) + 1), width, key=lambda end: _length(line[:end], size, bold)
    )


def _shown(words: str) -> str:
    """On one line, without what cannot be seen or would turn the line around."""
    plain = " ".join(words.split())
    return "".join(letter if letter.isprintable() else "·" for letter in plain[: LONGEST + 1])


@cache
def _font(size: int, bold: bool) -> font_manager.FontProperties:
    known = set(font_manager.get_font_names())
    families = ["DejaVu Sans", *(name for name in OTHERS if name in known)]
    return font_manager.FontProperties(
        family=families, weight="bold" if bold else "normal", size=size * 72 / DPI
    )


@cache
def _renderer() -> Any:
    draws: Any = RendererAgg  # untyped
    return draws(8, 8, DPI)


@lru_cache(maxsize=4096)
def _length(words: str, size: int, bold: bool) -> float:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        return float(
            _renderer().get_text_width_height_descent(words, _font(size, bold), ismath=False)[0]
        )


def scaled(pixels: Pixels, width: int) -> Pixels:
    """A picture so wide, and at most one and a half times as high."""
    high, wide = pixels.shape[:2]
    height = min(round(width * high / wide), width * 3 // 2)
    narrow = min(width, max(1, round(height * wide / high)))
    way = Image.Resampling.LANCZOS if narrow < wide else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize((narrow, max(1, height)), way))
