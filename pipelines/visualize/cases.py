"""Which rows are worth a picture: those that somebody names, or those where methods disagree.

A disagreement is between two runs that spend the same: one is right and the other wrong or, where nobody knows what is
right, they say different things. Both ways round are taken in turn, so that the pictures favour neither method; how
often each happens is counted over all rows, since a picture is an anecdote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice, zip_longest
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config.method_spec import MethodSpec
from pipelines.results import answers
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder, run_concurrently
from pipelines.text import did_you_mean, redacted

MOST = 4  # runs that are all drawn; of more, the unmodified model and the two that disagree
FAR = 100  # rows looked at for each that is wanted, in search of another picture
SEEN = ("row_id", "media", "prediction", "correct", "status")
POINT = ("method", "options")  # what may differ between the identities of runs


@dataclass(frozen=True, eq=False)
class Run:
    """A finished or unfinished run: its record, and what it has answered."""

    folder: Folder
    record: RunRecord
    point: MethodSpec
    table: pa.Table  # SEEN of the rows without an error, sorted by row_id

    @classmethod
    def of(cls, uri: str) -> Run:
        folder = Folder.of(uri)
        try:
            record = RunRecord.load(folder)
        except FileNotFoundError:
            raise ValueError(
                f"{redacted(folder.uri)} holds no run: there is no record.json in it"
            ) from None
        if not record.identity:
            raise ValueError(
                f"{redacted(folder.uri)} is the record of a job; give the folders of its runs, in which the answers are"
            )
        table = answers.read(folder, SEEN)
        if not len(table):
            raise ValueError(f"{redacted(folder.uri)} holds no answers yet")
        point = MethodSpec.of(record.identity["method"], **record.identity["options"])
        return cls(folder, record, point, table.filter(pc.equal(table["status"], "ok")))

    @property
    def name(self) -> str:
        return self.point.name

    @property
    def is_vanilla(self) -> bool:
        return self.point.method == "vanilla"

    @property
    def spends(self) -> object:
        """The budget or schedule as it was given."""
        given = dict(self.point.options)
        return given.get("budget", given.get("schedule"))

    def media(self, row_ids: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
        """These rows with the names of what they are about."""
        some = self.table.filter(
            pc.is_in(self.table["row_id"], value_set=pa.array(row_ids, pa.string()))
        )
        return [
            (row_id, tuple(names))
            for row_id, names in zip(*(some[c].to_pylist() for c in SEEN[:2]), strict=True)
        ]

    def rows(self, row_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """All columns of these rows, by id."""
        wanted = pa.array(row_ids, pa.string())
        parts = (
            part.filter(pc.is_in(part["row_id"], value_set=wanted))
            for part in answers.batches(self.folder)
        )
        return {
            row["row_id"]: row
            for part in parts
            for row in part.to_pylist()
            if row["status"] == "ok"
        }


def runs(uris: Sequence[str]) -> list[Run]:
    """The runs of these folders, the unmodified model first and ApET next; they asked one model the same questions."""
    found = run_concurrently(Run.of, uris)
    for other in found[1:]:
        for key, value in found[0].record.identity.items():
            if key not in POINT and other.record.identity.get(key) != value:
                raise ValueError(
                    f"{found[0].record.name} and {other.record.name} cannot be compared: their {key} differs"
                    f" ({value} and {other.record.identity.get(key)}); give runs of one model and one benchmark"
                )
    names = [run.name for run in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} is given twice; name each run once")
    return sorted(
        found, key=lambda run: (not run.is_vanilla, not run.point.method.startswith("apet"))
    )


class Rivals(NamedTuple):
    """Two runs, and the rows that both have answered, on which they disagree."""

    one: Run
    other: Run
    rows: int
    first: list[str]  # rows on which the first alone is right, in no meaningful order
    second: list[str]
    unknown: list[str]  # on which they differ and nobody knows who is right

    @property
    def score(self) -> str:
        one, other = self.one.name, self.other.name
        if self.unknown and not self.first and not self.second:
            return f"Of {self.rows:,} rows, {one} and {other} answer {len(self.unknown):,} differently."
        return (
            f"Of {self.rows:,} rows, {one} alone is right on {len(self.first):,}"
            f" and {other} alone on {len(self.second):,}."
        )


@dataclass(frozen=True)
class Case:
    """One row, and the runs whose pictures of it are put side by side."""

    row_id: str
    runs: tuple[Run, ...]
    why: str  # it was chosen


def chosen(found: Sequence[Run], rows: Sequence[str] | None, count: int) -> list[Case]:
    """A case for each of `rows`, or for `count` rows on which runs disagree."""
    pairs = [_compared(one, other) for one, other in _pairs(found)]
    if rows is not None:
        return [_named(found, pairs, row_id) for row_id in _known(found, rows)]
    if not pairs:
        raise ValueError(
            "one run disagrees with nobody: give the folders of two or more, or say which rows with --rows ID,ID"
        )
    decided = [queue for pair in pairs for queue in (pair.first, pair.second)]
    cases: dict[str, Case] = {}
    shown: set[tuple[str, ...]] = set()
    for queues in (decided, [pair.unknown for pair in pairs]):
        owners = [pair for pair in pairs for _ in range(len(queues) // len(pairs))]
        turns = [
            (pair, row_id)
            for turn in islice(zip_longest(*queues), FAR * count)
            for pair, row_id in zip(owners, turn, strict=True)
            if row_id is not None
        ]
        ids = [row_id for _, row_id in turns]
        media = {row_id: names for run in found for row_id, names in run.media(ids)}
        for again in (False, True):  # pictures that are not there yet come first
            for pair, row_id in turns:
                if (
                    len(cases) < count
                    and row_id not in cases
                    and (again or media[row_id] not in shown)
                ):
                    shown.add(media[row_id])
                    cases[row_id] = _case(found, pair, row_id)
    if not cases:
        raise ValueError("these runs disagree on no row; say which rows to draw with --rows ID,ID")
    return list(cases.values())


def _pairs(found: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Who is compared with whom: those that spend the same, ApET's pairs first; else any two; else with vanilla."""
    pressed = [run for run in found if not run.is_vanilla]
    both = list(combinations(pressed, 2))
    return (
        [pair for pair in both if pair[0].spends == pair[1].spends]
        or both
        or list(combinations(found, 2))
    )


def _compared(one: Run, other: Run) -> Rivals:
    here = one.table.filter(
        pc.is_in(one.table["row_id"], value_set=other.table["row_id"].combine_chunks())
    )
    there = other.table.take(
        pc.index_in(here["row_id"], value_set=other.table["row_id"].combine_chunks())
    )
    right, wrong = (pc.fill_null(table["correct"], False) for table in (here, there))
    known = pc.and_(pc.is_valid(here["correct"]), pc.is_valid(there["correct"]))
    differ = pc.and_(pc.invert(known), pc.not_equal(here["prediction"], there["prediction"]))
    masks = (
        pc.and_(known, pc.and_(right, pc.invert(wrong))),
        pc.and_(known, pc.and_(wrong, pc.invert(right))),
        pc.fill_null(differ, False),
    )
    return Rivals(
        one,
        other,
        len(here),
        *(_shuffled(here["row_id"].filter(mask).to_pylist()) for mask in masks),
    )


def _shuffled(row_ids: list[str]) -> list[str]:
    """Always the same way: the first rows of a benchmark tend to be about the same picture."""
    return sorted(row_ids, key=lambda row_id: hashlib.sha256(row_id.encode()).digest())


def _named(found: Sequence[Run], pairs: Sequence[Rivals], row_id: str) -> Case:
    for pair in pairs:
        if row_id in {*pair.first, *pair.second, *pair.unknown}:
            return _case(found, pair, row_id)
    return Case(row_id, _side_by_side(found, pairs[0] if pairs else None), "")


def _case(found: Sequence[Run], pair: Rivals, row_id: str) -> Case:
    return Case(row_id, _side_by_side(found, pair), f"They disagree here. {pair.score}")


def _side_by_side(found: Sequence[Run], pair: Rivals | None) -> tuple[Run, ...]:
    if len(found) <= MOST or pair is None:
        return tuple(found)
    return (*(run for run in found if run.is_vanilla), pair.one, pair.other)


def _known(found: Sequence[Run], rows: Sequence[str]) -> list[str]:
    """The rows, once each, if every run has answered them."""
    for row_id in rows:
        for run in found:
            ids = run.table["row_id"]
            if not pc.any(pc.equal(ids, row_id)).as_py():
                like = (
                    did_you_mean(row_id, ids.slice(0, 5000).to_pylist())
                    or f"; its rows are called like {ids[0].as_py()!r}"
                )
                raise ValueError(f"{run.record.name} has no answer to a row {row_id!r}{like}")
    return list(dict.fromkeys(rows))
