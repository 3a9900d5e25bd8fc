"""Finds the runs of a report and groups those that are comparable.

Runs of a *study* differ only in method and budget: they have the same model, benchmark and
settings, and are compared row by row. Studies of a *chapter* have the same model and settings:
they are columns of one table.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines.benchmarks import BENCHMARKS, benchmark
from pipelines.benchmarks.base import Benchmark
from pipelines.report.labels import benchmark_label
from pipelines.results import answers
from pipelines.results.run_record import RECORD_FILE, RunRecord, run_folders
from pipelines.results.storage import Folder, run_concurrently
from pipelines.text import redacted

METHOD_KEYS = ("method", "options")
"""Keys of a run's identity in which runs of a study differ."""
BENCHMARK_KEYS = (
    *METHOD_KEYS,
    *("benchmark", "benchmark_version", "split", "manifest", "question", "max_new_tokens"),
)
"""Keys of a run's identity in which runs of a chapter differ."""
BUDGET_KEYS = ("budget", "schedule")
LEFT_OUT_FILE = "left_out.json"
"""File of a sweep's output folder: runs that it skipped because the model does not support them."""
DIGEST_CHARACTERS = 10
"""Length of a digest, or of another long value, in a title."""


@dataclass(frozen=True)
class ReportRun:
    """A run of a job: its folder of answers and its record."""

    folder: Folder
    record: RunRecord

    @property
    def id(self) -> str:
        """Value of `run_id` in its rows."""
        return self.record.name

    @property
    def point(self) -> str:
        """Name of method, budget and options: `apet-64`."""
        return str(self.record.point["name"])

    @property
    def method(self) -> str:
        return str(self.record.point["method"])

    @property
    def options(self) -> dict[str, Any]:
        """Options of the method without its budget."""
        excluded = ("name", "method", *BUDGET_KEYS)
        return {key: value for key, value in self.record.point.items() if key not in excluded}

    @property
    def budget(self) -> str:
        """Tokens, a share or a schedule, as requested. Empty for the unmodified model."""
        point = self.record.point
        return next((str(point[key]) for key in BUDGET_KEYS if key in point), "")

    @property
    def label(self) -> str:
        """The method with its options. Tables group rows by budget, so it is not repeated."""
        options = (f"{key}={_short(value)}" for key, value in sorted(self.options.items()))
        return " ".join([self.method, *options])

    @property
    def limit(self) -> int | None:
        """Number of questions, if the job was limited to some of them."""
        limit = self.record.config.get("limit")
        return limit if isinstance(limit, int) and self.record.rows["wanted"] >= limit else None

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """Order in tables: vanilla, then by falling budget. ApET comes last, as in the paper."""
        amount = re.match(r"[\d.]+", self.budget)
        falling = (0, -float(amount[0])) if amount else (1, 0.0)
        is_apet = self.method.startswith("apet"), self.method == "apet"
        return (self.method != "vanilla", *falling, self.budget, *is_apet, self.label, self.id)


@dataclass(frozen=True)
class Study:
    """Runs that are compared row by row."""

    title: str
    """Unique in a report; names the study in queries."""
    column: str
    """Name within its chapter: the benchmark, and settings if several studies have the same one."""
    benchmark: Benchmark
    runs: tuple[ReportRun, ...]

    @property
    def label(self) -> str:
        return benchmark_label(self.column)

    @property
    def seed(self) -> int:
        return int(self.runs[0].record.config.get("seed") or 0)

    @property
    def vanilla(self) -> ReportRun | None:
        return next((run for run in self.runs if run.method == "vanilla"), None)


@dataclass(frozen=True)
class Chapter:
    """Studies of one model with the same settings."""

    title: str
    model: str
    settings: Mapping[str, Any]
    studies: tuple[Study, ...]  # in the order of the paper's columns

    def runs_by_method(self) -> list[list[ReportRun]]:
        """Rows of a table over benchmarks: runs of one method, options and budget."""
        runs = sorted((run for study in self.studies for run in study.runs), key=_sort_key)
        rows: dict[tuple[str, str], list[ReportRun]] = defaultdict(list)
        for run in runs:
            rows[run.label, run.budget].append(run)
        return list(rows.values())


def collect_runs(uris: Sequence[str]) -> tuple[list[Chapter], list[str]]:
    """Chapters of all runs in these folders, and notes about runs that are missing or incomplete.

    uris: folders of runs, or folders that contain some
    """
    runs: dict[str, ReportRun] = {}
    for uri in uris:
        loaded = run_concurrently(_load, run_folders(Folder.of(uri).uri))
        if not loaded:
            raise ValueError(
                f"no runs in {redacted(uri)}: expected the folder that a job was given as --output,"
                " or folders of runs in it, each with a record.json and answers in Parquet files"
            )
        for run in loaded:
            if not run.record.point:
                continue  # the record of a job; its runs lie beside it
            other = runs.setdefault(run.id, run)
            if other.folder.uri != run.folder.uri:
                both = f"{redacted(other.folder.uri)} and {redacted(run.folder.uri)}"
                raise ValueError(f"{both} are copies of the same run, {run.id}: name only one")
    notes = _skipped_runs(uris, runs)
    answered = []
    for run in sorted(runs.values(), key=lambda run: run.id):
        state, rows = run.record.state, run.record.rows
        if not answers.answer_files(run.folder):
            notes.append(f"{run.id} is not in this report: it has no answers yet.")
            continue
        if state != "finished":
            progress = f"{rows.get('done', 0):,} of {rows.get('wanted', 0):,} rows"
            notes.append(f"{run.id} is {state}, not finished ({progress}): numbers will change.")
        answered.append(run)
    if not answered:
        raise ValueError(
            f"no answers in any run of {', '.join(map(redacted, uris))}: run the job again"
        )
    return _chapters(answered), notes


def _load(folder: Folder) -> ReportRun:
    try:
        return ReportRun(folder, RunRecord.load(folder))
    except (ValueError, TypeError) as error:
        raise ValueError(f"cannot read record.json in {redacted(folder.uri)}: {error}") from error


def _skipped_runs(uris: Sequence[str], runs: Mapping[str, ReportRun]) -> list[str]:
    """Notes about runs of the same models and benchmarks that a sweep skipped."""
    prefixes = tuple({run.id.rpartition(f"{run.point}-")[0] for run in runs.values()})
    outputs = {Folder.of(uri).uri for uri in uris}
    outputs |= {run.folder.parent.uri for run in runs.values()}
    notes = []
    for folder in map(Folder.of, sorted(outputs)):
        try:
            skipped = sorted(dict(json.loads(folder.read(LEFT_OUT_FILE))["runs"]).items())
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError):
            uri = redacted(folder.child(LEFT_OUT_FILE).uri)
            notes.append(f"Cannot read {uri}: runs that the sweep skipped are not listed here.")
            continue
        for name, reason in skipped:
            # A later version of the program may have done a run that an earlier one skipped.
            if name.startswith(prefixes) and not folder.child(name).exists(RECORD_FILE):
                notes.append(f"{name} was skipped by its sweep: {redacted(str(reason))}")
    return notes


def _chapters(runs: Sequence[ReportRun]) -> list[Chapter]:
    settings = partial(_identity, excluded=BENCHMARK_KEYS)
    groups = _grouped(runs, lambda run: (_model(run), settings(run)))
    titles = _unique_titles([(_model(first), settings(first)) for first, *_ in groups])
    chapters = [
        Chapter(title, _model(group[0]), settings(group[0]), _studies(title, group))
        for title, group in zip(titles, groups, strict=True)
    ]
    return sorted(chapters, key=lambda chapter: chapter.title)


def _studies(chapter: str, runs: Sequence[ReportRun]) -> tuple[Study, ...]:
    comparable = partial(_identity, excluded=METHOD_KEYS)
    groups = _grouped(runs, comparable)
    benchmarks = [str(first.record.identity["benchmark"]) for first, *_ in groups]
    settings = [comparable(first) for first, *_ in groups]
    columns = _unique_titles(list(zip(benchmarks, settings, strict=True)))
    studies = [
        Study(f"{chapter}, {column}", column, benchmark(name), tuple(sorted(group, key=_sort_key)))
        for column, name, group in zip(columns, benchmarks, groups, strict=True)
    ]
    order = BENCHMARKS.index
    return tuple(sorted(studies, key=lambda study: (order(study.benchmark.name), study.column)))


def _sort_key(run: ReportRun) -> tuple[Any, ...]:
    return run.sort_key


def _identity(run: ReportRun, excluded: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in run.record.identity.items() if key not in excluded}


def _model(run: ReportRun) -> str:
    return run.record.tags.get("model", "model")


def _grouped(runs: Sequence[ReportRun], key: Callable[[ReportRun], Any]) -> list[list[ReportRun]]:
    groups: dict[str, list[ReportRun]] = defaultdict(list)
    for run in runs:
        groups[json.dumps(key(run), sort_keys=True, default=str)].append(run)
    return [groups[name] for name in sorted(groups)]


def _unique_titles(groups: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Names of groups. Groups with the same name also get the settings in which they differ."""
    titles = []
    for name, settings in groups:
        others = [other for other_name, other in groups if other_name == name and other != settings]
        different = sorted(
            key for key in settings if any(other.get(key) != settings[key] for other in others)
        )
        titles.append(", ".join([name, *(f"{key} {_short(settings[key])}" for key in different)]))
    return titles


def _short(value: Any) -> str:
    if value is None:
        return "as the model has it"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).removeprefix("sha256:")
    return text if len(text) <= 3 * DIGEST_CHARACTERS else text[:DIGEST_CHARACTERS]
