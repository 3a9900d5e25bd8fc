"""Figure 1 of the paper as SVG: accuracy by budget, and prefill time under two attention kernels.

matplotlib is imported when the first chart is drawn: it takes longer to start than a report.
"""

from __future__ import annotations

import io
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipelines.report.labels import method_label
from pipelines.report.measurements import StudyResults
from pipelines.report.runs import Chapter
from pipelines.report.table import Number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a6a00", "#000000")
"""Palette of Okabe and Ito, which the colour-blind can tell apart. Its yellow is darker here."""
MARKERS = ("o", "s", "^", "D", "v", "X", "P")
DASHES = ("-", (0, (6, 3)), (0, (2, 2)), (0, (8, 3, 2, 3)), (0, (10, 4)))
FLASH_KERNELS = {f"flash_attention_{n}": f"FlashAttention {n}" for n in (2, 3)}
SETTINGS: Any = {
    "font.size": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",  # ids are the same in every run
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
}
WIDTH = 9.0
"""Width in inches. SVG has 72 units per inch, so a font of 13 points is 13 units high."""


class Chart(NamedTuple):
    title: str  # also names the file
    description: str  # for readers who do not see it
    svg: bytes


Style = dict[str, Any]


def method_styles(chapter: Chapter) -> dict[str, Style]:
    """Colour, marker and dash of each method. The first 280 methods all look different."""
    labels = dict.fromkeys(runs[0].label for runs in chapter.runs_by_method() if runs[0].budget)
    styles = zip(cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False)
    return {
        label: dict(zip(("color", "marker", "linestyle"), style, strict=True))
        for label, style in zip(labels, styles, strict=False)
    }


def accuracy_chart(study: StudyResults, styles: dict[str, Style], title: str) -> Chart | None:
    """Accuracy by the average number of visual tokens per layer, with intervals.

    Vanilla is a horizontal line in a band. None if no run has a budget.
    """
    lines: dict[str, list[tuple[float, Number]]] = defaultdict(list)
    for result in study.results:
        tokens, value = result.metrics.get("visual_tokens_kept"), study.accuracy(result)
        if result.run.budget and tokens and value:
            lines[result.run.label].append((tokens, value))
    if not lines:
        return None
    with _figure(5.2 + 0.27 * math.ceil(len(lines) / 4)) as (figure, axes):
        vanilla = study.accuracy(study.vanilla)
        if vanilla:
            low, high = _ends(vanilla)
            axes.axhspan(low, high, color="#777777", alpha=0.15, linewidth=0)
            axes.axhline(vanilla.value, color="#444444", linewidth=1.5, label="Vanilla")
        all_tokens = sorted({tokens for points in lines.values() for tokens, _ in points})
        span = math.log(all_tokens[-1] / all_tokens[0]) or 1.0
        for index, (label, points) in enumerate(lines.items()):
            # Methods with the same budget stand side by side, so that no interval hides another.
            shift = math.exp(0.009 * span * (index - (len(lines) - 1) / 2))
            columns = ((tokens, value.value, *_ends(value)) for tokens, value in sorted(points))
            tokens, values, lows, highs = np.array(list(columns)).T
            axes.errorbar(
                tokens * shift,
                values,
                [values - lows, highs - values],
                label=method_label(label),
                elinewidth=1,
                markersize=6,
                **styles[label],
            )
        axes.set_xscale("log")
        axes.margins(x=0.08)
        ticks = _readable_ticks(all_tokens, span)
        axes.set_xticks(ticks, [f"{count:,.0f}" for count in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("Visual tokens per layer (average)")
        unit = "points" if study.study.benchmark.headline_max > 1 else "%"
        axes.set_ylabel(f"Accuracy ({unit})")
        axes.set_title(study.study.label, fontweight="bold")
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=4)
        description = f"Accuracy by budget on {study.study.label}; the table below has the numbers"
        return Chart(title, description, _svg(figure))


def _readable_ticks(values: Sequence[float], span: float) -> list[float]:
    """Values that are far enough from each other for their labels on a logarithmic axis."""
    ticks: list[float] = []
    for value in values:
        if not ticks or math.log(value / ticks[-1]) > 0.07 * span:
            ticks.append(value)
    return ticks


def _ends(number: Number) -> tuple[float, float]:
    low, high = number.low, number.high
    return (number.value if low is None else low, number.value if high is None else high)


def prefill_charts(
    chapters: Sequence[Chapter], studies: Sequence[Sequence[StudyResults]]
) -> Iterator[Chart]:
    """Prefill times of studies that were run with flash attention and with another kernel."""
    pairs = list(zip(chapters, studies, strict=True))
    for chapter, flash_studies in pairs:
        kernel = FLASH_KERNELS.get(str(chapter.settings.get("attn")))
        for other, other_studies in pairs if kernel else ():
            settings, other_settings = ({**c.settings, "attn": None} for c in (chapter, other))
            is_flash = other.settings.get("attn") in FLASH_KERNELS
            if is_flash or settings != other_settings or other.model != chapter.model:
                continue
            for flash in flash_studies:
                for plain in other_studies:
                    if flash.study.column == plain.study.column:
                        kernels = str(kernel), str(other.settings.get("attn"))
                        title = f"prefill with {' and '.join(kernels)}"
                        title = f"{chapter.model}, {flash.study.label}: {title}"
                        yield _prefill_chart((flash, plain), kernels, title)


def _prefill_chart(studies: Sequence[StudyResults], kernels: Sequence[str], title: str) -> Chart:
    # Runs with options would make the chart long and say little about speed.
    times = [
        {
            result.run.point: result.metrics.get("prefill_ms_p50")
            for result in study.results
            if not result.run.options
        }
        for study in studies
    ]
    points = list(dict.fromkeys([*times[1], *times[0]]))
    with _figure(max(5.9, 1.6 + 0.62 * len(points))) as (figure, axes):
        for index, (kernel, by_point) in enumerate(zip(kernels, times, strict=True)):
            values = [by_point.get(point) for point in points]
            bars = axes.barh(
                [place + 0.4 * index for place in range(len(points))],
                [value or 0.0 for value in values],
                height=0.36,
                color=COLOURS[index] if index == 0 else "white",
                edgecolor=COLOURS[index],
                linewidth=1.5,
                label=kernel,
            )
            labels = ["not run" if value is None else f"{value:,.1f} ms" for value in values]
            axes.bar_label(bars, labels, padding=4)
        axes.set_yticks([place + 0.2 for place in range(len(points))], points)
        axes.invert_yaxis()
        axes.margins(x=0.14)
        axes.set_xlabel("Prefill time (median, ms)")
        axes.set_title(studies[0].study.label, fontweight="bold")
        figure.legend(loc="outside lower center", ncols=2)
        return Chart(title, title, _svg(figure))


@contextmanager
def _figure(height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure, and the settings while it is drawn."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        # Browsers have glyphs that matplotlib's own font lacks, e.g. of Chinese model names.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
