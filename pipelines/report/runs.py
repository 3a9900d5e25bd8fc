"""Which runs a report is about, and which of them can be laid side by side.

Runs of a *study* differ in their point alone: they have the same model, benchmark and settings, and are compared row by
row. Studies of a *chapter* have the same model and settings: they are columns of one table.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.benchmarks import BENCHMARKS, benchmark
from pipelines.benchmarks.base import Benchmark
from pipelines.results import answers
from pipelines.results.run_record import NAME, RunRecord, run_folders
from pipelines.results.storage import Folder, run_concurrently
from pipelines.text import redacted

METHOD_KEYS = ("method", "options")  # what of a run's identity its point says
BENCHMARK_KEYS = (
    "benchmark",
    "benchmark_version",
    "split",
    "manifest",
    "question",
    "max_new_tokens",
)
BUDGET_KEYS = ("budget", "schedule")
LEFT_OUT_FILE = (
    "left_out.json"  # of a sweep, in its output folder: the points that a model cannot do, and why
)
DIGEST_CHARACTERS = 10  # characters of a digest, or of another long value, in a title


@dataclass(frozen=True)
class ReportRun:
    """The answers of one point, and what its record says of them."""

    folder: Folder
    record: RunRecord

    @property
    def id(self) -> str:
        """As the rows have it in `run_id`."""
        return self.record.name

    @property
    def point(self) -> str:
        return str(self.record.point["name"])

    @property
    def method(self) -> str:
        return str(self.record.point["method"])

    @property
    def options(self) -> dict[str, Any]:
        """Those of the method, its budget apart."""
        named = ("name", "method", *BUDGET_KEYS)
        return {key: value for key, value in self.record.point.items() if key not in named}

    @property
    def budget(self) -> str:
        """As it was asked for: tokens, a share, or a schedule; empty for the unmodified model."""
        return next(
            (str(self.record.point[key]) for key in BUDGET_KEYS if key in self.record.point), ""
        )

    @property
    def label(self) -> str:
        """The method with its options, without the budget that it is grouped by."""
        return " ".join(
            [
                self.method,
                *(f"{key}={_shown(value)}" for key, value in sorted(self.options.items())),
            ]
        )

    @property
    def limit(self) -> int | None:
        """How many questions were asked, where there are more of them."""
        limit = self.record.config.get("limit")
        return limit if isinstance(limit, int) and self.record.rows["wanted"] >= limit else None

    @property
    def unfinished(self) -> bool:
        return self.record.state != "finished"

    @property
    def place(self) -> tuple[Any, ...]:
        """In tables: the unmodified model, then from the largest budget to the smallest; ApET last, as the paper."""
        found = re.match(r"[\d.]+", self.budget)
        amount = (0, -float(found[0])) if found else (1, 0.0)
        apet = self.method.startswith("apet"), self.method == "apet"
        return (self.method != "vanilla", *amount, self.budget, *apet, self.label, self.id)


@dataclass(frozen=True)
class Study:
    """Runs that are compared row by row."""

    title: str  # unique in a report
    column: str  # its name in its chapter
    benchmark: Benchmark
    runs: tuple[ReportRun, ...]

    @property
    def seed(self) -> int:
        return int(self.runs[0].record.config.get("seed") or 0)

    @property
    def vanilla(self) -> ReportRun | None:
        return next((run for run in self.runs if run.method == "vanilla"), None)


@dataclass(frozen=True)
class Chapter:
    """One model with one choice of settings, on one benchmark or more."""

    title: str
    model: str
    settings: Mapping[str, Any]
    studies: tuple[Study, ...]  # in the order of the paper's columns

    def lines(self) -> list[list[ReportRun]]:
        """The rows of a table over benchmarks: the runs of one method with its options and budget."""
        found: dict[tuple[str, str], list[ReportRun]] = {}
        for run in sorted(
            (run for study in self.studies for run in study.runs), key=lambda run: run.place
        ):
            found.setdefault((run.label, run.budget), []).append(run)
        return list(found.values())


def collect_runs(uris: Sequence[str]) -> tuple[list[Chapter], list[str]]:
    """The chapters of these runs, or of all runs in these folders; and what had to be left out."""
    notes: list[str] = []
    runs: dict[str, ReportRun] = {}
    for uri in uris:
        found = run_concurrently(_run, run_folders(Folder.of(uri).uri))
        if not found:
            raise ValueError(
                f"{redacted(uri)} holds no run; give the folder that --output named, or folders of runs in it,"
                " each with its record.json and answers in Parquet"
            )
        for run in found:
            if not run.record.point:
                continue  # the record of a job, whose runs lie beside it
            twin = runs.setdefault(run.id, run)
            if twin.folder.uri != run.folder.uri:
                both = f"{redacted(twin.folder.uri)} and {redacted(run.folder.uri)}"
                raise ValueError(f"{both} are the same run, {run.id}; give one of them")
    notes += _left_out(uris, runs)
    whole = []
    for run in sorted(runs.values(), key=lambda run: run.id):
        if not answers.answer_files(run.folder):
            notes.append(f"{run.id} has no answers yet and is left out.")
            continue
        if run.unfinished:
            rows = run.record.rows
            said = f"{rows.get('done', 0):,} of {rows.get('wanted', 0):,} rows"
            notes.append(
                f"{run.id} is {run.record.state}, not finished ({said}): its numbers will change."
            )
        whole.append(run)
    if not whole:
        raise ValueError(
            f"none of the runs in {', '.join(map(redacted, uris))} has an answer; run the job again"
        )
    return _chapters(whole), notes


def _left_out(uris: Sequence[str], runs: Mapping[str, ReportRun]) -> list[str]:
    """Points of these models and benchmarks that a sweep could not do, as the output folder remembers them."""
    near = {run.id.rpartition(f"{run.point}-")[0] for run in runs.values()}
    notes = []
    for uri in sorted(
        {Folder.of(uri).uri for uri in uris} | {run.folder.parent.uri for run in runs.values()}
    ):
        folder = Folder.of(uri)
        try:
            found = sorted(dict(json.loads(folder.read(LEFT_OUT_FILE))["runs"]).items())
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError):
            notes.append(
                f"{redacted(folder.child(LEFT_OUT_FILE).uri)} cannot be read: points may be missing here unsaid."
            )
            continue
        for name, why in found:
            if any(map(name.startswith, near)) and not folder.child(name).exists(
                NAME
            ):  # another version may have done it
                notes.append(f"{name} was left out of its sweep: {redacted(str(why))}")
    return notes


def _run(folder: Folder) -> ReportRun:
    try:
        return ReportRun(folder, RunRecord.load(folder))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the record.json in {redacted(folder.uri)} cannot be read: {error}"
        ) from error


def _chapters(runs: Sequence[ReportRun]) -> list[Chapter]:
    sets = _grouped(runs, lambda run: (_model(run), _settings(run)))
    titles = _titles([(_model(first), _settings(first)) for first, *_ in sets])
    chapters = []
    for title, mine in zip(titles, sets, strict=True):
        groups = _grouped(mine, _comparable)
        names = [str(first.record.identity["benchmark"]) for first, *_ in groups]
        columns = _titles(
            [(name, _comparable(first)) for name, (first, *_) in zip(names, groups, strict=True)]
        )
        studies = [
            Study(
                f"{title}, {column}",
                column,
                benchmark(name),
                tuple(sorted(each, key=lambda run: run.place)),
            )
            for column, name, each in zip(columns, names, groups, strict=True)
        ]
        studies.sort(key=lambda study: (BENCHMARKS.index(study.benchmark.name), study.column))
        chapters.append(Chapter(title, _model(mine[0]), _settings(mine[0]), tuple(studies)))
    return sorted(chapters, key=lambda chapter: chapter.title)


def _settings(run: ReportRun) -> dict[str, Any]:
    return _without(run.record.identity, (*METHOD_KEYS, *BENCHMARK_KEYS))


def _comparable(run: ReportRun) -> dict[str, Any]:
    return _without(run.record.identity, METHOD_KEYS)


def _model(run: ReportRun) -> str:
    return run.record.tags.get("model", "model")


def _without(identity: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key not in names}


def _grouped(runs: Sequence[ReportRun], key: Any) -> list[list[ReportRun]]:
    groups: dict[str, list[ReportRun]] = defaultdict(list)
    for run in runs:
        groups[json.dumps(key(run), sort_keys=True, default=str)].append(run)
    return [groups[name] for name in sorted(groups)]


def _titles(known: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Names; those that several share are told apart by what else is different of them."""
    titles = []
    for name, what in known:
        others = [other for other_name, other in known if other_name == name and other != what]
        keys = sorted(key for key in what if any(other.get(key) != what[key] for other in others))
        titles.append(", ".join([name, *(f"{key} {_shown(what[key])}" for key in keys)]))
    return titles


def _shown(value: Any) -> str:
    if value is None:
        return "as the model has it"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).removeprefix("sha256:")
    return text if len(text) <= 3 * DIGEST_CHARACTERS else text[:DIGEST_CHARACTERS]
