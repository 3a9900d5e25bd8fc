"""The paper's figures (published.yaml) beside our results, if model, benchmark and budget match."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any, cast

import yaml

from pipelines.report.runs import Chapter, Point, Result

Figures = Sequence[float | None]
Entry = Mapping[str, Any]
"""An entry of published.yaml: the figures of one model in one of the paper's tables."""


@cache
def published() -> dict[str, list[dict[str, Any]]]:
    """Entries by kind: accuracy (Tables 1 to 4), ablations (5 and 6) and efficiency (7)."""
    text = files(__package__).joinpath("published.yaml").read_text()
    return cast("dict[str, list[dict[str, Any]]]", yaml.safe_load(text))


def entries_of(model: str, kind: str) -> list[dict[str, Any]]:
    """Entries of a model, e.g. `llava-hf/llava-1.5-7b-hf`."""
    return [each for each in published()[kind] if re.search(each["model"], model, re.IGNORECASE)]


def with_published(chapter: Chapter) -> Chapter:
    """The chapter with the paper's figures for the budgets that were run among its results."""
    points = {run.point for study in chapter.studies for run in study.runs if not run.point.options}
    studies = [
        replace(
            study,
            results=sorted(
                [*study.results, *_figures(chapter.model, study.benchmark.name, points)],
                key=lambda result: (result.point.sort_key, result.paper_table),
            ),
        )
        for study in chapter.studies
    ]
    return replace(chapter, studies=tuple(studies))


def _figures(model: str, benchmark: str, points: set[Point]) -> Iterator[Result]:
    for entry in entries_of(model, "accuracy"):
        if benchmark in entry["benchmarks"]:
            for budget in {point.budget for point in points}:
                yield from _accuracy(entry, entry["benchmarks"].index(benchmark), budget)
    for entry in entries_of(model, "ablations"):
        if benchmark in entry["benchmarks"]:
            for value, figures in entry["values"].items():
                point = Point("apet", entry["budget"], ((entry["option"], value),))
                metrics = {"headline": figures[entry["benchmarks"].index(benchmark)]}
                yield Result(point, metrics, entry["table"])
    for entry in entries_of(model, "efficiency") if benchmark == "pope" else ():
        base_s, base_ms, _ = entry["methods"]["vanilla"]
        for method, (total_s, prefill_ms, tflops) in entry["methods"].items():
            point = Point(method, "" if method == "vanilla" else entry["budget"])
            if point in points:
                metrics = {
                    "device_s": total_s,
                    "speed_up": base_s / total_s,
                    "prefill_ms_p50": prefill_ms,
                    "prefill_speed_up": base_ms / prefill_ms,
                    "prefill_tflops": tflops,
                }
                yield Result(point, metrics, entry["table"])


def _accuracy(entry: Entry, index: int, budget: str) -> Iterator[Result]:
    for method, figures in methods_of(entry, budget).items():
        if (figure := figures[index]) is not None:
            kept = figure / entry["vanilla"][index]
            metrics = {"headline": figure, "accuracy_retention": kept}
            if "scores" in entry:
                score, base = (entry["scores"][name][index] for name in (method, "vanilla"))
                metrics |= {"judge_accuracy": figure, "judge_accuracy_retention": kept}
                metrics |= {"judge_score": score, "judge_score_retention": score / base}
            yield Result(Point(method, budget), metrics, entry["table"])


def methods_of(entry: Entry, budget: str) -> dict[str, Figures]:
    """Figures of each method for a budget in tokens or percent; empty if the paper has none."""
    if not budget:
        return {"vanilla": entry["vanilla"]}
    names = [budget]
    if entry["tokens"] and budget.endswith("%"):
        names.append(f"{float(budget[:-1]) / 100 * entry['tokens']:.0f}")
    return next((entry["budgets"][name] for name in names if name in entry["budgets"]), {})
