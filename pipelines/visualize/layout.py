"""Packs pictures and texts into one PNG with matplotlib's packers.

One point is one pixel, so pictures are copied without resampling. Texts come from data sets and
models: each is wrapped to its column, limited in lines, and never parsed as a formula.
"""

import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import HPacker, OffsetBox, OffsetImage, TextArea, VPacker
from matplotlib.textpath import text_to_path
from PIL import Image

from pipelines.data.media.content import Pixels

# Lengths in pixels.
WIDTH, MARGIN = 1240, 28
TEXT_WIDTH = WIDTH - 2 * MARGIN
COLUMN_GAP, PICTURE_GAP, LINE_GAP = 20, 8, 7
MAX_PICTURE_WIDTH = 440
MAX_PICTURES_PER_STRIP = 8  # frames of a video or crops of an image, side by side
MAX_CHARACTERS = 400  # a text is cut there before it is measured
MAX_LINES = 3  # of a text after wrapping; the rest of it is cut
INK, GREY = "#1a1a1a", "#5c5c5c"
RIGHT, WRONG = "#00597a", "#a63600"  # blue and vermilion: distinct for colour-blind readers
FALLBACK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Micro Hei", "PingFang SC"),
    *("Microsoft YaHei", "Noto Sans"),
)


@dataclass(frozen=True)
class Line:
    """A text, with an optional swatch before it."""

    text: str
    size: int = 15
    colour: str = INK
    bold: bool = False
    swatch: Pixels | None = None

    def box(self, width: float) -> OffsetBox:
        """The line as a box at most `width` wide."""
        swatches: list[OffsetBox] = []
        if self.swatch is not None:
            swatches = [OffsetImage(self.swatch)]
            width -= self.swatch.shape[1] + PICTURE_GAP
        lines = wrap(self.text, width, self.size, self.bold)
        font = _font(self.size, self.bold)
        # a dollar sign in a text must not start a formula
        style = {"color": self.colour, "fontproperties": font, "parse_math": False}
        words = TextArea("\n".join(lines), textprops=style)
        return HPacker(children=[*swatches, words], align="center", pad=0, sep=PICTURE_GAP)


@dataclass(frozen=True)
class Panel:
    """A row's pictures as one method or score shows them, and their explanation."""

    pictures: Sequence[Pixels]
    names: Sequence[str]  # one per picture; drawn if there are several
    lines: Sequence[Line]

    def box(self, width: int) -> OffsetBox:
        """One picture above its lines, or lines above strips of pictures `width` wide."""
        if len(self.pictures) == 1:
            lines = (line.box(width) for line in self.lines)
            return _stack([OffsetImage(self.pictures[0]), *lines])
        cells = [
            _stack([OffsetImage(pixels), Line(name, 14, GREY).box(width)])
            for pixels, name in zip(self.pictures, self.names, strict=True)
        ]
        starts = range(0, len(cells), MAX_PICTURES_PER_STRIP)
        strips = [cells[start : start + MAX_PICTURES_PER_STRIP] for start in starts]
        lines = (line.box(TEXT_WIDTH) for line in self.lines)
        return _stack([*lines, *(_row(strip, PICTURE_GAP) for strip in strips)])


def picture_width(panels: int, pictures: int) -> int:
    """The width of each picture on a page with this many panels and pictures per panel."""
    if pictures == 1:
        return min(MAX_PICTURE_WIDTH, (TEXT_WIDTH + COLUMN_GAP) // panels - COLUMN_GAP)
    columns = min(MAX_PICTURES_PER_STRIP, max(pictures, 3))
    return (TEXT_WIDTH + PICTURE_GAP) // columns - PICTURE_GAP


def render(head: Sequence[Line], panels: Sequence[Panel]) -> bytes:
    """Return a PNG: panels of one picture side by side, panels of several one below another."""
    pictures = max(len(panel.pictures) for panel in panels)
    figure = Figure(dpi=72)
    canvas: Any = FigureCanvasAgg(figure)  # untyped
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as an empty box
        boxes = [panel.box(picture_width(len(panels), pictures)) for panel in panels]
        body = (_row if pictures == 1 else _stack)(boxes, COLUMN_GAP)
        page = _stack([_stack([line.box(TEXT_WIDTH) for line in head]), body], COLUMN_GAP)
        figure.add_artist(page)
        bounds = page.get_bbox(canvas.get_renderer())
        figure.set_size_inches(WIDTH / 72, ceil(bounds.height + 2 * MARGIN) / 72)
        page.set_offset((MARGIN - bounds.x0, MARGIN - bounds.y0))
        figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _stack(boxes: Sequence[OffsetBox], gap: int = LINE_GAP) -> OffsetBox:
    return VPacker(children=[*boxes], align="left", pad=0, sep=gap)


def _row(boxes: Sequence[OffsetBox], gap: int) -> OffsetBox:
    return HPacker(children=[*boxes], align="top", pad=0, sep=gap)


def wrap(text: str, width: float, size: int, bold: bool = False) -> list[str]:
    """Break a text into at most MAX_LINES lines of at most `width` pixels, cut with an ellipsis.

    Characters that cannot be printed or would turn the line around are replaced by a dot.
    """
    text = " ".join(text.split())[: MAX_CHARACTERS + 1]
    text = "".join(character if character.isprintable() else "·" for character in text)
    # textwrap counts characters: start above the average that fits and reduce until all lines do
    start = ceil(1.5 * len(text) * width / max(1, text_width(text, size, bold)))
    for columns in range(max(1, start), 0, -1):
        lines = textwrap.wrap(text, columns, max_lines=MAX_LINES, placeholder="…")
        if all(text_width(line, size, bold) <= width for line in lines):
            break
    return lines


def text_width(text: str, size: int, bold: bool = False) -> float:
    font = _font(size, bold)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


@cache
def _font(size: int, bold: bool) -> font_manager.FontProperties:
    installed = set(font_manager.get_font_names())
    families = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
    weight = "bold" if bold else "normal"
    return font_manager.FontProperties(family=families, weight=weight, size=size)


def scaled(pixels: Pixels, width: int) -> Pixels:
    """Resize a picture to this width, or to less where it would be over 1.5 times as high."""
    factor = min(width / pixels.shape[1], 1.5 * width / pixels.shape[0])
    size = [max(1, round(factor * length)) for length in pixels.shape[1::-1]]
    return np.asarray(Image.fromarray(pixels).resize(size))
