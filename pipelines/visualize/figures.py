"""Figures 2 and 4 of the paper for one row: scores of the tokens, and which tokens are kept."""

import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch, Rectangle
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from pipelines.visualize.model_probe import Generation, Prompt, TokenGroup
from pipelines.visualize.token_scores import Recorder

Values = NDArray[np.floating[Any]]
Note = tuple[str, Any]
"""A line of text and the colour that it explains, or "none"."""
DPI, WIDTH, MAX_PICTURE_WIDTH, LINE_HEIGHT = 100, 12.4, 4.4, 0.24  # in inches
MAX_PICTURES_PER_STRIP = 8  # frames of a video or crops of an image, side by side
MAX_QUOTED = 200  # characters of a quoted text
MAX_CHARACTERS = 400  # a text is cut there before it is measured
MAX_LINES = 3  # of a text after wrapping; the rest of it is cut
INK, GREY = "#1a1a1a", "#5c5c5c"
RIGHT, WRONG = "#00597a", "#a63600"  # blue and vermilion: distinct for colour-blind readers
COLOURMAP = "viridis"  # perceptually uniform, readable without telling red from green
KEPT_COLOUR = "#f09628"  # in the legend
MIN_CLARITY = 0.13  # how much of a patch remains visible if its token is dropped first
CLIP_PERCENTILE = 98  # end of a colour scale: a few patches have far more attention than the rest
FALLBACK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Micro Hei", "PingFang SC"),
    *("Microsoft YaHei", "Noto Sans"),
)


@dataclass(frozen=True)
class Outcome:
    """A method's answer: the one stored in the run, and the one generated here."""

    name: str
    stored: dict[str, Any]
    generation: Generation

    @property
    def is_reproduced(self) -> bool:
        return bool(self.stored["prediction"] == self.generation.answer)

    @property
    def answer(self) -> str:
        """The stored answer with its verdict."""
        correct, score = self.stored["correct"], self.stored["score"]
        verdict = "" if score is None else f", scored {score:g}"
        if correct is not None:
            verdict = ", right" if correct else ", wrong"
        return f"{quoted(self.stored['prediction'])}{verdict}"

    def describe(self) -> str:
        """The answers as a part of the caption."""
        here = "" if self.is_reproduced else f" (alone {quoted(self.generation.answer)})"
        return f"{self.name} answers {self.answer}{here}"


@dataclass(frozen=True)
class Panel:
    """The row's pictures as one method or score shows them, and their explanation."""

    title: str
    notes: Sequence[Note]  # below the pictures
    colour: str = INK  # of the title
    overlays: Sequence[Values] = ()  # (rows, columns, RGBA) of each picture's patches
    scale: ScalarMappable | None = None  # for a colour bar; pictures below are grey


def kept_panels(prompt: Prompt, outcomes: Sequence[Outcome]) -> list[Panel]:
    """Figure 4: the picture, then per method the patches whose tokens are kept, and its answer."""
    # A method that drops nothing shows the picture itself.
    panels = [_original(prompt)] if all(outcome.generation.sites for outcome in outcomes) else []
    for outcome in outcomes:
        generation, overlays = outcome.generation, []
        mark, colour = {None: ("", INK), True: ("✓ ", RIGHT), False: ("✗ ", WRONG)}[
            outcome.stored["correct"]
        ]
        notes: list[Note] = [(f"all {prompt.visual_tokens:,} tokens", "none")]
        if generation.sites:
            shares = prompt.by_group(generation.sites_passed / len(generation.sites))
            overlays = list(map(veil, shares, prompt.groups))
            budget = f"{outcome.stored['budget']:g} of {prompt.visual_tokens:,}"
            notes = [(f"{budget} tokens in the average layer", "none"), *_legend(generation)]
        if not outcome.is_reproduced:
            notes.append((f"! alone, it answers {quoted(generation.answer)} here", WRONG))
        panels.append(Panel(f"{outcome.name}\n{mark}{outcome.answer}", notes, colour, overlays))
    return panels


def score_panels(prompt: Prompt, scores: Sequence[tuple[Recorder, Values]]) -> list[Panel]:
    """Figure 2: the picture, and per score a map over it with its colour scale."""
    panels = [_original(prompt)]
    for recorder, values in scores:
        low, high = np.nanpercentile(values, (0, CLIP_PERCENTILE))
        scale = ScalarMappable(Normalize(low, high, clip=True), COLOURMAP)
        scale.set_array(values)
        notes: list[Note] = [(recorder.used_by, "none")]
        if excluded := np.isnan(values).sum():
            notes.append((f"{recorder.excluded}: {excluded:,}", "grey"))
        by_group = zip(prompt.by_group(values), prompt.groups, strict=True)
        maps = [heatmap(own, group, scale) for own, group in by_group]
        panels.append(Panel(recorder.name, notes, INK, maps, scale))
    return panels


def _original(prompt: Prompt) -> Panel:
    return Panel("what the model sees", [(f"{prompt.visual_tokens:,} tokens", "none")])


def _legend(generation: Generation) -> list[Note]:
    """The number of tokens that are kept, then of those dropped, last site first; in their veil."""
    counts = [len(generation.sites_passed), *(count for _, count in generation.sites)]
    lines: list[Note] = [(f"kept to the end: {counts[-1]:,}", KEPT_COLOUR)]
    for passed, (site, count) in reversed(list(enumerate(generation.sites))):
        known = {"vision": "in the vision tower", "encoder": "at the encoder"}
        where = known.get(site, f"at the decoder's layer {site}")
        colour = to_rgba(KEPT_COLOUR, float(_clarity(np.array(passed / len(generation.sites)))))
        lines.append((f"dropped {where}: {counts[passed] - count:,}", colour))
    return lines


def _clarity(shares: Values) -> Values:
    return MIN_CLARITY + (1 - MIN_CLARITY) * shares


def veil(shares: Values, group: TokenGroup) -> Values:
    """White over each patch, the denser the fewer sites its token passed: `shares` (N,), 0 to 1.

    Patches without a token look like those dropped first.
    """
    veiled = np.ones((*group.grid, 4))
    veiled[..., 3] = 1 - _clarity(_by_patch(shares, 0.0, group))
    return veiled


def heatmap(values: Values, group: TokenGroup, scale: ScalarMappable) -> Values:
    """The colour of each patch's value, (N,); transparent for patches without a number."""
    by_patch = _by_patch(values, np.nan, group)
    colours: Values = scale.to_rgba(np.nan_to_num(by_patch))
    colours[..., 3] = np.where(np.isnan(by_patch), 0.0, 0.8)
    return colours


def _by_patch(values: Values, missing: float, group: TokenGroup) -> Values:
    cells: Values = np.full(group.grid, missing)
    cells.flat[group.cells] = values
    return cells


def render(head: str, details: str, prompt: Prompt, panels: Sequence[Panel]) -> bytes:
    """Return a PNG: panels of one picture side by side, panels of several one below another.

    head: above the panels; details: below them
    """
    pictures, is_single = len(prompt.groups), len(prompt.groups) == 1
    columns = 1 if is_single else max(3, min(MAX_PICTURES_PER_STRIP, pictures))
    strips = ceil(pictures / columns)
    grid = (1, len(panels)) if is_single else (len(panels), 1)
    width = WIDTH / grid[1] - 0.2
    tallest = max(group.pixels.shape[0] / group.pixels.shape[1] for group in prompt.groups)
    picture = min(MAX_PICTURE_WIDTH, width / columns) * min(tallest, 1.5)
    png = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context(_settings()):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as an empty box
        above, below = wrap(head, WIDTH - 0.4, 15), wrap(details, WIDTH - 0.4, 11)
        titles = [
            "\n".join(wrap(line, width - 0.3, 12) for line in panel.title.split("\n", 1))
            for panel in panels
        ]
        title_lines = max(title.count("\n") for title in titles) + 1
        notes = max(len(panel.notes) + (2 if panel.scale else 0) for panel in panels)
        height = strips * (picture + LINE_HEIGHT) + LINE_HEIGHT * (title_lines + notes)
        lines = above.count("\n") + below.count("\n") + 3
        size = (WIDTH, height * grid[0] + LINE_HEIGHT * lines)
        figure = Figure(size, dpi=DPI, layout="constrained")
        figure.suptitle(above, size=15, weight="bold")
        figure.supxlabel(below, size=11, color=GREY)
        parts = figure.subfigures(*grid, squeeze=False).flat
        for panel, title, part in zip(panels, titles, parts, strict=True):
            # pictures side by side begin at the same height
            padding = "\n" * (title_lines - 1 - title.count("\n")) if is_single else ""
            part.suptitle(title + padding, size=12, weight="bold", color=panel.colour)
            _draw(panel, part, prompt.groups, (strips, columns), width)
        figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _draw(
    panel: Panel,
    part: SubFigure,
    groups: Sequence[TokenGroup],
    grid: tuple[int, int],
    width: float,
) -> None:
    handles = [
        Patch(color=colour, label=wrap(note, width - 0.8, 10)) for note, colour in panel.notes
    ]
    part.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=10)
    axes = part.subplots(*grid, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
        ax.set_anchor("N")
    for number, (ax, group) in enumerate(zip(axes.flat, groups, strict=False)):
        pixels = group.pixels.mean(axis=2) if panel.scale else group.pixels
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        if group.name:
            ax.set_title(wrap(group.name, width / grid[1], 9), size=9, color=GREY)
        if panel.overlays:
            _cover(ax, panel.overlays[number], *pixels.shape[:2])
    if panel.scale:
        values: Any = panel.scale.get_array()
        is_cut = np.nanmax(values) > panel.scale.norm.vmax
        options: Any = {"location": "bottom", "aspect": 30, "shrink": 0.8}
        options["extend"] = "max" if is_cut else "neither"
        options["panchor"] = False  # the pictures stay at the top
        bar = part.colorbar(panel.scale, ax=axes, **options)
        bar.ax.locator_params(nbins=4)


def _cover(ax: Axes, overlay: Values, height: int, width: int) -> None:
    """Draws the patches over a picture, with a frame around those that are less covered."""
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(overlay, extent=extent, interpolation="nearest")
    y, x = height / overlay.shape[0], width / overlay.shape[1]
    clear = np.argwhere(overlay[..., 3] < overlay[..., 3].max())
    frames = [Rectangle((column * x - 0.5, row * y - 0.5), x, y) for row, column in clear]
    ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor=INK, linewidth=0.5))


def wrap(text: str, width: float, size: int) -> str:
    """Break a text into at most MAX_LINES lines of at most `width` inches, cut with an ellipsis.

    Characters that cannot be printed or would turn the line around are replaced by a dot.
    """
    text = " ".join(text.split())[: MAX_CHARACTERS + 1]
    text = "".join(character if character.isprintable() else "·" for character in text)
    # textwrap counts characters: start above the average that fits and reduce until all lines do
    start = ceil(1.5 * len(text) * width / max(1e-3, text_width(text, size)))
    for columns in range(max(1, start), 0, -1):
        lines = textwrap.wrap(text, columns, max_lines=MAX_LINES, placeholder="…")
        if all(text_width(line, size) <= width for line in lines):
            break
    return "\n".join(lines)


def text_width(text: str, size: int) -> float:
    """The width in inches of a bold text."""
    font = font_manager.FontProperties(family=_settings()["font.family"], weight="bold", size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


@cache
def _settings() -> Any:
    installed = set(font_manager.get_font_names())
    families = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
    # a dollar sign in a text must not start a formula
    return {"font.family": families, "text.parse_math": False, "text.color": INK}


def quoted(text: str | None) -> str:
    """The text on one line in quotation marks, cut with an ellipsis; `nothing` if it is empty."""
    line = " ".join((text or "").split())
    ellipsis = "…" if len(line) > MAX_QUOTED else ""
    return f"“{line[:MAX_QUOTED]}{ellipsis}”" if line else "nothing"
