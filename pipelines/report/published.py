"""The figures that the paper prints, Tables 1 to 7: what a report puts beside its own, marked as published.

Accuracy is as printed: a percentage, or MME's points. Averages are not here: they follow from the rest, as means of the
ratios to the unmodified model, and a test holds them against the printed ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

Row = tuple[float | None, ...]  # one figure a benchmark; None where the paper has none


class Accuracy(NamedTuple):
    """One of Tables 1 to 4."""

    table: int
    model: str  # a pattern of our name for it
    tokens: int | None  # of the unmodified model; None where it depends on the image
    benchmarks: tuple[str, ...]
    vanilla: Row
    budgets: Mapping[str, Mapping[str, Row]]  # by budget and method
    scores: Mapping[str, Row] = {}  # 0 to 5, of open answers, by method


class Ablation(NamedTuple):
    """A half of Table 5 or 6: ApET with one option changed."""

    table: int
    model: str
    budget: str
    option: str
    benchmarks: tuple[str, ...]
    values: Mapping[str, Row]


class Cost(NamedTuple):
    total_s: float
    prefill_ms: float
    tflops: float


class Efficiency(NamedTuple):
    """A half of Table 7, on one A100 with POPE."""

    table: int
    model: str
    budget: str
    methods: Mapping[str, Cost]


LLAVA, NEXT = r"llava-(v?1\.5)-7b", r"llava-(v1\.6|next)(-vicuna)?-7b"
QWEN, VIDEO = r"qwen2\.?5-vl-7b", r"video-llava-7b"

ACCURACY = (
    Accuracy(
        table=1,
        model=LLAVA,
        tokens=576,
        benchmarks=(
            "gqa",
            "mmbench",
            "mmbench_cn",
            "mme",
            "pope",
            "scienceqa",
            "vqav2",
            "textvqa",
            "vizwiz",
        ),
        vanilla=(61.9, 64.7, 58.1, 1862, 85.9, 69.5, 78.5, 58.2, 50.0),
        budgets={
            "192": {
                "tome": (54.3, 60.5, None, 1563, 72.4, 65.2, 68.0, 52.1, None),
                "fastv": (52.7, 61.2, 57.0, 1612, 64.8, 67.3, 67.1, 52.5, 50.8),
                "sparsevlm": (57.6, 62.5, 53.7, 1721, 83.6, 69.1, 75.6, 56.1, 50.5),
                "pdrop": (57.3, 63.3, 56.8, 1797, 82.3, 69.0, 75.1, 56.5, 51.1),
                "visionzip": (59.3, 63.0, None, 1783, 85.3, 68.9, 77.4, 57.3, None),
                "apet": (60.2, 63.4, 57.9, 1808, 86.3, 68.5, 76.2, 54.4, 50.2),
            },
            "128": {
                "tome": (52.4, 53.3, None, 1343, 62.8, 59.6, 63.0, 49.1, None),
                "fastv": (49.6, 56.1, 56.4, 1490, 59.6, 60.2, 61.8, 50.6, 51.3),
                "sparsevlm": (56.0, 60.0, 51.1, 1696, 80.5, 67.1, 73.8, 54.9, 51.4),
                "pdrop": (57.1, 61.6, 56.6, 1761, 82.3, 68.4, 72.9, 56.6, 51.0),
                "visionzip": (57.6, 62.0, None, 1763, 83.2, 68.9, 75.6, 56.8, None),
                "apet": (58.9, 62.3, 56.4, 1801, 86.1, 68.7, 75.1, 53.9, 50.7),
            },
            "64": {
                "tome": (48.6, 43.7, None, 1138, 52.5, 50.0, 57.1, 45.3, None),
                "fastv": (46.1, 48.0, 52.7, 1256, 48.0, 51.1, 55.0, 47.8, 50.8),
                "sparsevlm": (52.7, 56.2, 46.1, 1505, 75.1, 62.2, 68.2, 51.8, 50.1),
                "pdrop": (47.5, 58.8, 50.5, 1561, 55.9, 69.2, 69.2, 50.6, 50.7),
                "visionzip": (55.1, 60.1, None, 1690, 77.0, 69.0, 72.4, 55.5, None),
                "apet": (56.9, 61.2, 54.4, 1714, 84.4, 68.9, 72.5, 53.0, 51.9),
            },
        },
    ),
    Accuracy(
        table=2,
        model=NEXT,
        tokens=2880,
        benchmarks=("gqa", "mmbench", "mmbench_cn", "mme", "pope", "vqav2", "textvqa"),
        vanilla=(64.2, 67.4, 60.6, 1851, 86.5, 81.8, 61.3),
        budgets={
            "640": {
                "sparsevlm": (60.3, 65.8, 58.5, 1773, 84.2, 77.1, 57.8),
                "pdrop": (60.6, 65.5, 58.5, 1781, 83.7, 78.3, 57.4),
                "visionzip": (61.3, 66.2, None, 1787, 85.9, 79.1, 60.2),
                "apet": (63.0, 65.3, 59.3, 1815, 87.2, 79.2, 57.9),
            },
            "320": {
                "sparsevlm": (59.3, 64.2, 55.9, 1690, 83.3, 75.7, 58.8),
                "pdrop": (56.4, 63.4, 56.2, 1663, 77.6, 73.5, 54.4),
                "visionzip": (59.3, 63.1, None, 1702, 82.1, 76.2, 58.9),
                "apet": (61.0, 63.5, 56.6, 1783, 85.6, 75.8, 54.4),
            },
            "160": {
                "sparsevlm": (51.2, 52.1, 48.6, 1542, 72.7, 66.3, 46.4),
                "pdrop": (54.9, 61.8, 54.9, 1513, 72.3, 70.2, 52.7),
                "visionzip": (55.5, 60.1, None, 1628, 74.8, 71.4, 56.2),
                "apet": (58.4, 60.8, 52.3, 1680, 82.6, 72.7, 53.8),
            },
        },
    ),
    Accuracy(
        table=3,
        model=QWEN,
        tokens=None,
        benchmarks=("gqa", "pope", "scienceqa", "mme", "mmbench"),
        vanilla=(60.5, 86.2, 76.7, 2327, 83.3),
        budgets={
            "20%": {
                "sparsevlm": (54.7, 73.6, 71.6, 2063, 76.0),
                "pdrop": (55.1, 78.4, 70.9, 2117, 77.3),
                "visionzip": (56.8, 82.4, 76.3, 2134, 79.3),
                "apet": (58.8, 85.1, 74.9, 2181, 78.6),
            },
            "10%": {
                "sparsevlm": (51.3, 71.9, 68.2, 1849, 71.7),
                "pdrop": (52.0, 74.8, 69.7, 1886, 73.6),
                "visionzip": (52.4, 78.9, 74.1, 2003, 75.6),
                "apet": (56.1, 82.4, 74.1, 2055, 72.6),
            },
        },
    ),
    Accuracy(
        table=4,
        model=VIDEO,
        tokens=2048,
        benchmarks=("tgif", "msvd", "msrvtt"),
        vanilla=(46.9, 69.8, 57.1),
        budgets={
            "256": {
                "fastv": (44.2, 60.3, 40.6),
                "sparsevlm": (45.9, 68.6, 32.9),
                "pdrop": (40.3, 61.5, 41.8),
                "visionzip": (44.3, 65.2, 54.5),
                "apet": (47.6, 70.4, 56.9),
            },
        },
        scores={
            "vanilla": (3.34, 3.91, 3.49),
            "fastv": (3.29, 3.72, 3.18),
            "sparsevlm": (3.32, 3.90, 3.02),
            "pdrop": (3.21, 3.74, 3.19),
            "visionzip": (3.29, 3.83, 3.43),
            "apet": (3.37, 3.94, 3.47),
        },
    ),
)

_ABLATED = ("gqa", "pope", "mme")
ABLATIONS = (
    Ablation(
        *(5, LLAVA, "64", "sampling", _ABLATED),
        {"random": (55.7, 82.5, 1634), "dpc": (57.1, 84.8, 1691), "fps": (56.9, 84.4, 1714)},
    ),
    Ablation(
        *(5, QWEN, "10%", "sampling", _ABLATED),
        {"random": (55.6, 80.8, 1944), "dpc": (56.5, 82.5, 1998), "fps": (56.1, 82.4, 2055)},
    ),
    Ablation(
        *(6, LLAVA, "64", "basis", _ABLATED),
        {
            "6": (56.0, 83.5, 1676),
            "8": (56.7, 84.1, 1705),
            "10": (56.9, 84.4, 1714),
            "12": (56.8, 83.9, 1699),
            "14": (56.4, 83.7, 1663),
        },
    ),
    Ablation(
        *(6, QWEN, "10%", "basis", _ABLATED),
        {
            "6": (55.9, 81.7, 2014),
            "8": (56.2, 82.0, 2047),
            "10": (56.1, 82.4, 2055),
            "12": (56.4, 82.3, 2044),
            "14": (55.7, 81.5, 1972),
        },
    ),
)

EFFICIENCY = (
    Efficiency(
        *(7, LLAVA, "64"),
        {
            "vanilla": Cost(14 * 60 + 47, 86.9, 8.82),
            "sparsevlm": Cost(13 * 60 + 32, 77.8, 2.31),
            "pdrop": Cost(11 * 60 + 15, 69.2, 2.16),
            "visionzip": Cost(10 * 60 + 36, 64.4, 2.03),
            "apet": Cost(10 * 60 + 8, 62.8, 2.09),
        },
    ),
    Efficiency(
        *(7, QWEN, "10%"),
        {
            "vanilla": Cost(34 * 60 + 14, 158.5, 14.52),
            "sparsevlm": Cost(33 * 60 + 36, 136.8, 5.97),
            "pdrop": Cost(32 * 60 + 20, 125.5, 5.85),
            "visionzip": Cost(30 * 60 + 6, 119.3, 5.68),
            "apet": Cost(26 * 60 + 18, 104.7, 5.70),
        },
    ),
)


def is_of(model: str, pattern: str) -> bool:
    """Is this the paper's model, as `llava-hf/llava-1.5-7b-hf` is?"""
    found = re.search(pattern, model, re.IGNORECASE)
    return found is not None and (pattern == VIDEO or "video" not in model.lower())


def accuracy(model: str) -> Accuracy | None:
    """The paper's table of a model's accuracy."""
    return next((table for table in ACCURACY if is_of(model, table.model)), None)


def budget_of(table: Accuracy, budget: str) -> str | None:
    """The paper's name of a budget, in tokens or as a share; None if it has no figures for it."""
    names = {budget}
    if table.tokens and budget.endswith("%"):
        names.add(f"{float(budget[:-1]) / 100 * table.tokens:.0f}")
    return next((name for name in table.budgets if name in names), None)
