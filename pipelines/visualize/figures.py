"""The paper's Figure 2, what tokens could be ranked by, and its Figure 4, which tokens are left, for one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from pipelines.data.media.content import Pixels
from pipelines.visualize.page import GREY, INK, RIGHT, WRONG, Line, Panel, drawn, room, scaled
from pipelines.visualize.rankings import Ranking
from pipelines.visualize.seen import Came, Prompt, Shown

HEAT = "viridis"  # perceptually uniform, and readable without telling red from green
VEIL, LINE, AMBER = (
    255,
    70,
    np.array([240, 150, 40]),
)  # dropped patches fade into the paper; swatches are amber
FAINT = 0.13  # of a patch shines through the veil where its token is dropped first
CLIP = 98  # percentile that is the end of a colour scale: attention has a few patches far above the rest
SEEN = "what the model sees"
WELL = "✓", "✗"


@dataclass(frozen=True)
class Told:
    """A method's panel: what became of the tokens, and what the run has of the answer."""

    name: str
    row: dict[str, Any]  # the run's answer
    came: Came

    @property
    def same(self) -> bool:
        return bool(self.row["prediction"] == self.came.answer)

    @property
    def verdict(self) -> str:
        if self.row["correct"] is not None:
            return "right" if self.row["correct"] else "wrong"
        return "" if self.row["score"] is None else f"scored {self.row['score']:g}"

    def lines(self) -> list[Line]:
        correct = self.row["correct"]
        mark = "" if correct is None else WELL[0] + " " if correct else WELL[1] + " "
        colour = INK if correct is None else RIGHT if correct else WRONG
        verdict = f" ({self.verdict})" if self.verdict else ""
        found = [
            Line(f"{mark}{_said(self.row['prediction'], 200)}{verdict}", 19, colour, bold=True)
        ]
        if not self.same:
            found.append(Line(f"! alone it answers {_said(self.came.answer, 120)} here", 15, WRONG))
        return found


def kept(prompt: Prompt, told: Sequence[Told], head: Sequence[Line]) -> bytes:
    """Figure 4: the picture, then for each method the patches whose tokens are left, and its answer."""
    plain = all(
        each.came.sites for each in told
    )  # then there is no method that shows the picture itself
    width = room(len(told) + plain, len(prompt.shown))
    names = [shown.name for shown in prompt.shown]
    pictures = [scaled(shown.pixels, width) for shown in prompt.shown]
    panels = [Panel(SEEN, f"{prompt.tokens:,} tokens", pictures, names, [])] if plain else []
    for each in told:
        came, drawn_as = each.came, pictures
        note, legend = f"all {prompt.tokens:,} tokens", []
        if came.sites:
            groups = zip(
                pictures, prompt.by_group(came.passed / len(came.sites)), prompt.shown, strict=True
            )
            drawn_as = [veiled(picture, share, shown) for picture, share, shown in groups]
            note = f"{each.row['budget']:g} of {prompt.tokens:,} tokens in the average layer"
            legend = _legend(came)
        panels.append(Panel(each.name, note, drawn_as, names, [*each.lines(), *legend]))
    return drawn(head, panels)


def _legend(came: Came) -> list[Line]:
    steps, left = len(came.sites), came.sites[-1][1]
    found = [Line(f"kept to the end: {left:,}", 15, swatch=_swatch(1.0))]
    before = [len(came.passed), *(count for _, count in came.sites)]
    for place in reversed(range(steps)):
        gone = before[place] - before[place + 1]
        found.append(
            Line(
                f"dropped {_where(came.sites[place][0])}: {gone:,}",
                15,
                swatch=_swatch(place / steps),
            )
        )
    return found


def _where(site: str) -> str:
    return {"vision": "in the vision tower", "encoder": "at the encoder"}.get(
        site, f"at the decoder's layer {site}"
    )


def _swatch(share: float) -> Pixels:
    return _framed(_faded(np.broadcast_to(AMBER, (16, 26, 3)), np.full((16, 26), share)))


def _framed(swatch: Pixels) -> Pixels:
    framed = np.full_like(swatch, LINE)
    framed[1:-1, 1:-1] = swatch[1:-1, 1:-1]
    return framed


def veiled(picture: Pixels, share: NDArray[np.floating[Any]], shown: Shown) -> Pixels:
    """A picture of any size whose patches show as far as their tokens came: `share` (N,), from 0 to 1.

    Patches without a token are as those that were dropped first. A thin line runs where neighbours differ.
    """
    wide = _spread(share, 0.0, shown, picture)
    faded = _faded(picture, wide)
    faded[_edges(wide)] = LINE
    return faded


def _faded(picture: NDArray[Any], share: NDArray[np.floating[Any]]) -> Pixels:
    clear = FAINT + (1 - FAINT) * share[..., None]
    return np.where(share[..., None] == 1, picture, clear * picture + (1 - clear) * VEIL).astype(
        np.uint8
    )


def ranked(prompt: Prompt, rankings: Sequence[Ranking], head: Sequence[Line]) -> bytes:
    """Figure 2: the picture, and for each ranking a map over it with its scale."""
    width = room(len(rankings) + 1, len(prompt.shown))
    names = [shown.name for shown in prompt.shown]
    pictures = [scaled(shown.pixels, width) for shown in prompt.shown]
    panels = [Panel(SEEN, f"{prompt.tokens:,} tokens", pictures, names, [])]
    for ranking in rankings:
        values = ranking.values[~np.isnan(ranking.values)]
        low, high = float(values.min()), float(np.percentile(values, CLIP))
        share = ((ranking.values - low) / max(high - low, 1e-30)).clip(0, 1)
        groups = zip(pictures, prompt.by_group(share), prompt.shown, strict=True)
        maps = [heated(picture, each, shown) for picture, each, shown in groups]
        more = "≥ " if values.max() > high else ""
        lines = [Line(f"{more}{high:.2g}", 15, GREY, swatch=_bar(), before=f"{low:.2g}", most=1)]
        if apart := len(ranking.values) - len(values):
            swatch = _framed(np.full((16, 26, 3), 255, np.uint8))
            lines.append(Line(f"{ranking.apart}: {apart:,}", 15, GREY, swatch=swatch))
        panels.append(Panel(ranking.name, ranking.like, maps, names, lines))
    return drawn(head, panels)


def heated(picture: Pixels, share: NDArray[np.floating[Any]], shown: Shown) -> Pixels:
    """A map of `share` (N,), from 0 to 1, over the shades of a picture; patches without a number are framed."""
    wide = _spread(share, np.nan, shown, picture)
    grey = picture.mean(axis=2, keepdims=True)
    colour = 255 * colormaps[HEAT](np.nan_to_num(wide))[..., :3]
    mixed: Pixels = (0.8 * colour + 0.2 * grey).astype(np.uint8)
    without = np.isnan(wide)
    mixed[without] = picture[without]
    mixed[_edges(without)] = 255
    return mixed


def _spread(
    values: NDArray[Any], others: float, shown: Shown, picture: Pixels
) -> NDArray[np.float64]:
    """What each pixel's patch has of `values` (N,), and `others` where it has no token."""
    cells = np.full(shown.grid[0] * shown.grid[1], others)
    cells[shown.cells] = values
    down, right = (
        np.arange(size) * patches // size
        for size, patches in zip(picture.shape, shown.grid, strict=False)
    )
    wide: NDArray[np.float64] = cells.reshape(shown.grid)[down][:, right]
    return wide


def _edges(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels that differ from the one above or to the left."""
    edge = np.zeros(values.shape, bool)
    edge[1:] |= values[1:] != values[:-1]
    edge[:, 1:] |= values[:, 1:] != values[:, :-1]
    return edge


def _bar() -> Pixels:
    ramp = np.broadcast_to(np.linspace(0, 1, 96), (14, 96))
    return (255 * colormaps[HEAT](ramp)[..., :3]).astype(np.uint8)


def _said(words: str | None, most: int) -> str:
    text = " ".join((words or "").split())
    return f"“{text[:most]}{'…' if len(text) > most else ''}”" if text else "nothing"
