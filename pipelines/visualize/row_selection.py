"""Selects the rows to draw: those named by the user, or those on which methods disagree.

Two runs of the same budget disagree where one is right and the other wrong or, where correctness
is unknown, where their answers differ. Rows of both directions alternate, so that the pictures
favour neither method. How often each happens is counted over all rows, because a picture is only
an anecdote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice, zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config.method_spec import MethodSpec
from pipelines.results import answers
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder, run_concurrently
from pipelines.text import did_you_mean, redacted

MAX_RUNS = 4  # drawn per row; of more, only vanilla and the two that disagree
COLUMNS = ("row_id", "media", "prediction", "correct", "status")
METHOD_KEYS = ("method", "options")  # may differ between the identities of runs

Media = tuple[str, ...]  # names of a row's images or videos


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A finished or unfinished run: its record and its answers."""

    folder: Folder
    record: RunRecord
    spec: MethodSpec
    table: pa.Table  # COLUMNS of the rows without an error, sorted by row_id

    @classmethod
    def load(cls, uri: str) -> StoredRun:
        folder = Folder.of(uri)
        name = redacted(folder.uri)
        try:
            record = RunRecord.load(folder)
        except FileNotFoundError:
            raise ValueError(f"{name} is not a run: it has no record.json") from None
        if not record.identity:
            raise ValueError(
                f"{name} is the record of a job; give the folders of its runs, which hold answers"
            )
        table = answers.read(folder, COLUMNS)
        if not len(table):
            raise ValueError(f"{name} holds no answers yet")
        spec = MethodSpec.of(record.identity["method"], **record.identity["options"])
        return cls(folder, record, spec, table.filter(pc.equal(table["status"], "ok")))

    @property
    def is_vanilla(self) -> bool:
        return self.spec.method == "vanilla"

    @property
    def budget(self) -> object:
        """The budget or schedule as the user gave it."""
        options = dict(self.spec.options)
        return options.get("budget", options.get("schedule"))

    def answers(self, row_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """All columns of these rows, by id."""
        ids = pa.array(row_ids, pa.string())
        return {
            row["row_id"]: row
            for batch in answers.batches(self.folder)
            for row in batch.filter(pc.is_in(batch["row_id"], value_set=ids)).to_pylist()
            if row["status"] == "ok"
        }


def load_runs(uris: Sequence[str]) -> list[StoredRun]:
    """Load runs of one model and one benchmark, vanilla first and ApET next."""
    runs = run_concurrently(StoredRun.load, uris)
    first = runs[0].record
    for other in (run.record for run in runs[1:]):
        for key, value in first.identity.items():
            if key not in METHOD_KEYS and other.identity.get(key) != value:
                raise ValueError(
                    f"{first.name} and {other.name} cannot be compared: their {key} differs"
                    f" ({value} and {other.identity.get(key)}); give runs of one model and"
                    " one benchmark"
                )
    names = [run.spec.name for run in runs]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(repeated))} is given twice; name each run once")
    return sorted(
        runs, key=lambda run: (not run.is_vanilla, not run.spec.method.startswith("apet"))
    )


@dataclass(frozen=True)
class Disagreement:
    """Two runs, and the rows on which they disagree with their media, in pseudo-random order."""

    first: StoredRun
    second: StoredRun
    rows: int  # answered by both
    only_first: dict[str, Media]  # the first run is right and the second wrong
    only_second: dict[str, Media]
    different: dict[str, Media]  # different answers, correctness unknown

    @classmethod
    def between(cls, first: StoredRun, second: StoredRun) -> Disagreement:
        ids = second.table["row_id"].combine_chunks()
        one = first.table.filter(pc.is_in(first.table["row_id"], value_set=ids))
        other = second.table.take(pc.index_in(one["row_id"], value_set=ids))
        # correctness is null where it is unknown, and so are comparisons with it
        scored = pc.and_(pc.is_valid(one["correct"]), pc.is_valid(other["correct"]))
        masks = (
            pc.and_not(one["correct"], other["correct"]),
            pc.and_not(other["correct"], one["correct"]),
            pc.and_not(pc.not_equal(one["prediction"], other["prediction"]), scored),
        )
        return cls(first, second, len(one), *(_shuffled(one.filter(mask)) for mask in masks))

    def __contains__(self, row_id: object) -> bool:
        return any(row_id in rows for rows in (self.only_first, self.only_second, self.different))

    @property
    def summary(self) -> str:
        first, second = self.first.spec.name, self.second.spec.name
        if self.different and not self.only_first and not self.only_second:
            differ = f"{len(self.different):,} of {self.rows:,} rows differently"
            return f"{first} and {second} answer {differ}."
        return (
            f"Of {self.rows:,} rows, only {first} is right on {len(self.only_first):,} and only"
            f" {second} on {len(self.only_second):,}."
        )


def _shuffled(table: pa.Table) -> dict[str, Media]:
    """Always the same order; the first rows of a benchmark tend to show the same picture."""
    rows = zip(table["row_id"].to_pylist(), table["media"].to_pylist(), strict=True)
    media = {row_id: tuple(names) for row_id, names in rows}
    return dict(sorted(media.items(), key=lambda row: hashlib.sha256(row[0].encode()).digest()))


@dataclass(frozen=True)
class SelectedRow:
    """One row, and the runs to draw side by side."""

    row_id: str
    runs: tuple[StoredRun, ...]
    reason: str  # empty where the user named a row on which the runs agree


def select_rows(
    runs: Sequence[StoredRun], row_ids: Sequence[str] | None, count: int
) -> list[SelectedRow]:
    """Select the rows of these ids or, for None, `count` rows on which runs disagree."""
    pairs = [Disagreement.between(*pair) for pair in _comparable(runs)]
    if row_ids is not None:
        _check_answered(runs, row_ids)
        return [_select(runs, pairs, row_id) for row_id in dict.fromkeys(row_ids)]
    if not pairs:
        raise ValueError(
            "a single run has nothing to disagree with: give two or more, or name rows with --rows"
            " ID,ID"
        )
    one_right = [(pair, rows) for pair in pairs for rows in (pair.only_first, pair.only_second)]
    ordered: dict[str, Disagreement] = {}
    seen: set[Media] = set()
    for queues in (one_right, [(pair, pair.different) for pair in pairs]):
        repeated = []  # rows about media of earlier rows come last
        for pair, row_id, media in _alternate(queues):
            if media in seen:
                repeated.append((row_id, pair))
            else:
                seen.add(media)
                ordered[row_id] = pair
        for row_id, pair in repeated:
            ordered.setdefault(row_id, pair)
    if not ordered:
        raise ValueError("these runs disagree on no row; name the rows to draw with --rows ID,ID")
    return [_select(runs, [pair], row_id) for row_id, pair in islice(ordered.items(), count)]


def _comparable(runs: Sequence[StoredRun]) -> list[tuple[StoredRun, StoredRun]]:
    """Pairs of the same budget, ApET's first; without any, all methods; else those with vanilla."""
    compressed = list(combinations([run for run in runs if not run.is_vanilla], 2))
    same_budget = [pair for pair in compressed if pair[0].budget == pair[1].budget]
    return same_budget or compressed or list(combinations(runs, 2))


def _alternate(
    queues: Sequence[tuple[Disagreement, dict[str, Media]]],
) -> Iterator[tuple[Disagreement, str, Media]]:
    """Take one row of each queue in turn."""
    rows = ([(pair, row_id, media) for row_id, media in queue.items()] for pair, queue in queues)
    return filter(None, chain.from_iterable(zip_longest(*rows)))


def _select(runs: Sequence[StoredRun], pairs: Sequence[Disagreement], row_id: str) -> SelectedRow:
    """The row with the first of `pairs` that disagrees on it or, if none does, with the first."""
    pair = next((pair for pair in pairs if row_id in pair), None)
    if len(runs) > MAX_RUNS and pairs:
        drawn = pair or pairs[0]
        runs = [*(run for run in runs if run.is_vanilla), drawn.first, drawn.second]
    return SelectedRow(row_id, tuple(runs), f"They disagree here. {pair.summary}" if pair else "")


def _check_answered(runs: Sequence[StoredRun], row_ids: Sequence[str]) -> None:
    for run in runs:
        ids = run.table["row_id"]
        for row_id in row_ids:
            if not pc.any(pc.equal(ids, row_id)).as_py():
                hint = did_you_mean(row_id, ids.slice(0, 5000).to_pylist())
                hint = hint or f"; its ids look like {ids[0].as_py()!r}"
                raise ValueError(f"{run.record.name} has no answer to a row {row_id!r}{hint}")
