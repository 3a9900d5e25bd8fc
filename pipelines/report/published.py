"""The paper's figures (published.yaml) beside our results, if the runs match what the paper ran.

Model, benchmark, split, inputs and budget must match; the tables' notes say what does not.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any, cast

import yaml

from pipelines.benchmarks import DEFAULT_SPLITS
from pipelines.report.runs import Chapter, Point, Result, Study

Figures = Sequence[float | None]
Entry = Mapping[str, Any]
"""An entry of published.yaml: the figures of one model in one of the paper's tables."""


DEFAULTS: dict[str, Any] = {
    "image_fit": "model",
    "conversation": "model",
    "generation": "model",
    "min_pixels": None,
    "max_pixels": None,
    "temperature": 0,
}
"""Settings of the paper's runs where published.yaml has no others, and of runs without the key."""


@cache
def published() -> dict[str, list[dict[str, Any]]]:
    """Entries by kind: accuracy (Tables 1 to 4), ablations (5 and 6) and efficiency (7)."""
    text = files(__package__).joinpath("published.yaml").read_text()
    return cast("dict[str, list[dict[str, Any]]]", yaml.safe_load(text))


def entries_of(model: str, kind: str) -> list[dict[str, Any]]:
    """Entries of a model, e.g. `llava-hf/llava-1.5-7b-hf`."""
    entries = published()[kind]
    return [entry for entry in entries if re.search(entry["model"], model, re.IGNORECASE)]


def with_published(chapter: Chapter) -> Chapter:
    """The chapter with the paper's figures for the budgets that were run among its results."""
    points = {run.point for study in chapter.studies for run in study.runs if not run.point.options}
    studies = [_with_figures(chapter.model, study, points) for study in chapter.studies]
    return replace(chapter, studies=tuple(studies))


def _with_figures(model: str, study: Study, points: set[Point]) -> Study:
    entry = next(iter(entries_of(model, "accuracy")), None)
    if entry is None or study.benchmark.name not in entry["benchmarks"]:
        return study
    if different := differences(entry, model, study):
        note = f"no published figures, since the paper's runs differ: {', '.join(different)}."
        return replace(study, paper_note=note)
    figures = _figures(model, study.benchmark.name, points)
    results = sorted(
        [*study.results, *figures], key=lambda result: (result.point.sort_key, result.paper_table)
    )
    other = sorted({point.budget for point in points if not methods_of(entry, point.budget)})
    note = f"the paper has no figures for the budget {', '.join(other)}." if other else ""
    return replace(study, results=results, paper_note=note)


def differences(entry: Entry, model: str, study: Study) -> list[str]:
    """Differences between a study's runs and the paper's, apart from methods and budgets."""
    identity = study.runs[0].record.identity
    split = DEFAULT_SPLITS.get(study.benchmark.name, "test")
    different = []
    if "conversion" in entry and re.search(entry["conversion"]["models"], model, re.IGNORECASE):
        different.append(f"model ({entry['conversion']['lacks']})")
    for key, paper in {**DEFAULTS, **entry["settings"], "split": split}.items():
        ours = identity.get(key, DEFAULTS.get(key))
        if ours != paper:
            name = key.replace("_", " ")
            different.append(f"{name} {_value(paper)} there, {_value(ours)} here")
    return different


def _value(setting: Any) -> str:
    return "not set" if setting is None else str(setting)


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
    if entry["tokens"] and re.fullmatch(r"[\d.]+%", budget):
        names.append(f"{float(budget[:-1]) / 100 * entry['tokens']:.0f}")
    return next((entry["budgets"][name] for name in names if name in entry["budgets"]), {})
