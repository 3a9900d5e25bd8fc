"""The paper's figures as rows of our tables, where the model, the benchmark and the budget are the paper's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.report import labels, published
from pipelines.report.published import Accuracy
from pipelines.report.runs import Chapter, ReportRun, Study
from pipelines.report.table import Cell, Number, Row, faster


def accuracy(chapter: Chapter, run: ReportRun) -> Iterator[Row]:
    """The row of the same method and budget."""
    table = published.accuracy(chapter.model)
    if table and not run.options and (figures := _figures(table, run)):
        yield _row(table, run.method, figures, run.budget, chapter)


def others(chapter: Chapter) -> Iterator[Row]:
    """Rows of the budgets that there are here, and of methods that there are not."""
    table = published.accuracy(chapter.model)
    runs = [
        run for study in chapter.studies for run in study.runs if run.budget and not run.options
    ]
    for budget in sorted({run.budget for run in runs}) if table else ():
        assert table is not None
        mine = {run.method for run in runs if run.budget == budget}
        for method, figures in table.budgets.get(
            published.budget_of(table, budget) or "", {}
        ).items():
            if method not in mine:
                yield _row(table, method, figures, budget, chapter)


def scores(chapter: Chapter, run: ReportRun, studies: Sequence[Study]) -> Iterator[Row]:
    """Table 4 with its scores: accuracy and score of each benchmark, and the average of both."""
    table = published.accuracy(chapter.model)
    figures = _figures(table, run) if table and not run.options else None
    if table is None or figures is None or run.method not in table.scores:
        return
    cells: list[Cell] = []
    kept: list[tuple[float, float]] = []
    for study in studies:
        if study.benchmark.name not in table.benchmarks:
            cells += [None, None]
            continue
        at = table.benchmarks.index(study.benchmark.name)
        ours = figures[at] or 0.0, table.scores[run.method][at] or 0.0
        base = table.vanilla[at] or 1.0, table.scores["vanilla"][at] or 1.0
        cells += [Number(ours[0]), Number(ours[1], digits=2)]
        kept.append((ours[0] / base[0], ours[1] / base[1]))
    if kept:
        averages = [Number(100 * sum(pair[place] for pair in kept) / len(kept)) for place in (0, 1)]
        yield Row(
            (labels.method_label(run.method), *cells, *averages),
            labels.budget_label(run.budget),
            published=True,
        )


def ablation(chapter: Chapter, option: str, budget: str, studies: Sequence[Study]) -> Iterator[Row]:
    """Half of Table 5 or 6."""
    for half in published.ABLATIONS:
        if (
            half.option == option
            and half.budget == budget
            and published.is_of(chapter.model, half.model)
        ):
            for value, figures in half.values.items():
                by_name = dict(zip(half.benchmarks, figures, strict=True))
                cells = [
                    _number(by_name.get(study.benchmark.name), study.benchmark.name)
                    for study in studies
                ]
                yield Row((value, *cells), labels.budget_label(budget), published=True)


def cost(chapter: Chapter, study: Study, run: ReportRun) -> Iterator[Row]:
    """The row of Table 7, which is about POPE."""
    for half in published.EFFICIENCY:
        found = half.methods.get(run.method)
        fits = not run.options and run.budget in ("", half.budget)
        if (
            study.benchmark.name == "pope"
            and found
            and fits
            and published.is_of(chapter.model, half.model)
        ):
            base = half.methods["vanilla"]
            total = Number(found.total_s, digits=0), faster(base.total_s, found.total_s)
            prefill = Number(found.prefill_ms), faster(base.prefill_ms, found.prefill_ms)
            cells = (None, None, *total, *prefill, Number(found.tflops, digits=2), None, None, None)
            yield Row(
                (labels.method_label(run.method), *cells),
                labels.budget_label(run.budget),
                published=True,
            )


def source(chapter: Chapter) -> str:
    table = published.accuracy(chapter.model)
    if table is None:
        return ""
    return f" Published figures are the paper's Table {table.table}, averaged over the benchmarks shown here."


def _figures(table: Accuracy, run: ReportRun) -> published.Row | None:
    if run.method == "vanilla":
        return table.vanilla
    return table.budgets.get(published.budget_of(table, run.budget) or "", {}).get(run.method)


def _row(
    table: Accuracy, method: str, figures: published.Row, budget: str, chapter: Chapter
) -> Row:
    by_name = dict(zip(table.benchmarks, zip(figures, table.vanilla, strict=True), strict=True))
    cells: list[Cell] = []
    ratios = []
    for study in chapter.studies:
        figure, base = by_name.get(study.benchmark.name, (None, None))
        cells.append(_number(figure, study.benchmark.name))
        if figure is not None and base:
            ratios.append(figure / base)
    average = Number(100 * sum(ratios) / len(ratios)) if ratios else None
    return Row(
        (labels.method_label(method), *cells, average), labels.budget_label(budget), published=True
    )


def _number(figure: float | None, benchmark: str) -> Cell:
    return None if figure is None else Number(figure, digits=0 if benchmark == "mme" else 1)
