"""Figure 1 as SVG: accuracy by budget, and prefill time with and without flash attention.

Colours are Okabe and Ito's (their yellow darker, to be seen on white), which differ for every eye; each method has a
marker and a dash of its own as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from pipelines.report import labels
from pipelines.report.measurements import RunResult, StudyResults
from pipelines.report.runs import Chapter
from pipelines.report.table import Number, percent

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a6a00", "#000000")
MARKERS = (  # as paths around 0, 0
    *(
        "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        "M-4 -4H4V4H-4z",
        "M0 -5L5 4H-5z",
        "M0 -5.5L5.5 0L0 5.5L-5.5 0z",
    ),
    *("M0 5L5 -4H-5z", "M-4 -4L4 4M-4 4L4 -4", "M-5 0H5M0 -5V5"),
)
DASHES = ("", "6 3", "2 3", "8 3 2 3", "10 4")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 250, 44, 12, 26, 40
KERNELS = {"flash_attention_2": "FlashAttention 2", "flash_attention_3": "FlashAttention 3"}


class Mark(NamedTuple):
    """How a method is drawn, in every chart of a chapter."""

    colour: str
    path: str
    dash: str

    def svg(self, x: float, y: float) -> str:
        hollow = "z" not in self.path  # strokes only
        fill = "none" if hollow else self.colour
        return (
            f'<path d="{self.path}" transform="translate({x:.1f} {y:.1f})" fill="{fill}" stroke="{self.colour}"'
            f' stroke-width="{2 if hollow else 1}"/>'
        )


def marks(chapter: Chapter) -> dict[str, Mark]:
    """Of each method with its options; no two look alike before 280 of them."""
    labels = list(dict.fromkeys(runs[0].label for runs in chapter.lines() if runs[0].budget))
    return {
        label: Mark(
            COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)], DASHES[at % len(DASHES)]
        )
        for at, label in enumerate(labels)
    }


class Entry(NamedTuple):
    """A line of the legend."""

    svg: str
    name: str


def legend(known: dict[str, Mark]) -> list[Entry]:
    entries = []
    for label, mark in known.items():
        line = f'<path d="M0 7H34" stroke="{mark.colour}" stroke-width="1.5" stroke-dasharray="{mark.dash}"/>'
        key = f'<svg viewBox="0 0 34 14" width="34" height="14" aria-hidden="true">{line}{mark.svg(17, 7)}</svg>'
        entries.append(Entry(key, labels.method_label(label)))
    return entries


def alone(svg: str, entries: Sequence[Entry]) -> str:
    """A chart as a file of its own, the legend below: what the page's style says stands in it."""
    viewed = re.match(rf'<svg viewBox="0 0 {WIDTH} ([0-9.]+)"', svg)
    assert viewed, "made by _svg"
    height = float(viewed[1])
    across, line = WIDTH // 2, 18
    parts = [svg.replace("<svg ", f'<svg width="{WIDTH}" height="{height:g}" ', 1)]
    for at, entry in enumerate(entries):
        x, y = LEFT // 2 + at % 2 * across, height + at // 2 * line
        parts.append(entry.svg.replace("<svg ", f'<svg x="{x}" y="{y:g}" ', 1))
        parts.append(_text(x + 40, y + 11, entry.name, "start"))
    height += math.ceil(len(entries) / 2) * line + 6
    size = f'viewBox="0 0 {WIDTH} {height:g}" width="{2 * WIDTH}" height="{2 * height:g}"'
    style = "<style>text { font: 12px sans-serif; fill: #333 } .name { font-weight: 600 }</style>"
    back = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{back}{"".join(parts)}</svg>\n'


def budgets(each: StudyResults, known: dict[str, Mark]) -> str:
    """Accuracy by the tokens that a layer sees on average; vanilla's is a line across, its interval a band."""
    lines: dict[str, list[tuple[float, Number]]] = {}
    for result in each.results:
        point = _point(each, result)
        if result.run.budget and point:
            lines.setdefault(result.run.label, []).append(point)
    base = (
        percent(each.vanilla.metrics, "accuracy", each.study.benchmark.most)
        if each.vanilla
        else None
    )
    shown = [point for points in lines.values() for point in points]
    if not shown:
        return ""
    values = [
        end
        for number in [*(number for _, number in shown), *([base] if base else [])]
        for end in _ends(number)
    ]
    scale = _Scale.of([tokens for tokens, _ in shown], values)
    unit = "points" if each.study.benchmark.most > 1 else "accuracy, %"
    parts = [*scale.axes("visual tokens a layer sees on average", unit)]
    if base:
        low, high = _ends(base)
        place = f'x="{LEFT}" y="{scale.y(high):.1f}" width="{WIDTH - LEFT - RIGHT}"'
        parts += [
            f'<rect {place} height="{scale.y(low) - scale.y(high):.1f}" fill="#777" opacity=".15"/>',
            f'<path d="M{LEFT} {scale.y(base.value):.1f}H{WIDTH - RIGHT}" stroke="#444" stroke-width="1.5"/>',
            _text(WIDTH - RIGHT - 2, scale.y(base.value) - 4, "vanilla", "end"),
        ]
    for at, (label, points) in enumerate(lines.items()):
        parts += _series(scale, known[label], label, sorted(points), at - (len(lines) - 1) / 2)
    name = labels.benchmark_label(each.study)
    return _svg(parts, name, f"Accuracy by budget on {name}; the numbers are in the table below")


def _point(each: StudyResults, result: RunResult) -> tuple[float, Number] | None:
    tokens = result.metrics.get("visual_tokens_kept")
    value = percent(result.metrics, "accuracy", each.study.benchmark.most)
    return (tokens, value) if tokens and value else None


def _ends(number: Number) -> tuple[float, float]:
    low, high = number.low, number.high
    return (number.value if low is None else low, number.value if high is None else high)


def _series(
    scale: _Scale, mark: Mark, label: str, points: Sequence[tuple[float, Number]], aside: float
) -> list[str]:
    """A line with intervals, a little aside of the other methods' so that none hides another's."""
    places = [(scale.x(tokens) + 3 * aside, number) for tokens, number in points]
    path = "L".join(f"{x:.1f} {scale.y(number.value):.1f}" for x, number in places)
    parts = [
        f'<path d="M{path}" fill="none" stroke="{mark.colour}" stroke-width="1.5" stroke-dasharray="{mark.dash}"/>'
    ]
    for (tokens, _), (x, number) in zip(points, places, strict=True):
        low, high = _ends(number)
        said = f"{labels.method_label(label)}, {tokens:,.0f} tokens: {number.shown()} [{number.range()}]"
        parts.append(
            f'<g><title>{escape(said)}</title><path d="M{x:.1f} {scale.y(low):.1f}V{scale.y(high):.1f}"'
            f' stroke="{mark.colour}" opacity=".55"/>{mark.svg(x, scale.y(number.value))}</g>'
        )
    return parts


class _Scale(NamedTuple):
    """Tokens (logarithmic) and values to places."""

    tokens: tuple[float, ...]
    bottom: float
    top: float
    step: float

    @classmethod
    def of(cls, tokens: Sequence[float], values: Sequence[float]) -> _Scale:
        low, high = min(values), max(values)
        step = _step((high - low) or 1.0)
        return cls(
            tuple(sorted(set(tokens))),
            step * math.floor(low / step),
            step * math.ceil(high / step),
            step,
        )

    def x(self, tokens: float) -> float:
        first, last = math.log(self.tokens[0]), math.log(self.tokens[-1])
        share = (math.log(tokens) - first) / (last - first) if last > first else 0.5
        return LEFT + 26 + share * (WIDTH - LEFT - RIGHT - 52)

    def y(self, value: float) -> float:
        share = (value - self.bottom) / ((self.top - self.bottom) or 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def axes(self, across: str, up: str) -> list[str]:
        parts = []
        for at in range(round((self.top - self.bottom) / self.step) + 1):
            value = self.bottom + at * self.step
            y = self.y(value)
            parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
            parts.append(_text(LEFT - 5, y + 4, f"{value:g}", "end"))
        last = -math.inf
        for tokens in self.tokens:
            if self.x(tokens) - last > 30:  # room for its number
                last = self.x(tokens)
                parts.append(_text(last, HEIGHT - BOTTOM + 15, f"{tokens:,.0f}"))
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, across))
        parts.append(_text(LEFT - 36, TOP - 10, up, "start"))
        return parts


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are four to eight lines."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 8)


class Bars(NamedTuple):
    """Prefill ms of each point, under one attention kernel or two."""

    names: Sequence[str]
    kernels: Sequence[str]
    values: Sequence[Sequence[float | None]]  # by kernel


def kernels(
    chapters: Sequence[Chapter], findings: Sequence[Sequence[StudyResults]]
) -> list[tuple[str, str]]:
    """Prefill under flash attention and under another kernel, of each study that has been run with both: title, SVG."""
    charts = []
    flash = [
        place for place, chapter in enumerate(chapters) if chapter.settings.get("attn") in KERNELS
    ]
    for place in flash:
        for other, chapter in enumerate(chapters):
            mine, theirs = ({**each.settings, "attn": None} for each in (chapters[place], chapter))
            if other in flash or mine != theirs or chapter.model != chapters[place].model:
                continue
            for one in findings[place]:
                for two in findings[other]:
                    if one.study.column == two.study.column:
                        kernel = KERNELS[str(chapters[place].settings["attn"])]
                        other_kernel = str(chapter.settings.get("attn"))
                        title = f"{chapter.model}, {labels.benchmark_label(one.study)}: prefill with {kernel} and {other_kernel}"
                        charts.append(
                            (title, _bars(_beside(one, two, (kernel, other_kernel)), title))
                        )
    return charts


def _beside(flash: StudyResults, other: StudyResults, kernels: Sequence[str]) -> Bars:
    times = [
        {
            result.run.point: result.metrics.get("prefill_ms_p50")
            for result in each.results
            if not result.run.options  # those of methods would make it long and say little about speed
        }
        for each in (flash, other)
    ]
    points = list(dict.fromkeys([*times[1], *times[0]]))
    return Bars(points, kernels, [[times[at].get(point) for point in points] for at in (0, 1)])


def _bars(bars: Bars, title: str) -> str:
    most = max(value for values in bars.values for value in values if value is not None)
    left, row = 124, 34
    height = 34 + row * len(bars.names) + 6
    parts = []
    for at, kernel in enumerate(bars.kernels):
        parts.append(f'<rect x="{8 + 170 * at}" y="6" width="12" height="12" {_fill(at)}/>')
        parts.append(_text(26 + 170 * at, 16, kernel, "start"))
    for place, name in enumerate(bars.names):
        top = 30 + row * place
        parts.append(_text(left - 6, top + 18, name if len(name) < 18 else f"{name[:16]}..", "end"))
        for at, values in enumerate(bars.values):
            value = values[place]
            y = top + 13 * at
            if value is None:
                parts.append(_text(left + 4, y + 10, "not run", "start"))
                continue
            wide = max(1.0, (WIDTH - left - 66) * value / most)
            parts.append(f'<rect x="{left}" y="{y}" width="{wide:.1f}" height="11" {_fill(at)}/>')
            parts.append(_text(left + wide + 4, y + 10, f"{value:,.1f} ms", "start"))
    return _svg(parts, "", title, height)


def _fill(at: int) -> str:
    return (
        f'fill="{COLOURS[at]}"'
        if at == 0
        else f'fill="#fff" stroke="{COLOURS[at]}" stroke-width="2"'
    )


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(parts: Sequence[str], title: str, description: str, height: float = HEIGHT) -> str:
    head = (
        f'<text x="{WIDTH / 2}" y="14" text-anchor="middle" class="name">{escape(title)}</text>'
        if title
        else ""
    )
    role = f'role="img" aria-label="{escape(description)}"'
    return f'<svg viewBox="0 0 {WIDTH} {height}" {role}>{head}{"".join(parts)}</svg>'
