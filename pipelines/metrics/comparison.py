"""Comparison of a run with another on the same rows: retention, significance, lost rows.

Rows are paired by `row_id`. A row that one of the two runs has not answered counts in no number,
and neither does a row that counts together with it (another rotation of a question, the other
question about an image).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.metrics import answer_metrics, intervals, significance
from pipelines.metrics.answer_metrics import AnswerArrays, Bools, Metric, Scorer, with_column
from pipelines.metrics.intervals import Interval, Ints

WRONG_BELOW = 0.5  # a row with a lower score is wrong


@dataclass(frozen=True)
class PairedAnswers:
    """Two runs of one benchmark: `ours` and `theirs` have the same rows, sorted by id."""

    ours: AnswerArrays
    theirs: AnswerArrays
    benchmark: Scorer
    seed: int = 0

    @classmethod
    def of(
        cls, answers: pa.Table, others: pa.Table, benchmark: Scorer, seed: int = 0
    ) -> PairedAnswers:
        chunks = [*answers["row_id"].chunks, *others["row_id"].chunks]
        ids = pa.chunked_array(chunks, pa.string()).unique().sort()
        tables = [_align(table, ids) for table in (answers, others)]
        both = np.logical_and(*(AnswerArrays(table).scored for table in tables))
        status = pc.if_else(pa.array(both), "ok", "error")
        ours, theirs = (AnswerArrays(with_column(table, "status", status)) for table in tables)
        return cls(ours, theirs, benchmark, seed)

    @cached_property
    def scored(self) -> Bools:
        return self.ours.scored

    @cached_property
    def clusters(self) -> Ints:
        return intervals.clusters(self.ours.table["media"])

    @cached_property
    def _headlines(self) -> tuple[Metric, Metric, Ints]:
        """The headlines over the rows that count in them, and the clusters of these rows.

        For a mean these are its own rows, for other metrics all scored rows.
        """
        ours, theirs = (
            self.benchmark.metrics(answers)[self.benchmark.headline]
            for answers in (self.ours, self.theirs)
        )
        are_means = answer_metrics.is_mean(ours) and answer_metrics.is_mean(theirs)
        rows = ours.denominators[0] > 0 if are_means else self.scored
        return ours.select(rows), theirs.select(rows), self.clusters[rows]

    @property
    def rows(self) -> int:
        """The number of rows with a score in both runs."""
        return int(self.scored.sum())

    def retention(self) -> Interval | None:
        """Return our headline relative to theirs; None where theirs is zero."""
        if not self.scored.any():
            return None
        ours, theirs, cluster = self._headlines
        if answer_metrics.is_mean(ours):
            columns = ours.numerators[0], theirs.numerators[0]
            return intervals.retention(*columns, cluster, self.seed)
        return intervals.ratio_sum_retention(ours, theirs, cluster, self.seed)

    def retention_by_type(self) -> dict[str, Interval]:
        """Return the retention of each type of question, from the scores of its rows."""
        retentions = {}
        for kind in self.ours.scored_keys(self.ours.types):
            rows = self.scored & (self.ours.types == kind)
            scores = self.ours.scores[rows], self.theirs.scores[rows]
            retention = intervals.retention(*scores, self.clusters[rows], self.seed)
            if retention is not None:
                retentions[str(kind)] = retention
        return retentions

    def p_value(self) -> float:
        """Return the p-value of equal headlines (`significance.paired_p_value`)."""
        return significance.paired_p_value(*self._headlines, self.seed)

    def rows_needed(self) -> int | None:
        """Return the rows that detect a difference of one point of accuracy, with a power of 80 %.

        They are counted like `rows`: with all rotations of a question, and with the rows that do
        not count in the headline.
        """
        ours, theirs, cluster = self._headlines
        rows_per_headline_row = self.rows / max(1, len(cluster))
        variance = significance.difference_variance(ours, theirs, cluster)
        return significance.rows_needed(
            rows_per_headline_row * variance / self.benchmark.headline_max**2
        )

    @cached_property
    def lost(self) -> Bools:
        """Rows with a lower score here than there."""
        return np.nan_to_num(self.ours.scores) < np.nan_to_num(self.theirs.scores)

    @cached_property
    def gained(self) -> Bools:
        return np.nan_to_num(self.ours.scores) > np.nan_to_num(self.theirs.scores)

    def metrics(self) -> dict[str, float]:
        """Return the numbers under their names in MLflow, without those that cannot be computed."""
        retention = self.retention()
        if retention is None:
            return {}
        metrics = intervals.as_metrics("accuracy_retention", retention) | {
            "rows_compared": self.rows,
            "rows_lost": int(self.lost.sum()),
            "rows_gained": int(self.gained.sum()),
            "p_value": self.p_value(),
        }
        needed = self.rows_needed()
        return metrics if needed is None else metrics | {"rows_needed": needed}


class HardSplit(NamedTuple):
    """The accuracy of a run on the rows of the hard split."""

    rows: int
    accuracy: Interval


def hard_split(
    answers: pa.Table, downsampled: pa.Table, benchmark: Scorer, seed: int = 0
) -> HardSplit | None:
    """Return the accuracy on VTC-Bench's hard split, or None without a hard row.

    Hard are the rows that a model gets wrong which sees a coarser picture. Easy rows do not tell
    methods apart: a smaller picture would be enough for them.
    """
    pair = PairedAnswers.of(answers, downsampled, benchmark, seed)
    rows = pair.scored & (np.nan_to_num(pair.theirs.scores) < WRONG_BELOW)
    if not rows.any():
        return None
    accuracy = intervals.mean(pair.ours.scores[rows], pair.clusters[rows], seed)
    return HardSplit(int(rows.sum()), accuracy)


def _align(table: pa.Table, ids: pa.Array) -> pa.Table:
    """Return the rows of these ids. A missing row has nothing but its id."""
    rows = pc.index_in(ids, value_set=table["row_id"].combine_chunks())
    return with_column(table.take(rows), "row_id", ids)
