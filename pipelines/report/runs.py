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
from typing import Any, NamedTuple

from pipelines.benchmarks import BENCHMARKS, benchmark
from pipelines.benchmarks.base import Benchmark
from pipelines.report.templates import benchmark_label, method_label
from pipelines.results import answers
from pipelines.results.run_record import RECORD_FILE, RunRecord, run_folders
from pipelines.results.storage import Folder, run_concurrently
from pipelines.text import redacted

METHOD_KEYS = ("method", "options", "draws")
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


class Point(NamedTuple):
    """A method with a budget."""

    method: str
    budget: str = ""  # tokens, a share or a schedule, as requested. Empty for the unmodified model
    options: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """The method with its options. Tables group rows by budget, so it is not repeated."""
        return " ".join([method_label(self.method), *map("=".join, self.options)])

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """Order in tables: vanilla, then by falling budget. ApET comes last, as in the paper."""
        amount = re.match(r"[\d.]+", self.budget)
        falling = (0, -float(amount[0])) if amount else (1, 0.0)
        is_apet = self.method.startswith("apet"), self.method == "apet"
        return (self.method != "vanilla", *falling, *is_apet, self)


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
    def name(self) -> str:
        """Name of method, budget and options: `apet-64`."""
        return str(self.record.point["name"])

    @property
    def model(self) -> str:
        return self.record.tags.get("model", "model")

    @property
    def point(self) -> Point:
        fields = self.record.point
        budget = next((str(fields[key]) for key in BUDGET_KEYS if key in fields), "")
        options = sorted(fields.keys() - {"name", "method", *BUDGET_KEYS})
        values = tuple((key, _short(fields[key])) for key in options)
        if fields["method"] == "random" and "draws" not in self.record.identity:
            values += (("draws", "once for each question"),)  # a run before there was this key
        return Point(str(fields["method"]), budget, values)

    @property
    def limit(self) -> int | None:
        """Number of questions, if the job was limited to some of them."""
        limit = self.record.config.get("limit")
        return limit if isinstance(limit, int) and self.record.rows["wanted"] >= limit else None

    def settings(self, excluded: Sequence[str]) -> dict[str, Any]:
        """Its identity without these keys."""
        return {key: value for key, value in self.record.identity.items() if key not in excluded}


class Result(NamedTuple):
    """A row of a table: metrics of a run, or figures that the paper prints for a method."""

    point: Point
    metrics: dict[str, Any]
    paper_table: int = 0
    """Number of the paper's table that has these figures; 0 for a run."""


@dataclass(frozen=True)
class Study:
    """Runs that are compared row by row."""

    title: str
    """Unique in a report; names the study in queries."""
    column: str
    """Name within its chapter: the benchmark, and settings if several studies have the same one."""
    benchmark: Benchmark
    runs: tuple[ReportRun, ...]
    paper_note: str = ""
    """Why figures of the paper are missing from the results; `published` adds it with them."""
    # `measurements.measure` adds what follows. Examples have a dictionary of cells per row.
    results: Sequence[Result] = ()
    types: Sequence[str] = ()
    """Types of questions that runs have in common with vanilla."""
    hard: Sequence[Result] = ()
    """Results on rows that the down-sampled run of the same budget gets wrong."""
    lost: Sequence[Mapping[str, Any]] = ()
    """Rows that vanilla got right and most runs wrong."""
    slowest: Sequence[Mapping[str, Any]] = ()
    errors: Sequence[Mapping[str, Any]] = ()

    @property
    def label(self) -> str:
        return benchmark_label(self.column)

    @property
    def digits(self) -> int:
        """Decimal places of the headline: a percentage, or points."""
        return 0 if self.benchmark.headline_max > 1 else 1

    @property
    def seed(self) -> int:
        return int(self.runs[0].record.config.get("seed") or 0)

    @property
    def vanilla(self) -> ReportRun | None:
        return next((run for run in self.runs if run.point.method == "vanilla"), None)

    @property
    def measured(self) -> list[Result]:
        return [result for result in self.results if not result.paper_table]


@dataclass(frozen=True)
class Chapter:
    """Studies of one model with the same settings."""

    title: str
    model: str
    settings: Mapping[str, Any]
    studies: tuple[Study, ...]  # in the order of the paper's columns


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
            notes.append(f"{run.id} is left out: it has no answers yet.")
            continue
        if state != "finished":
            progress = f"{rows.get('done', 0):,} of {rows.get('wanted', 0):,} rows"
            notes.append(f"{run.id} is {state}, not finished ({progress}): numbers will change.")
        answered.append(run)
    if not answered:
        raise ValueError(
            f"no answers in any run of {', '.join(map(redacted, uris))}: run the job again"
        )
    groups = _grouped(answered, lambda run: (run.model, run.settings(BENCHMARK_KEYS)))
    chapters = [
        Chapter(title, first.model, first.settings(BENCHMARK_KEYS), _studies(title, group))
        for title, group in groups
        for first in group[:1]
    ]
    return sorted(chapters, key=lambda chapter: chapter.title), notes


def _load(folder: Folder) -> ReportRun:
    try:
        return ReportRun(folder, RunRecord.load(folder))
    except (ValueError, TypeError) as error:
        raise ValueError(f"cannot read record.json in {redacted(folder.uri)}: {error}") from error


def _skipped_runs(uris: Sequence[str], runs: Mapping[str, ReportRun]) -> list[str]:
    """Notes about runs of the same models and benchmarks that a sweep skipped."""
    prefixes = tuple({run.id.rpartition(f"{run.name}-")[0] for run in runs.values()})
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


def _studies(chapter: str, runs: Sequence[ReportRun]) -> tuple[Study, ...]:
    groups = _grouped(
        runs, lambda run: (str(run.record.identity["benchmark"]), run.settings(METHOD_KEYS))
    )
    studies = [
        Study(
            f"{chapter}, {column}",
            column,
            benchmark(str(group[0].record.identity["benchmark"])),
            tuple(sorted(group, key=lambda run: (run.point.sort_key, run.id))),
        )
        for column, group in groups
    ]
    order = BENCHMARKS.index
    return tuple(sorted(studies, key=lambda study: (order(study.benchmark.name), study.column)))


def _grouped(
    runs: Sequence[ReportRun], key: Callable[[ReportRun], tuple[str, dict[str, Any]]]
) -> list[tuple[str, list[ReportRun]]]:
    """Titles of groups, and their runs, which have the same name and settings.

    The title is the name; of several groups with one name, also the settings in which they differ.
    """
    groups: dict[str, list[ReportRun]] = defaultdict(list)
    for run in runs:
        groups[json.dumps(key(run), sort_keys=True, default=str)].append(run)
    keys = [key(group[0]) for group in groups.values()]
    titles = []
    for name, settings in keys:
        others = [other for other_name, other in keys if other_name == name]
        different = sorted(
            key for key in settings if any(other.get(key) != settings[key] for other in others)
        )
        titles.append(", ".join([name, *(f"{key} {_short(settings[key])}" for key in different)]))
    return list(zip(titles, groups.values(), strict=True))


def _short(value: Any) -> str:
    if value is None:
        return "as the model has it"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).removeprefix("sha256:")
    return text if len(text) <= 3 * DIGEST_CHARACTERS else text[:DIGEST_CHARACTERS]
