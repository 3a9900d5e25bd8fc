"""Selects the rows to draw: those named by the user, or those on which methods disagree.

Two runs of the same budget disagree where one is right and the other wrong or, where correctness
is unknown, where their answers differ. Rows of both directions alternate, so that the pictures
favour neither method. How often each happens is counted over all rows, because a picture is only
an anecdote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, zip_longest
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config.method_spec import MethodSpec
from pipelines.report.runs import ReportRun, collect_runs
from pipelines.results import answers
from pipelines.results.storage import run_concurrently
from pipelines.text import did_you_mean

MAX_RUNS = 4  # drawn per row; of more, only vanilla and the two that disagree
COLUMNS = ("row_id", "prediction", "correct", "status")


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A finished or unfinished run with its answers."""

    run: ReportRun
    spec: MethodSpec
    table: pa.Table  # COLUMNS of the rows without an error, sorted by row_id

    @classmethod
    def of(cls, run: ReportRun) -> StoredRun:
        table = answers.read(run.folder, COLUMNS)
        identity = run.record.identity
        spec = MethodSpec.of(identity["method"], **identity["options"])
        return cls(run, spec, table.filter(pc.equal(table["status"], "ok")))

    @property
    def is_vanilla(self) -> bool:
        return self.spec.method == "vanilla"

    def answers(self, row_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """All columns of these rows, by id."""
        ids = pa.array(row_ids, pa.string())
        return {
            row["row_id"]: row
            for batch in answers.batches(self.run.folder)
            for row in batch.filter(pc.is_in(batch["row_id"], value_set=ids)).to_pylist()
            if row["status"] == "ok"
        }


def load_runs(uris: Sequence[str], say: Callable[[str], None] = print) -> list[StoredRun]:
    """Load runs of one model and one benchmark, vanilla first and ApET next."""
    chapters, notes = collect_runs(uris)
    for note in notes:
        say(note)
    studies = [study for chapter in chapters for study in chapter.studies]
    if len(studies) > 1:
        titles = "; ".join(study.title for study in studies)
        raise ValueError(
            f"these runs cannot be compared: {titles}; give runs of one model and one benchmark"
        )
    runs = run_concurrently(StoredRun.of, studies[0].runs)
    return sorted(
        runs, key=lambda run: (not run.is_vanilla, not run.spec.method.startswith("apet"))
    )


@dataclass(frozen=True)
class Disagreement:
    """Two runs, and the ids of rows on which they disagree, in pseudo-random order."""

    first: StoredRun
    second: StoredRun
    rows: int  # answered by both
    only_first: list[str]  # the first run is right and the second wrong
    only_second: list[str]
    different: list[str]  # different answers, correctness unknown

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
        row_ids = (one["row_id"].filter(mask).to_pylist() for mask in masks)
        # Always the same order; the first rows of a benchmark tend to show the same picture.
        return cls(first, second, len(one), *(sorted(ids, key=_digest) for ids in row_ids))

    def __contains__(self, row_id: object) -> bool:
        return any(row_id in rows for rows in (self.only_first, self.only_second, self.different))

    @property
    def reason(self) -> str:
        first, second = self.first.spec.name, self.second.spec.name
        if self.different and not self.only_first and not self.only_second:
            differ = f"{len(self.different):,} of {self.rows:,} rows differently"
            return f"They disagree here. {first} and {second} answer {differ}."
        return (
            f"They disagree here. Of {self.rows:,} rows, only {first} is right on"
            f" {len(self.only_first):,} and only {second} on {len(self.only_second):,}."
        )


def _digest(row_id: str) -> bytes:
    return hashlib.sha256(row_id.encode()).digest()


class SelectedRow(NamedTuple):
    """One row, and the runs to draw side by side."""

    row_id: str
    runs: Sequence[StoredRun]
    reason: str  # empty where the user named a row on which the runs agree


def select_rows(
    runs: Sequence[StoredRun], row_ids: Sequence[str] | None, count: int
) -> list[SelectedRow]:
    """Select the rows of these ids or, for None, `count` rows on which runs disagree."""
    pairs = _comparable(runs)
    if row_ids is not None:
        _check_answered(runs, row_ids)
        row_ids = list(dict.fromkeys(row_ids))
    elif not pairs:
        raise ValueError(
            "a single run has nothing to disagree with: give two or more, or name rows with --rows"
            " ID,ID"
        )
    else:
        row_ids = _disagreements(pairs)[:count]
    selected = []
    for row_id in row_ids:
        pair = next((pair for pair in pairs if row_id in pair), None)
        drawn: Sequence[StoredRun] = runs
        if len(runs) > MAX_RUNS and pairs:
            shown = pair or pairs[0]
            drawn = [*(run for run in runs if run.is_vanilla), shown.first, shown.second]
        selected.append(SelectedRow(row_id, drawn, pair.reason if pair else ""))
    return selected


def _comparable(runs: Sequence[StoredRun]) -> list[Disagreement]:
    """Pairs of the same budget, ApET's first; without any, all methods; else those with vanilla."""
    compressed = list(combinations([run for run in runs if not run.is_vanilla], 2))
    same_budget = [
        (one, other) for one, other in compressed if one.run.point.budget == other.run.point.budget
    ]
    pairs = same_budget or compressed or combinations(runs, 2)
    return [Disagreement.between(*pair) for pair in pairs]


def _disagreements(pairs: Sequence[Disagreement]) -> list[str]:
    """Rows of both directions and all pairs in turn, those of unknown correctness last."""
    one_right = [rows for pair in pairs for rows in (pair.only_first, pair.only_second)]
    unknown = [pair.different for pair in pairs]
    in_turn = chain(*zip_longest(*one_right), *zip_longest(*unknown))
    ordered = list(dict.fromkeys(row_id for row_id in in_turn if row_id is not None))
    if not ordered:
        raise ValueError("these runs disagree on no row; name the rows to draw with --rows ID,ID")
    return ordered


def _check_answered(runs: Sequence[StoredRun], row_ids: Sequence[str]) -> None:
    for run in runs:
        ids = run.table["row_id"]
        for row_id in row_ids:
            if not pc.any(pc.equal(ids, row_id)).as_py():
                hint = did_you_mean(row_id, ids.slice(0, 5000).to_pylist())
                hint = hint or f"; its ids look like {ids[0].as_py()!r}"
                raise ValueError(f"{run.run.id} has no answer to a row {row_id!r}{hint}")
