"""Tables 1 to 4, and what stands behind their averages: accuracy, what is kept of vanilla's, and on hard rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.metrics import intervals
from pipelines.metrics.intervals import Interval
from pipelines.metrics.significance import POINT
from pipelines.report import labels, published_rows, queries
from pipelines.report.measurements import RunResult, StudyResults
from pipelines.report.runs import Chapter, ReportRun
from pipelines.report.table import Cell, Number, Row, Table, number, percent, ranged, together

POWER = ("Visible points", "Rows for one point")


def accuracy_table(chapter: Chapter, findings: Sequence[StudyResults]) -> Table:
    """Rows methods, grouped by budget, columns benchmarks, and the average of the ratios to vanilla."""
    rows: list[Row] = []
    for runs in chapter.lines():
        results = [each.of(runs) for each in findings]
        cells = [cell(each, runs) for each in findings]
        counts = [count for result in results for count in _counts(result)]
        line = (labels.method_label(runs[0].label), *cells, _average(results))
        rows.append(Row(line, labels.budget_label(runs[0].budget), aside=tuple(counts)))
        rows += published_rows.accuracy(chapter, runs[0])
    rows += published_rows.others(chapter)
    columns = [labels.benchmark_label(each.study) for each in findings]
    return Table(
        "accuracy",
        f"Accuracy: {chapter.title}",
        ("Method", *columns, "Average"),
        together(rows),
        f"{labels.INTERVALS} The average is the mean over benchmarks of the accuracy divided by vanilla's on the same"
        " rows, in percent, as in the paper; its interval takes the benchmarks as independent."
        + " ".join(["", *_rules(chapter)])
        + subsets(findings, any(row.published for row in rows))
        + published_rows.source(chapter),
        "\n".join([*(queries.accuracy(each.study) for each in findings), *_averages(findings)]),
        tuple(f"{column} {what}" for column in columns for what in ("rows", "errors")),
    )


def _averages(findings: Sequence[StudyResults]) -> Iterator[str]:
    compared = [each.study for each in findings if each.vanilla and len(each.results) > 1]
    if compared:
        yield queries.average(compared)


def subsets(findings: Sequence[StudyResults], published: bool = False) -> str:
    """What to know of runs side by side that are not of the same rows, or of some of the questions alone."""
    said = [""]
    for each in findings:
        name, runs = labels.benchmark_label(each.study), each.study.runs
        rows, errors = (
            [int(result.metrics[f"rows_{what}"]) for result in each.results]
            for what in ("total", "error")
        )
        if min(rows) < max(rows):
            said.append(
                f"{name}: runs of {_span(rows)} rows stand side by side; what is kept of vanilla's is of the rows that"
                " both have."
            )
        if any(errors):
            said.append(
                f"{name}: rows that ended in an error, up to {max(errors):,} of a run, are in none of its numbers."
            )
        if limits := [run.limit for run in runs if run.limit]:
            which = (
                "all runs are"
                if len(limits) == len(runs)
                else f"{len(limits)} of {len(runs)} runs are"
            )
            all_of_them = ", published figures of all" * published
            said.append(f"{name}: {which} of the first {_span(limits)} questions{all_of_them}.")
    return " ".join(said)


def _span(counts: Sequence[int]) -> str:
    return f"{min(counts):,}" + (f" to {max(counts):,}" if min(counts) < max(counts) else "")


def _counts(result: RunResult | None) -> tuple[Cell, Cell]:
    if result is None:
        return None, None
    return number(result.metrics["rows_total"], 0), number(result.metrics["rows_error"], 0)


def cell(each: StudyResults, runs: Sequence[ReportRun]) -> Cell:
    """The headline of one of these runs."""
    result = each.of(runs)
    return percent(result.metrics, "accuracy", each.study.benchmark.most) if result else None


def retention_table(chapter: Chapter, findings: Sequence[StudyResults]) -> Table | None:
    """What each run keeps of vanilla's accuracy, whether that could be chance, and how many rows would tell."""
    rows = []
    for each in findings:
        for result in each.results:
            metrics = result.metrics
            if "accuracy_retention" not in metrics:
                continue
            needed = metrics.get("rows_needed")
            seen = (
                None if needed is None else 100 * POINT * (needed / metrics["rows_compared"]) ** 0.5
            )
            cells = (
                percent(metrics, "accuracy_retention"),
                number(metrics["rows_lost"], 0),
                number(metrics["rows_gained"], 0),
                number(metrics["p_value"], 4),
                number(result.corrected, 4),
                number(metrics["rows_compared"], 0),
                number(seen),
                number(needed, 0),
            )
            rows.append(
                Row(
                    (*_which(result, each, findings), *cells),
                    labels.budget_label(result.run.budget),
                )
            )
    if not rows:
        return None
    return Table(
        "retention",
        f"Accuracy kept: {chapter.title}",
        (
            *_whose(findings),
            *("Kept %", "Lost rows", "Gained rows", "p", "p (Holm)", "Rows", *POWER),
        ),
        together(rows),
        f"{labels.INTERVALS} All against vanilla on the same rows: lost rows are worth less than vanilla's, gained ones"
        " more. p is of no difference: McNemar's exact test where each medium has one question, else swaps of media;"
        f" Holm corrects it for all runs of a benchmark here. {POWER[0]} is the difference, in points of accuracy, that"
        f" this many rows would find with a power of 80 % (two-sided, 5 %, one comparison); {POWER[1].lower()}, how"
        " many rows like these it would take to find a single one. The query brings what is kept and the rows; p and"
        f" {POWER[1].lower()} are no sums of rows: python jobs/score.py RUN --against VANILLA prints them. {POWER[0]}"
        f" are {100 * POINT:g} times the root of {POWER[1].lower()} by rows.",
        "\n".join(queries.retention(each.study) for each in findings),
    )


def hard_table(chapter: Chapter, findings: Sequence[StudyResults]) -> Table | None:
    """VTC-Bench's hard split beside the whole."""
    rows = []
    for each in findings:
        for budget, found in each.hard.items():
            for result in each.results:
                if (mine := found.get(result.run.point)) is not None:
                    whole = percent(result.metrics, "accuracy", each.study.benchmark.most)
                    cells = (ranged(mine.accuracy), number(mine.rows, 0), whole)
                    rows.append(
                        Row((*_which(result, each, findings), *cells), labels.budget_label(budget))
                    )
    if not rows:
        return None
    return Table(
        "hard",
        f"Hard rows: {chapter.title}",
        (*_whose(findings), "On hard rows", "Hard rows", "On all rows"),
        together(rows),
        f"{labels.INTERVALS} Hard rows are those that a model with a down-sampled picture of the same budget gets wrong"
        " (VTC-Bench): where a coarse picture is enough, methods hardly differ. Accuracy there is the mean of rows.",
        "\n".join(queries.hard(each.study) for each in findings if each.hard),
    )


def judge_table(chapter: Chapter, findings: Sequence[StudyResults]) -> Table | None:
    """Table 4 as the paper has it: what a judge makes of open answers, accuracy and score."""
    asked = [each for each in findings if any(result.judged for result in each.results)]
    judges = sorted(
        {result.judged.judge for each in asked for result in each.results if result.judged}
    )
    rows: list[Row] = []
    for runs in chapter.lines() if asked else ():
        cells: list[Cell] = []
        kept = []
        for verdict in [
            result.judged if result else None for result in (each.of(runs) for each in asked)
        ]:
            cells += (
                [ranged(verdict.accuracy), ranged(verdict.score, 1, 2)] if verdict else [None, None]
            )
            kept += [(verdict.accuracy_kept, verdict.score_kept)] if verdict else []
        averages = [_mean(part) for part in zip(*kept, strict=True)] or [None, None]
        if runs[0].method == "vanilla":
            averages = [Number(100.0), Number(100.0)]
        rows.append(
            Row(
                (labels.method_label(runs[0].label), *cells, *averages),
                labels.budget_label(runs[0].budget),
            )
        )
        rows += published_rows.scores(chapter, runs[0], [each.study for each in asked])
    if not rows:
        return None
    columns = [
        f"{labels.benchmark_label(each.study)} {what}"
        for each in asked
        for what in ("Acc", "Score")
    ]
    return Table(
        "judged",
        f"Judged answers: {chapter.title}",
        ("Method", *columns, "Average Acc", "Average Score"),
        together(rows),
        f"{labels.INTERVALS} Judged by {', '.join(judges)}; numbers of different judges cannot be compared. Averages are"
        " of the ratios to vanilla, in percent, on the rows that both have a verdict on. There is no query: the numbers"
        " are means of the columns correct and score of verdicts-*.arrow beside the answers, not of answers; python"
        " jobs/judge.py RUN, with the judge's flags, prints them again from its cache."
        + subsets(asked, any(row.published for row in rows))
        + published_rows.source(chapter),
    )


def _whose(findings: Sequence[StudyResults]) -> tuple[str, ...]:
    return ("Method", "Benchmark") if len(findings) > 1 else ("Method",)


def _which(
    result: RunResult, each: StudyResults, findings: Sequence[StudyResults]
) -> tuple[str, ...]:
    method = labels.method_label(result.run.label)
    return (method, labels.benchmark_label(each.study)) if len(findings) > 1 else (method,)


def _average(results: Sequence[RunResult | None]) -> Cell:
    """The mean of what is kept, over the benchmarks that there are."""
    there = [result for result in results if result is not None]
    if all(result.run.method == "vanilla" for result in there):
        return Number(100.0)
    ends = [f"accuracy_retention{end}" for end in ("", "_ci_low", "_ci_high")]
    kept = [
        Interval(*(result.metrics[end] for end in ends))
        for result in there
        if ends[0] in result.metrics
    ]
    return _mean(kept)


def _mean(kept: Sequence[Interval | None]) -> Cell:
    known = [each for each in kept if each is not None]
    return ranged(intervals.average(known)) if known else None


def _rules(chapter: Chapter) -> Iterator[str]:
    """What the headlines are that are no plain accuracy, and what a reader has to know of a benchmark."""
    for study in chapter.studies:
        bench = study.benchmark
        if bench.headline != "accuracy":
            unit = f" of {bench.most:,.0f} points" if bench.most > 1 else ""
            yield f"{labels.benchmark_label(study)} is {bench.headline}{unit}."
        if bench.rule:
            yield f"{labels.benchmark_label(study)}: {bench.rule}."
