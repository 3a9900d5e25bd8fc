"""A run beside another on the same rows: what is left of the accuracy, whether it differs, which rows went lost.

Pairs are made by `row_id`. A row that one of the two runs has not answered is in no number, and no row that counts
together with it (a question's other rotations, an image's other question) either.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.metrics import significance
from pipelines.metrics import intervals
from pipelines.metrics.answer_metrics import AnswerArrays, Bools, Metric, Scorer, row_values, as_ratio_sum
from pipelines.metrics.intervals import Interval, RatioSum

HALF = 0.5  # worth less, a row is wrong


@dataclass(frozen=True)
class PairedAnswers:
    """Two runs of one benchmark, row by row: `ours` and `theirs` hold the same rows in the order of their ids."""

    ours: AnswerArrays
    theirs: AnswerArrays
    benchmark: Scorer
    seed: int = 0

    @classmethod
    def of(cls, answers: pa.Table, others: pa.Table, benchmark: Scorer, seed: int = 0) -> PairedAnswers:
        ids = (
            pa.chunked_array([*answers["row_id"].chunks, *others["row_id"].chunks], pa.string())
            .unique()
            .sort()
        )
        ours, theirs = (_aligned(table, ids) for table in (answers, others))
        both = pa.array(AnswerArrays(ours).scored & AnswerArrays(theirs).scored)
        return cls(
            AnswerArrays(_only(ours, both)), AnswerArrays(_only(theirs, both)), benchmark, seed
        )

    @cached_property
    def scored(self) -> Bools:
        return self.ours.scored

    @cached_property
    def clusters(self) -> intervals.Ints:
        return intervals.clusters(self.ours.answers["media"])

    @cached_property
    def _headline(self) -> tuple[Metric, Metric]:
        one, other = (
            self.benchmark.figures(sheet)[self.benchmark.headline]
            for sheet in (self.ours, self.theirs)
        )
        return one, other

    @cached_property
    def _parts(self) -> tuple[RatioSum, RatioSum, intervals.Ints]:
        """The headlines as sums over the rows that are in them: the rows of a mean alone, else all scored ones."""
        one, other = self._headline
        plain = row_values(one) is not None and row_values(other) is not None
        among = one[0].below > 0 if plain else self.scored
        parts = [as_ratio_sum(figure).among(among) for figure in (one, other)]
        return parts[0], parts[1], intervals.renumber(self.clusters[among])

    @property
    def rows(self) -> int:
        """Rows that both have an answer to that has a score."""
        return int(self.scored.sum())

    def retention(self) -> Interval | None:
        """What is left of the other's headline; None where it has no point."""
        if not self.scored.any():
            return None
        ours, theirs, cluster = self._parts
        if row_values(self._headline[0]) is not None:
            return intervals.retention(ours.above[0], theirs.above[0], cluster, self.seed)
        return intervals.ratio_sum_retention(ours, theirs, cluster, self.seed)

    def retention_by_type(self) -> dict[str, Interval]:
        """The same of each type of question, of the rows' own worth."""
        found = {}
        for kind in sorted(set(self.ours.types[self.scored]) - {""}):
            mine = self.scored & (self.ours.types == kind)
            cluster = intervals.renumber(self.clusters[mine])
            kept = intervals.retention(
                self.ours.worth[mine], self.theirs.worth[mine], cluster, self.seed
            )
            if kept is not None:
                found[str(kind)] = kept
        return found

    def p_value(self) -> float:
        """Of no difference between the headlines: McNemar's where each medium has one question, else by swaps."""
        return significance.paired_p_value(*self._parts, self.seed)

    def rows_needed(self) -> int | None:
        """Rows like these that find a difference of one point of accuracy, with a power of 80 %.

        Rows as `rows` counts them: all rotations of a question, and those that the headline is not about.
        """
        ours, theirs, cluster = self._parts
        each = self.rows / max(1, len(cluster))  # rows for one of the headline's
        return significance.rows_needed(
            each * significance.difference_variance(ours, theirs, cluster) / self.benchmark.most**2
        )

    @cached_property
    def lost(self) -> Bools:
        """Rows that are worth less here than there."""
        return np.nan_to_num(self.ours.worth) < np.nan_to_num(self.theirs.worth)

    @cached_property
    def gained(self) -> Bools:
        return np.nan_to_num(self.ours.worth) > np.nan_to_num(self.theirs.worth)

    def metrics(self) -> dict[str, float]:
        """By the names they have in MLflow, beside those of `pipelines.metrics.summary`; what cannot be known is left out."""
        kept = self.retention()
        if kept is None:
            return {}
        found = intervals.as_metrics("accuracy_retention", kept)
        found |= {
            "rows_compared": self.rows,
            "rows_lost": int(self.lost.sum()),
            "rows_gained": int(self.gained.sum()),
        }
        found["p_value"] = self.p_value()
        if (needed := self.rows_needed()) is not None:
            found["rows_needed"] = needed
        return found


class HardSplit(NamedTuple):
    """A run on the rows of the hard split."""

    rows: int
    accuracy: Interval


def hard_split(answers: pa.Table, downsampled: pa.Table, benchmark: Scorer, seed: int = 0) -> HardSplit | None:
    """VTC-Bench's hard split: accuracy on the rows that a model which sees a coarser picture gets wrong.

    What is easy does not tell methods apart: on the other rows a smaller picture would do. None where there is no hard
    row.
    """
    pair = PairedAnswers.of(answers, downsampled, benchmark, seed)
    among = pair.scored & (np.nan_to_num(pair.theirs.worth) < HALF)
    if not among.any():
        return None
    cluster = intervals.renumber(pair.clusters[among])
    return HardSplit(int(among.sum()), intervals.mean(pair.ours.worth[among], cluster, seed))


def _aligned(table: pa.Table, ids: pa.Array) -> pa.Table:
    """The rows of these ids; those that are not there have nothing but the id."""
    found = table.take(pc.index_in(ids, value_set=table["row_id"].combine_chunks()))
    return found.set_column(found.column_names.index("row_id"), "row_id", ids)


def _only(table: pa.Table, answered: pa.Array) -> pa.Table:
    """All other rows count as not answered."""
    return table.set_column(
        table.column_names.index("status"), "status", pc.if_else(answered, "ok", "error")
    )
