"""Figures 2 and 4 of the paper for one row: scores of the tokens, and which tokens are kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from pipelines.data.media.content import Pixels
from pipelines.visualize.layout import (
    GREY,
    INK,
    RIGHT,
    WRONG,
    Line,
    Panel,
    picture_width,
    render,
    scaled,
)
from pipelines.visualize.model_probe import Generation, Prompt, TokenGroup
from pipelines.visualize.token_scores import TokenScores

Values = NDArray[np.floating[Any]]
COLOURMAP = "viridis"  # perceptually uniform, readable without telling red from green
VEIL, EDGE = 255, 70  # grey levels: dropped patches fade to white; edges are dark
SWATCH_COLOUR = np.array([240, 150, 40])
SWATCH_SIZE, BAR_SIZE = (16, 26), (14, 64)
MAX_QUOTED = 200  # characters of a quoted text
MIN_CLARITY = 0.13  # how much of a patch remains visible if its token is dropped first
CLIP_PERCENTILE = 98  # end of a colour scale: a few patches have far more attention than the rest


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
    def verdict(self) -> str:
        if self.stored["correct"] is not None:
            return "right" if self.stored["correct"] else "wrong"
        return "" if self.stored["score"] is None else f"scored {self.stored['score']:g}"

    def lines(self) -> list[Line]:
        marks = {None: ("", INK), True: ("✓ ", RIGHT), False: ("✗ ", WRONG)}
        mark, colour = marks[self.stored["correct"]]
        verdict = f" ({self.verdict})" if self.verdict else ""
        answer = f"{mark}{quoted(self.stored['prediction'])}{verdict}"
        lines = [Line(answer, 19, colour, bold=True)]
        if not self.is_reproduced:
            here = quoted(self.generation.answer)
            lines.append(Line(f"! alone, it answers {here} here", colour=WRONG))
        return lines

    def describe(self) -> str:
        """The answers as a part of the caption."""
        verdict = f", {self.verdict}" if self.verdict else ""
        here = "" if self.is_reproduced else f" (alone {quoted(self.generation.answer)})"
        return f"{self.name} answers {quoted(self.stored['prediction'])}{verdict}{here}"


def kept_figure(prompt: Prompt, outcomes: Sequence[Outcome], head: Sequence[Line]) -> bytes:
    """Figure 4: the picture, then per method the patches whose tokens are kept, and its answer."""
    # a method that drops nothing shows the picture itself
    add_original = all(outcome.generation.sites for outcome in outcomes)
    original = _original(prompt, len(outcomes) + add_original)
    panels = [original] if add_original else []
    for outcome in outcomes:
        generation, pictures = outcome.generation, original.pictures
        note, legend = f"all {prompt.visual_tokens:,} tokens", []
        if generation.sites:
            shares = prompt.by_group(generation.sites_passed / len(generation.sites))
            pictures = list(map(veiled, pictures, shares, prompt.groups))
            budget = f"{outcome.stored['budget']:g} of {prompt.visual_tokens:,}"
            note, legend = f"{budget} tokens in the average layer", _legend(generation)
        lines = [*_title(outcome.name, note), *outcome.lines(), *legend]
        panels.append(replace(original, pictures=pictures, lines=lines))
    return render(head, panels)


def scores_figure(prompt: Prompt, scores: Sequence[TokenScores], head: Sequence[Line]) -> bytes:
    """Figure 2: the picture, and per score a map over it with its colour scale."""
    original = _original(prompt, len(scores) + 1)
    panels = [original]
    bar = _heat(np.broadcast_to(np.linspace(0, 1, BAR_SIZE[1]), BAR_SIZE)).astype(np.uint8)
    for score in scores:
        low, high = np.nanpercentile(score.values, (0, CLIP_PERCENTILE))
        shares = ((score.values - low) / max(high - low, 1e-30)).clip(0, 1)
        maps = list(map(heatmap, original.pictures, prompt.by_group(shares), prompt.groups))
        above = " or more" if np.nanmax(score.values) > high else ""
        scale = Line(f"{low:.2g} to {high:.2g}{above}", colour=GREY, swatch=bar)
        lines = [*_title(score.name, score.used_by), scale]
        if excluded := np.isnan(score.values).sum():
            text = f"{score.excluded}: {excluded:,}"
            lines.append(Line(text, colour=GREY, swatch=_swatch(VEIL)))
        panels.append(replace(original, pictures=maps, lines=lines))
    return render(head, panels)


def _original(prompt: Prompt, panels: int) -> Panel:
    """The row's pictures as the model sees them, sized for a page of this many panels."""
    width = picture_width(panels, len(prompt.groups))
    pictures = [scaled(group.pixels, width) for group in prompt.groups]
    lines = _title("what the model sees", f"{prompt.visual_tokens:,} tokens")
    return Panel(pictures, [group.name for group in prompt.groups], lines)


def _title(title: str, note: str) -> list[Line]:
    return [Line(title, 18, bold=True), Line(note, colour=GREY)]


def _legend(generation: Generation) -> list[Line]:
    """The clarity and number of tokens that are kept, then of those dropped, last site first."""
    counts = [len(generation.sites_passed), *(count for _, count in generation.sites)]
    lines = [Line(f"kept to the end: {counts[-1]:,}", swatch=_swatch(SWATCH_COLOUR))]
    for passed, (site, count) in reversed(list(enumerate(generation.sites))):
        known = {"vision": "in the vision tower", "encoder": "at the encoder"}
        where = known.get(site, f"at the decoder's layer {site}")
        swatch = _swatch(_faded(SWATCH_COLOUR, np.array(passed / len(generation.sites))))
        lines.append(Line(f"dropped {where}: {counts[passed] - count:,}", swatch=swatch))
    return lines


def _swatch(colour: NDArray[Any] | int) -> Pixels:
    """A small rectangle of one colour in a dark frame."""
    swatch = np.full((*SWATCH_SIZE, 3), EDGE, np.uint8)
    swatch[1:-1, 1:-1] = colour
    return swatch


def veiled(picture: Pixels, shares: Values, group: TokenGroup) -> Pixels:
    """Fade each patch by the share of sites that its token passed: `shares` (N,), from 0 to 1.

    Patches without a token look like those dropped first. Thin lines separate different shares.
    """
    by_pixel = _by_pixel(shares, 0.0, group, picture)
    faded = _faded(picture, by_pixel)
    faded[_edges(by_pixel)] = EDGE
    return faded


def _faded(picture: NDArray[Any], shares: Values) -> Pixels:
    clarity = MIN_CLARITY + (1 - MIN_CLARITY) * shares[..., None]
    faded: Pixels = (clarity * picture + (1 - clarity) * VEIL).astype(np.uint8)
    return faded


def heatmap(picture: Pixels, shares: Values, group: TokenGroup) -> Pixels:
    """Colour each patch by `shares` (N,), from 0 to 1, over a picture's shades of grey.

    Patches without a number are framed and keep their colours.
    """
    by_pixel = _by_pixel(shares, np.nan, group, picture)
    grey = picture.mean(axis=2, keepdims=True)
    mixed: Pixels = (0.8 * _heat(np.nan_to_num(by_pixel)) + 0.2 * grey).astype(np.uint8)
    missing = np.isnan(by_pixel)
    mixed[missing] = picture[missing]
    mixed[_edges(missing)] = VEIL
    return mixed


def _heat(shares: Values) -> NDArray[np.float64]:
    colours: NDArray[np.float64] = 255 * colormaps[COLOURMAP](shares)[..., :3]
    return colours


def _by_pixel(
    values: Values, missing: float, group: TokenGroup, picture: Pixels
) -> NDArray[np.float64]:
    """The value of each pixel's patch; `missing` where the patch has no token."""
    cells = np.full(group.grid, missing)
    cells.flat[group.cells] = values
    (height, width), (rows, columns) = picture.shape[:2], group.grid
    y, x = np.arange(height) * rows // height, np.arange(width) * columns // width
    by_pixel: NDArray[np.float64] = cells[y][:, x]
    return by_pixel


def _edges(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels that differ from the one above or to the left."""
    edges = np.zeros(values.shape, bool)
    edges[1:] |= values[1:] != values[:-1]
    edges[:, 1:] |= values[:, 1:] != values[:, :-1]
    return edges


def quoted(text: str | None) -> str:
    """The text on one line in quotation marks, cut with an ellipsis; `nothing` if it is empty."""
    line = " ".join((text or "").split())
    ellipsis = "…" if len(line) > MAX_QUOTED else ""
    return f"“{line[:MAX_QUOTED]}{ellipsis}”" if line else "nothing"
