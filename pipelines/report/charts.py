"""Figure 1 of the paper as SVG: accuracy by budget, and prefill time under two attention kernels.

matplotlib is imported when the first chart is drawn: it takes longer to start than a report.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipelines.report.runs import Chapter, Study

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
    "axes.titleweight": "bold",
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


def accuracy_charts(chapter: Chapter, suffix: str) -> list[Chart]:
    """A chart per benchmark. A method has the same colour, marker and dashes in all of them."""
    points = sorted(run.point.sort_key for study in chapter.studies for run in study.runs)
    labels = dict.fromkeys(point.label for *_, point in points if point.budget)
    looks = zip(cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False)  # 280 different ones
    styles = {
        label: dict(zip(("color", "marker", "linestyle"), look, strict=True))
        for label, look in zip(labels, looks, strict=False)
    }
    charts = (_accuracy_chart(study, styles, suffix) for study in chapter.studies)
    return [chart for chart in charts if chart]


def _accuracy_chart(study: Study, styles: dict[str, dict[str, Any]], suffix: str) -> Chart | None:
    """Accuracy by the average number of visual tokens per layer, with intervals.

    Vanilla is a horizontal line in a band. None if no run has a budget.
    """
    lines: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    vanilla: tuple[float, ...] | None = None
    for point, metrics, _ in study.measured:
        value, tokens = metrics.get("headline"), metrics.get("visual_tokens_kept")
        ends: list[Any] = [metrics.get(f"headline_ci_{end}", value) for end in ("low", "high")]
        if value is None:
            continue
        if point.method == "vanilla":
            vanilla = (value, *ends)
        elif point.budget and tokens:
            lines[point.label].append((tokens, value, *ends))
    if not lines:
        return None
    with _figure(5.2 + 0.27 * math.ceil(len(lines) / 4)) as (figure, axes):
        if vanilla:
            axes.axhspan(*vanilla[1:], color="#777777", alpha=0.15, linewidth=0)
            axes.axhline(vanilla[0], color="#444444", linewidth=1.5, label="Vanilla")
        budgets = sorted({tokens for points in lines.values() for tokens, *_ in points})
        span = math.log(budgets[-1] / budgets[0]) or 1.0
        for index, (label, points) in enumerate(lines.items()):
            # Methods with the same budget stand side by side, so that no interval hides another.
            shift = math.exp(0.009 * span * (index - (len(lines) - 1) / 2))
            tokens, values, lows, highs = np.array(sorted(points)).T
            errors = [values - lows, highs - values]
            style: Any = {"elinewidth": 1, "markersize": 6, **styles[label]}
            axes.errorbar(tokens * shift, values, errors, label=label, **style)
        axes.set_xscale("log")
        axes.margins(x=0.08)
        ticks = budgets[:1]  # labels need a distance from each other
        for tokens in budgets:
            if math.log(tokens / ticks[-1]) > 0.07 * span:
                ticks.append(tokens)
        axes.set_xticks(ticks, [f"{count:,.0f}" for count in ticks])
        axes.set_xticks([], minor=True)
        unit = "%" if study.digits else "points"
        axes.set(xlabel="Visual tokens per layer (average)", ylabel=f"Accuracy ({unit})")
        axes.set_title(study.label)
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=4)
        description = f"Accuracy by budget on {study.label}; the table below has the numbers"
        return Chart(f"accuracy {study.label}{suffix}", description, _svg(figure))


def prefill_charts(chapters: Sequence[Chapter]) -> Iterator[Chart]:
    """Prefill times of studies that were run with flash attention and with another kernel."""
    kernels: dict[str, dict[str, Study]] = defaultdict(dict)  # by what else they have in common
    for chapter in chapters:
        for study in chapter.studies:
            common = (chapter.model, study.label, {**chapter.settings, "attn": None})
            by_kernel = kernels[json.dumps(common, sort_keys=True, default=str)]
            by_kernel[str(chapter.settings.get("attn"))] = study
    for key, by_kernel in kernels.items():
        model, label, _ = json.loads(key)
        ordered = sorted(by_kernel, key=lambda name: (name not in FLASH_KERNELS, name))
        names = {kernel: FLASH_KERNELS.get(kernel, kernel) for kernel in ordered}
        if 0 < len(FLASH_KERNELS.keys() & by_kernel.keys()) < len(by_kernel):
            title = f"{model}, {label}: prefill with {' and '.join(names.values())}"
            yield _prefill_chart({names[kernel]: by_kernel[kernel] for kernel in names}, title)


def _prefill_chart(studies: dict[str, Study], title: str) -> Chart:
    # Runs with options would make the chart long and say little about speed.
    times = {
        kernel: {
            f"{point.label} {point.budget}".strip(): metrics.get("prefill_ms_p50")
            for point, metrics, _ in study.measured
            if not point.options
        }
        for kernel, study in studies.items()
    }
    names = list(dict.fromkeys(name for by_name in times.values() for name in by_name))
    height = 0.8 / len(times)
    with _figure(max(5.9, 1.6 + 0.31 * len(names) * len(times))) as (figure, axes):
        for index, (kernel, by_name) in enumerate(times.items()):
            values = [by_name.get(name) for name in names]
            bars = axes.barh(
                np.arange(len(names)) + height * index,
                [value or 0.0 for value in values],
                height=0.9 * height,
                color="white" if index else COLOURS[index],
                edgecolor=COLOURS[index],
                linewidth=1.5,
                label=kernel,
            )
            labels = ["not run" if value is None else f"{value:,.1f} ms" for value in values]
            axes.bar_label(bars, labels, padding=4)
        axes.set_yticks(np.arange(len(names)) + (0.8 - height) / 2, names)
        axes.invert_yaxis()
        axes.margins(x=0.14)
        axes.set_xlabel("Prefill time (median, ms)")
        axes.set_title(next(iter(studies.values())).label)
        figure.legend(loc="outside lower center", ncols=len(times))
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
