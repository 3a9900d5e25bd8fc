"""Comparison of two runs on the same rows, against plain loops over the rows."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.benchmarks import benchmark
from pipelines.metrics import comparison, intervals, significance, summary
from pipelines.metrics.answer_metrics import AnswerArrays, value
from pipelines.metrics.comparison import PairedAnswers
from pipelines.results.answer_schema import ANSWER_SCHEMA


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"status": "ok", "question": "?", **row} for row in rows], schema=ANSWER_SCHEMA
    )


def random_answers(seed: int, rows: int = 200, per_medium: int = 3, right: float = 0.6) -> pa.Table:
    dice = random.Random(seed)
    result = []
    for number in range(rows):
        row = {
            "row_id": f"{number:04}",
            "media": [f"{number // per_medium}.png"],
            "correct": dice.random() < right,
        }
        row["type"] = ("color", "count")[number % 2]
        if dice.random() < 0.1:
            row |= {"status": "error", "correct": None}
        result.append(row)
    dice.shuffle(result)
    return table(result)


def scores_by_id(answers: pa.Table) -> dict[str, float]:
    rows = answers.to_pylist()
    return {
        row["row_id"]: float(row["correct"])
        for row in rows
        if row["status"] == "ok" and row["correct"] is not None
    }


def test_pairs_are_the_rows_answered_by_both() -> None:
    ours, theirs = random_answers(1), random_answers(2).slice(0, 150)
    scores_here, other = scores_by_id(ours), scores_by_id(theirs)
    both = sorted(scores_here.keys() & other.keys())
    result = PairedAnswers.of(ours, theirs, benchmark("manifest")).metrics()
    assert len(scores_here) > result["rows_compared"] == len(both) > 50
    assert result["rows_lost"] == sum(scores_here[each] < other[each] for each in both)
    assert result["rows_gained"] == sum(scores_here[each] > other[each] for each in both)
    assert result["accuracy_retention"] == pytest.approx(
        sum(scores_here[each] for each in both) / sum(other[each] for each in both)
    )
    media = [int(each) // 3 for each in both]
    differences = np.array([scores_here[each] - other[each] for each in both])
    off = differences - differences.mean()
    spread = sum(sum(off[np.array(media) == medium]) ** 2 for medium in set(media)) / len(both)
    assert result["rows_needed"] == significance.rows_needed(spread)


def test_retention_of_each_type_equals_a_plain_loop() -> None:
    ours, theirs = random_answers(3, right=0.5), random_answers(4, right=0.8)
    scores_here, other = scores_by_id(ours), scores_by_id(theirs)
    metrics = summary.summarise(ours, theirs, benchmark("manifest"))
    for index, kind in enumerate(("color", "count")):
        both = [each for each in scores_here.keys() & other.keys() if int(each) % 2 == index]
        kept = sum(scores_here[each] for each in both) / sum(other[each] for each in both)
        assert metrics[f"manifest.{kind}.accuracy_retention"] == pytest.approx(kept)
        assert metrics[f"manifest.{kind}.accuracy_retention_ci_low"] < kept


def test_p_value_is_mcnemars_for_one_question_a_medium() -> None:
    ours, theirs = (
        random_answers(5, per_medium=1, right=0.5),
        random_answers(6, per_medium=1, right=0.8),
    )
    pair = PairedAnswers.of(ours, theirs, benchmark("manifest"))
    lost, gained = int(pair.lost.sum()), int(pair.gained.sum())
    assert pair.metrics()["p_value"] == significance.mcnemar(lost, gained) < 0.05
    pair = PairedAnswers.of(random_answers(5), random_answers(6), benchmark("manifest"))
    assert pair.metrics()["p_value"] != significance.mcnemar(
        int(pair.lost.sum()), int(pair.gained.sum())
    )


def rotations(seed: int, right: float, broken: str | None = None) -> pa.Table:
    """Return answers to 60 questions of MMBench, each in four rotations about its own image."""
    dice = random.Random(seed)
    rows = []
    for number in range(240):
        question = number // 4
        row = {
            "row_id": str(question + 1_000_000 * (number % 4)),
            "media": [f"sha256:{question}"],
            "type": "color",
        }
        row["correct"] = dice.random() < right
        rows.append(row | ({"status": "error", "correct": None} if row["row_id"] == broken else {}))
    return table(rows)


def all_rotations_right(answers: pa.Table, question: int) -> bool:
    rows = [row for row in answers.to_pylist() if int(row["row_id"]) % 1_000_000 == question]
    assert len(rows) == 4
    return all(row["correct"] for row in rows)


def test_mmbench_counts_questions_not_rotations() -> None:
    ours, theirs = rotations(1, 0.8), rotations(2, 0.95)
    metrics = summary.summarise(ours, theirs, benchmark("mmbench"))
    right = [
        (all_rotations_right(ours, each), all_rotations_right(theirs, each)) for each in range(60)
    ]
    interval = intervals.wilson(sum(one for one, _ in right), 60)
    assert [metrics[f"accuracy{end}"] for end in ("", "_ci_low", "_ci_high")] == pytest.approx(
        list(interval)
    )
    lost, gained = sum(b and not a for a, b in right), sum(a and not b for a, b in right)
    assert metrics["p_value"] == pytest.approx(significance.mcnemar(lost, gained))
    assert metrics["accuracy_retention"] == pytest.approx(
        sum(a for a, _ in right) / sum(b for _, b in right)
    )


def test_question_with_a_missing_rotation_counts_in_neither_run() -> None:
    """It is left out of both runs, whichever run lacks the rotation."""
    ours, theirs = rotations(3, 0.9), rotations(4, 0.95, broken="2000007")
    for one, other in ((ours, theirs), (theirs, ours)):
        pair = PairedAnswers.of(one, other, benchmark("mmbench"))
        kept = pair.retention()
        left = [each for each in range(60) if each != 7]
        assert kept is not None
        assert kept.value == pytest.approx(
            sum(all_rotations_right(one, each) for each in left)
            / sum(all_rotations_right(other, each) for each in left)
        )
    gone = theirs.filter(pa.array([row != "2000007" for row in theirs["row_id"].to_pylist()]))
    assert (
        PairedAnswers.of(ours, gone, benchmark("mmbench")).retention()
        == PairedAnswers.of(ours, theirs, benchmark("mmbench")).retention()
    )


def needed(changes: list[int], rows: int) -> int | None:
    """Return the rows needed for independent changes, by hand."""
    mean = sum(changes) / len(changes)
    spread = sum((change - mean) ** 2 for change in changes) / len(changes)
    return significance.rows_needed(spread * rows / len(changes))


def test_rows_needed_counts_rows_of_the_data_set() -> None:
    """MMBench has four rows a question, and only some rows of ScienceQA have images."""
    ours, theirs = rotations(5, 0.9), rotations(6, 0.95)
    metrics = PairedAnswers.of(ours, theirs, benchmark("mmbench")).metrics()
    assert metrics["rows_compared"] == 240
    assert metrics["rows_needed"] == needed(
        [all_rotations_right(ours, each) - all_rotations_right(theirs, each) for each in range(60)],
        240,
    )

    def science(seed: int, right: float) -> pa.Table:
        dice = random.Random(seed)
        rows = [{"row_id": f"{each:03}", "correct": dice.random() < right} for each in range(150)]
        return table(
            [row | {"meta": [("image", "no" if at % 3 else "yes")]} for at, row in enumerate(rows)]
        )

    ours, theirs = science(1, 0.6), science(2, 0.8)
    scores_here, other = scores_by_id(ours), scores_by_id(theirs)
    metrics = PairedAnswers.of(ours, theirs, benchmark("scienceqa")).metrics()
    assert metrics["rows_compared"] == 150
    assert metrics["rows_needed"] == needed(
        [int(scores_here[each] - other[each]) for each in sorted(scores_here)[::3]], 150
    )


def test_p_value_of_f1_equals_a_loop_that_swaps_images() -> None:
    """POPE's F1 is not a mean."""
    dice = np.random.default_rng(0)

    def run(right: float) -> pa.Table:
        return table(
            [
                {
                    "row_id": f"{image:03}{label}",
                    "type": "random",
                    "reference": [label],
                    "media": [str(image)],
                }
                | {"correct": bool(dice.random() < right)}
                for image in range(80)
                for label in ("no", "yes")
            ]
        )

    ours, theirs = run(0.76), run(0.84)
    bench = benchmark("pope")
    right = [np.array(each["correct"]) for each in (ours, theirs)]

    def f1(correct: np.ndarray) -> float:
        swapped = ours.set_column(ours.column_names.index("correct"), "correct", pa.array(correct))
        return value(bench.metrics(AnswerArrays(swapped))["f1"])

    seen = abs(f1(right[0]) - f1(right[1]))
    extreme = 0
    for _ in range(1000):
        swap = np.repeat(dice.random(80) < 0.5, 2)
        one, other = np.where(swap, right[1], right[0]), np.where(swap, right[0], right[1])
        extreme += abs(f1(one) - f1(other)) >= seen - 1e-9
    result = PairedAnswers.of(ours, theirs, bench).p_value()
    assert 0.005 < result < 0.5
    assert result == pytest.approx(extreme / 1000, abs=0.05)


def test_hard_split_has_the_rows_that_downsampling_gets_wrong() -> None:
    ours, coarse = random_answers(7, right=0.8), random_answers(8)
    scores_here, theirs = scores_by_id(ours), scores_by_id(coarse)
    rows = [each for each in scores_here.keys() & theirs.keys() if theirs[each] == 0]
    result = comparison.hard_split(ours, coarse, benchmark("manifest"))
    assert result is not None
    assert result.rows == len(rows)
    assert result.accuracy.value == pytest.approx(
        sum(scores_here[each] for each in rows) / len(rows)
    )
    assert result.accuracy.low < result.accuracy.value < result.accuracy.high
    itself = comparison.hard_split(coarse, coarse, benchmark("manifest"))
    assert itself is not None
    assert itself.accuracy.value == 0
    fine = table([{"row_id": "1", "media": ["a"], "correct": True}])
    assert comparison.hard_split(fine, fine, benchmark("manifest")) is None


def test_runs_without_common_rows_have_no_metrics() -> None:
    one, other = (
        random_answers(9).slice(0, 20),
        table([{"row_id": "elsewhere", "media": ["a"], "correct": True}]),
    )
    assert PairedAnswers.of(one, other, benchmark("manifest")).metrics() == {}
    wrong = table([{"row_id": "1", "media": ["a"], "correct": False}])
    assert PairedAnswers.of(wrong, wrong, benchmark("manifest")).metrics() == {}
