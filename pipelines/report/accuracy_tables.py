"""Tables 1 to 4 of the paper: accuracy, its ratio to vanilla's, hard rows, and a judge's scores."""

from collections.abc import Iterator, Sequence

from pipelines.metrics import intervals
from pipelines.metrics.intervals import Interval
from pipelines.metrics.significance import POINT
from pipelines.report import published, queries
from pipelines.report.measurements import RunResult, StudyResults
from pipelines.report.runs import Chapter
from pipelines.report.table import (
    Cell,
    Number,
    Row,
    Table,
    interval_number,
    make_table,
    method_row,
    number,
    percent,
)


def accuracy_table(chapter: Chapter, studies: Sequence[StudyResults]) -> Table | None:
    """One row per method and budget, one column per benchmark, and the average ratio to vanilla."""
    rows: list[Row] = []
    for runs in chapter.runs_by_method():
        results = [study.result_of(runs) for study in studies]
        cells = [study.accuracy(result) for study, result in zip(studies, results, strict=True)]
        counts = [
            number(result.metrics[name], 0) if result else None
            for result in results
            for name in ("rows_total", "rows_error")
        ]
        cells.append(_average(results))
        rows.append(method_row(runs[0].label, runs[0].budget, cells, csv_cells=counts))
        rows += published.accuracy_row(chapter, runs[0])
    rows += published.other_accuracy_rows(chapter)
    columns = [study.study.label for study in studies]
    compared = [study.study for study in studies if study.vanilla and len(study.results) > 1]
    sql = [queries.query("accuracy", study.study) for study in studies]
    return make_table(
        "accuracy",
        chapter,
        ("Method", *columns, "Average"),
        rows,
        "\n".join([*sql, queries.average(compared)] if compared else sql),
        more_notes="".join(_scoring_notes(chapter))
        + coverage_note(studies, any(row.published for row in rows))
        + published.source_note(chapter),
        csv_columns=[f"{column} {count}" for column in columns for count in ("rows", "errors")],
    )


def coverage_note(studies: Sequence[StudyResults], with_published: bool = False) -> str:
    """Warnings about runs of different rows, failed rows and runs limited to some questions."""
    notes = [""]
    for study in studies:
        name, runs = study.study.label, study.study.runs
        rows = [int(result.metrics["rows_total"]) for result in study.results]
        errors = max(int(result.metrics["rows_error"]) for result in study.results)
        if min(rows) < max(rows):
            notes.append(
                f"{name}: the runs have {_span(rows)} rows each; comparisons with vanilla use the"
                " rows that both have."
            )
        if errors:
            notes.append(
                f"{name}: rows that ended in an error, up to {errors:,} per run, are excluded from"
                " all numbers."
            )
        if limits := [run.limit for run in runs if run.limit]:
            limited = (
                "all runs" if len(limits) == len(runs) else f"{len(limits)} of {len(runs)} runs"
            )
            full = "; published figures cover all questions" if with_published else ""
            notes.append(f"{name}: {limited} cover only the first {_span(limits)} questions{full}.")
    return " ".join(notes)


def _span(counts: Sequence[int]) -> str:
    return f"{min(counts):,}" + (f" to {max(counts):,}" if min(counts) < max(counts) else "")


def _scoring_notes(chapter: Chapter) -> Iterator[str]:
    """Headlines other than plain accuracy, and scoring rules that a reader has to know."""
    for study in chapter.studies:
        bench = study.benchmark
        if bench.headline != "accuracy":
            limit = f", at most {bench.headline_max:,.0f} points" if bench.headline_max > 1 else ""
            yield f" {study.label} shows the official score '{bench.headline}'{limit}."
        if bench.scoring_note:
            yield f" {study.label}: {bench.scoring_note}."


def retention_table(chapter: Chapter, studies: Sequence[StudyResults]) -> Table | None:
    """Each run's accuracy relative to vanilla, its significance, and the test's power."""
    rows = []
    for study, result in _all_results(studies):
        metrics = result.metrics
        if "accuracy_retention" not in metrics:
            continue
        needed, compared = metrics.get("rows_needed"), metrics["rows_compared"]
        visible = None if needed is None else 100 * POINT * (needed / compared) ** 0.5
        cells = (
            *_benchmark_cell(study, studies),
            percent(metrics, "accuracy_retention"),
            number(metrics["rows_lost"], 0),
            number(metrics["rows_gained"], 0),
            number(metrics["p_value"], 4),
            number(result.holm_p_value, 4),
            number(compared, 0),
            number(visible),
            number(needed, 0),
        )
        rows.append(method_row(result.run.label, result.run.budget, cells))
    columns = (
        "Kept %",
        "Lost rows",
        "Gained rows",
        "p",
        "p (Holm)",
        "Rows",
        "Visible points",
        "Rows for one point",
    )
    return make_table(
        "retention",
        chapter,
        (*_first_columns(studies), *columns),
        rows,
        "\n".join(queries.query("retention", study.study) for study in studies),
        point=100 * POINT,
    )


def hard_table(chapter: Chapter, studies: Sequence[StudyResults]) -> Table | None:
    """Accuracy on VTC-Bench's hard rows beside accuracy on all rows."""
    rows = []
    for study in studies:
        for budget, splits in study.hard.items():
            for result in study.results:
                if (split := splits.get(result.run.point)) is not None:
                    cells = (
                        *_benchmark_cell(study, studies),
                        interval_number(split.accuracy),
                        number(split.rows, 0),
                        study.accuracy(result),
                    )
                    rows.append(method_row(result.run.label, budget, cells))
    return make_table(
        "hard",
        chapter,
        (*_first_columns(studies), "On hard rows", "Hard rows", "On all rows"),
        rows,
        "\n".join(queries.query("hard", study.study) for study in studies if study.hard),
    )


def judge_table(chapter: Chapter, studies: Sequence[StudyResults]) -> Table | None:
    """Table 4 of the paper: accuracy and score that a judge gives to open answers."""
    judges = sorted({result.judge.judge for _, result in _all_results(studies) if result.judge})
    judged = [study for study in studies if any(result.judge for result in study.results)]
    if not judged:
        return None
    rows: list[Row] = []
    for runs in chapter.runs_by_method():
        cells: list[Cell] = []
        kept = []
        for study in judged:
            result = study.result_of(runs)
            if result and (scores := result.judge):
                cells += [interval_number(scores.accuracy), interval_number(scores.score, 1, 2)]
                kept.append((scores.accuracy_kept, scores.score_kept))
            else:
                cells += [None, None]
        averages = [_mean(column) for column in zip(*kept, strict=True)] or [None, None]
        if runs[0].method == "vanilla":
            averages = [Number(100.0), Number(100.0)]
        rows.append(method_row(runs[0].label, runs[0].budget, [*cells, *averages]))
        rows += published.judge_row(chapter, runs[0], [study.study for study in judged])
    columns = [f"{study.study.label} {name}" for study in judged for name in ("Acc", "Score")]
    return make_table(
        "judged",
        chapter,
        ("Method", *columns, "Average Acc", "Average Score"),
        rows,
        more_notes=coverage_note(judged, any(row.published for row in rows))
        + published.source_note(chapter),
        judges=", ".join(judges),
    )


def _all_results(studies: Sequence[StudyResults]) -> Iterator[tuple[StudyResults, RunResult]]:
    for study in studies:
        for result in study.results:
            yield study, result


def _first_columns(studies: Sequence[StudyResults]) -> tuple[str, ...]:
    return ("Method", "Benchmark") if len(studies) > 1 else ("Method",)


def _benchmark_cell(study: StudyResults, studies: Sequence[StudyResults]) -> tuple[str, ...]:
    return (study.study.label,) if len(studies) > 1 else ()


def _average(results: Sequence[RunResult | None]) -> Number | None:
    """Mean ratio to vanilla over the benchmarks that have one."""
    measured = [result for result in results if result is not None]
    if all(result.run.method == "vanilla" for result in measured):
        return Number(100.0)
    names = [f"accuracy_retention{end}" for end in ("", "_ci_low", "_ci_high")]
    compared = [result.metrics for result in measured if names[0] in result.metrics]
    return _mean([Interval(*(metrics[name] for name in names)) for metrics in compared])


def _mean(ratios: Sequence[Interval | None]) -> Number | None:
    present = [ratio for ratio in ratios if ratio is not None]
    return interval_number(intervals.average(present)) if present else None
