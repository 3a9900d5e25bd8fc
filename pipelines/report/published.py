"""The paper's figures (published.yaml) as rows of our tables, if model, benchmark and budget match.

The averages of these rows are computed from the benchmarks that the report has, so that they stand
beside averages of the same benchmarks.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from pipelines.report.runs import Chapter, ReportRun, Study
from pipelines.report.table import Cell, Number, Row, method_row, ratio

Figures = Sequence[float | None]


class AccuracyTable(NamedTuple):
    """One of Tables 1 to 4. Figures are in the order of `benchmarks`."""

    table: int
    model: str  # regular expression
    tokens: int | None  # visual tokens of the unmodified model
    benchmarks: list[str]
    vanilla: Figures
    budgets: dict[str, dict[str, Figures]]  # by budget and method
    scores: dict[str, Figures] | None = None  # by method

    def methods(self, budget: str) -> dict[str, Figures]:
        """Figures of each method for a budget in tokens or percent; empty if the paper has none."""
        if not budget:
            return {"vanilla": self.vanilla}
        names = [budget]
        if self.tokens and budget.endswith("%"):
            names.append(f"{float(budget[:-1]) / 100 * self.tokens:.0f}")
        return next((self.budgets[name] for name in names if name in self.budgets), {})

    def figures(self, run: ReportRun) -> Figures | None:
        """Figures of the run's method, which the paper only has with the method's own options."""
        return None if run.options else self.methods(run.budget).get(run.method)


class Ablation(NamedTuple):
    """A half of Table 5 or 6: ApET with one option changed."""

    table: int
    model: str
    budget: str
    option: str
    benchmarks: list[str]
    values: dict[str, Figures]  # by value of the option


class Efficiency(NamedTuple):
    """A half of Table 7: total seconds, prefill ms and TFLOPs of each method."""

    table: int
    model: str
    budget: str
    methods: dict[str, tuple[float, float, float]]


class Published(NamedTuple):
    accuracy: list[AccuracyTable]
    ablations: list[Ablation]
    efficiency: list[Efficiency]


@cache
def published() -> Published:
    data: dict[str, Any] = yaml.safe_load(files(__package__).joinpath("published.yaml").read_text())
    return Published(
        [AccuracyTable(**entry) for entry in data["accuracy"]],
        [Ablation(**entry) for entry in data["ablations"]],
        [Efficiency(**entry) for entry in data["efficiency"]],
    )


def accuracy_of(model: str) -> AccuracyTable | None:
    """The paper's table of this model, e.g. `llava-hf/llava-1.5-7b-hf`."""
    return next((table for table in published().accuracy if _is_model(model, table.model)), None)


def _is_model(model: str, pattern: str) -> bool:
    return re.search(pattern, model, re.IGNORECASE) is not None


def accuracy_row(chapter: Chapter, run: ReportRun) -> Iterator[Row]:
    """The row with the method and budget of a run."""
    table = accuracy_of(chapter.model)
    if table and (figures := table.figures(run)):
        yield _accuracy_row(table, run.method, figures, run.budget, chapter)


def other_accuracy_rows(chapter: Chapter) -> Iterator[Row]:
    """Rows of methods that were not run, for the budgets that were."""
    table = accuracy_of(chapter.model)
    if table is None:
        return
    methods: dict[str, set[str]] = {}
    for run in (run for study in chapter.studies for run in study.runs):
        if run.budget and not run.options:
            methods.setdefault(run.budget, set()).add(run.method)
    for budget in sorted(methods):
        for method, figures in table.methods(budget).items():
            if method not in methods[budget]:
                yield _accuracy_row(table, method, figures, budget, chapter)


def judge_row(chapter: Chapter, run: ReportRun, studies: Sequence[Study]) -> Iterator[Row]:
    """The row of Table 4: accuracy and score of each benchmark, and the averages of both."""
    table = accuracy_of(chapter.model)
    figures = table.figures(run) if table else None
    if table is None or figures is None or not table.scores or run.method not in table.scores:
        return
    cells: list[Cell] = []
    ratios: list[tuple[float, float]] = []
    for study in studies:
        if study.benchmark.name not in table.benchmarks:
            cells += [None, None]
            continue
        index = table.benchmarks.index(study.benchmark.name)
        accuracy, score = figures[index] or 0.0, table.scores[run.method][index] or 0.0
        base = table.vanilla[index] or 1.0, table.scores["vanilla"][index] or 1.0
        cells += [Number(accuracy), Number(score, digits=2)]
        ratios.append((accuracy / base[0], score / base[1]))
    if ratios:
        averages = [_mean_percent(column) for column in zip(*ratios, strict=True)]
        yield method_row(run.method, run.budget, [*cells, *averages], published=True)


def ablation_rows(
    chapter: Chapter, option: str, budget: str, studies: Sequence[Study]
) -> Iterator[Row]:
    """Rows of Table 5 (sampling) or 6 (basis)."""
    for half in published().ablations:
        is_same = (half.option, half.budget) == (option, budget)
        if is_same and _is_model(chapter.model, half.model):
            for value, figures in half.values.items():
                cells = _cells(studies, dict(zip(half.benchmarks, figures, strict=True)))
                yield method_row(value, budget, cells, published=True)


def efficiency_row(chapter: Chapter, study: Study, run: ReportRun) -> Iterator[Row]:
    """The row of Table 7, which was measured with POPE."""
    if run.options or study.benchmark.name != "pope":
        return
    for half in published().efficiency:
        is_same = run.budget in ("", half.budget) and run.method in half.methods
        if is_same and _is_model(chapter.model, half.model):
            total_s, prefill_ms, tflops = half.methods[run.method]
            base_s, base_ms, _ = half.methods["vanilla"]
            total = Number(total_s, digits=0), ratio(base_s, total_s)
            prefill = Number(prefill_ms), ratio(base_ms, prefill_ms)
            cells = (None, None, *total, *prefill, Number(tflops, digits=2), None, None, None)
            yield method_row(run.method, run.budget, cells, published=True)


def source_note(chapter: Chapter) -> str:
    table = accuracy_of(chapter.model)
    if table is None:
        return ""
    return (
        f" Published figures are from Table {table.table} of the paper; their averages cover the"
        " benchmarks shown here."
    )


def _accuracy_row(
    table: AccuracyTable, method: str, figures: Figures, budget: str, chapter: Chapter
) -> Row:
    by_name = dict(zip(table.benchmarks, figures, strict=True))
    vanilla = dict(zip(table.benchmarks, table.vanilla, strict=True))
    ratios = []
    for study in chapter.studies:
        figure, base = (row.get(study.benchmark.name) for row in (by_name, vanilla))
        if figure is not None and base:
            ratios.append(figure / base)
    average = _mean_percent(ratios) if ratios else None
    cells = [*_cells(chapter.studies, by_name), average]
    return method_row(method, budget, cells, published=True)


def _cells(studies: Sequence[Study], figures: dict[str, float | None]) -> list[Cell]:
    cells: list[Cell] = []
    for study in studies:
        name = study.benchmark.name
        figure = figures.get(name)
        digits = 0 if name == "mme" else 1  # MME counts points
        cells.append(None if figure is None else Number(figure, digits=digits))
    return cells


def _mean_percent(ratios: Sequence[float]) -> Number:
    return Number(100 * sum(ratios) / len(ratios))
