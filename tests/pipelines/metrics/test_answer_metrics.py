"""Metrics of the official scorers, computed by hand from tables of a few rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.benchmarks import benchmark
from pipelines.metrics import intervals, summary
from pipelines.metrics.answer_metrics import AnswerArrays, value
from pipelines.results.answer_schema import ANSWER_SCHEMA


def answer_arrays(rows: Sequence[dict[str, Any]]) -> AnswerArrays:
    full = [
        {
            "row_id": str(number),
            "status": "ok",
            "score": None if each.get("correct") is None else float(each["correct"]),
        }
        | {"type": "", "media": [str(number)], "question": "a b", "reference": ["x"], "meta": []}
        | each
        for number, each in enumerate(rows)
    ]
    return AnswerArrays(pa.Table.from_pylist(full, schema=ANSWER_SCHEMA))


def metric_values(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {
        key: value(figure) for key, figure in benchmark(name).metrics(answer_arrays(rows)).items()
    }


def test_pope_metrics_by_split_equal_confusions_by_hand() -> None:
    """A split without a yes has a precision of 0 and is not an error."""
    predictions = {
        "adversarial": [
            ("yes", 1),
            ("yes", 1),
            ("yes", 0),
            ("no", 1),
            ("no", 0),
        ],  # TP 2, FN 1, TN 1, FP 1
        "random": [("yes", 0), ("no", 1)],  # never says yes
    }
    rows = [
        {"type": split, "reference": [label], "correct": bool(right)}
        for split, answers in predictions.items()
        for label, right in answers
    ]
    rows.append({"type": "random", "reference": ["yes"], "status": "error"})
    result = metric_values("pope", rows)
    assert result["adversarial/precision"] == pytest.approx(2 / 3)
    assert result["adversarial/recall"] == pytest.approx(2 / 3)
    assert result["adversarial/f1"] == pytest.approx(2 / 3)
    assert result["adversarial/accuracy"] == pytest.approx(3 / 5)
    assert result["adversarial/yes_ratio"] == pytest.approx(3 / 5)
    assert (result["random/precision"], result["random/f1"], result["random/yes_ratio"]) == (
        0,
        0,
        0,
    )
    assert result["f1"] == pytest.approx(1 / 3)
    assert result["accuracy"] == pytest.approx((3 / 5 + 1 / 2) / 2)


def test_mme_points_leave_out_incomplete_images() -> None:
    """Existence has one of two images complete; OCR has an image with an unanswered row."""
    rows = [
        {"row_id": f"existence/{image}/{index}", "type": "existence", "correct": right}
        for image, index, right in [
            ("1", "a", True),
            ("2", "a", True),
            ("1", "b", True),
            ("2", "b", False),
        ]
    ]
    rows += [
        {"row_id": "OCR/1/a", "type": "OCR", "correct": True},
        {"row_id": "OCR/1/b", "type": "OCR", "status": "error"},
        {"row_id": "code_reasoning/1/a", "type": "code_reasoning", "correct": True},
        {"row_id": "code_reasoning/1/b", "type": "code_reasoning", "correct": True},
    ]
    result = metric_values("mme", rows)
    assert result["existence/points"] == pytest.approx(100 * 0.75 + 100 * 0.5)
    assert result["existence/acc_plus"] == pytest.approx(0.5)
    assert result["OCR/points"] == pytest.approx(100)
    assert result["perception"] == pytest.approx(225)
    assert result["cognition"] == pytest.approx(200)
    assert result["total"] == pytest.approx(425)


def test_mmbench_circular_needs_all_rotations() -> None:
    """Question 1 is right in all rotations, 2 in one, and 3 has an unanswered rotation."""
    rows = [
        *[("1", True), ("1000001", True), ("2000001", True)],
        *[("2", True), ("1000002", False), ("3", True)],
    ]
    table = [
        {
            "row_id": id,
            "correct": right,
            "type": "c",
            "options": ["x", "y"],
            "meta": [("l2-category", "big")],
        }
        for id, right in rows
    ]
    table.append({"row_id": "1000003", "status": "error", "type": "c", "options": ["x", "y"]})
    result = metric_values("mmbench", table)
    assert result["circular"] == pytest.approx(1 / 2)
    assert result["plain"] == pytest.approx(1)
    assert result["every_row"] == pytest.approx(5 / 6)
    assert result["c/circular"] == result["big/circular"] == pytest.approx(1 / 2)
    assert result["plain_chance"] == pytest.approx(1 / 2)
    assert result["circular_chance"] == pytest.approx((1 / 8 + 1 / 4) / 2)


def test_gqa_metrics_by_structure_semantics_and_words() -> None:
    rows = [
        {"type": "query", "correct": True, "meta": [("semantic", "rel")], "question": "what is it"},
        {"type": "query", "correct": False, "meta": [("semantic", "attr")]},
        {"type": "verify", "correct": True, "meta": [("semantic", "attr")]},
        {"type": "choose", "correct": False},
    ]
    result = metric_values("gqa", rows)
    assert (result["accuracy"], result["open"], result["binary"]) == (0.5, 0.5, 0.5)
    assert (result["semantic/attr"], result["semantic/rel"]) == (0.5, 1.0)
    assert (result["words/02"], result["words/03"]) == (pytest.approx(1 / 3), 1.0)


def test_scienceqa_metrics_by_subject_modality_and_grade() -> None:
    rows = [
        {
            "type": "natural science",
            "correct": True,
            "meta": [("image", "yes"), ("text", "no"), ("grade", "6")],
        },
        {
            "type": "natural science",
            "correct": False,
            "meta": [("image", "yes"), ("text", "yes"), ("grade", "7")],
        },
        {
            "type": "social science",
            "correct": True,
            "meta": [("image", "no"), ("text", "no"), ("grade", "12")],
        },
    ]
    rows = [{**each, "options": ["a", "b", "c"]} for each in rows]
    result = metric_values("scienceqa", rows)
    metrics = summary.summarise(answer_arrays(rows).table, None, benchmark("scienceqa"))
    assert metrics["scienceqa.natural science.accuracy"] == 0.5
    assert metrics["scienceqa.social science.accuracy"] == 1
    assert result["img"] == pytest.approx(1 / 2)
    assert result["all"] == pytest.approx(2 / 3)
    assert (result["modality/image"], result["modality/text"], result["modality/none"]) == (
        0.5,
        0,
        1,
    )
    assert (result["grade/1-6"], result["grade/7-12"]) == (1, 0.5)
    assert result["chance"] == pytest.approx(1 / 3)


def test_f1_interval_equals_a_plain_bootstrap() -> None:
    """The retention of the same answers is 1."""
    dice = np.random.default_rng(0)
    rows = [
        {
            "type": split,
            "reference": [label],
            "correct": bool(dice.random() < 0.8),
            "media": [str(image)],
        }
        for split in ("adversarial", "random")
        for image in range(120)
        for label in ("yes", "no")
    ]
    bench = benchmark("pope")
    answers = answer_arrays(rows).table
    metrics = summary.summarise(answers, answers, bench)
    assert metrics["accuracy"] == pytest.approx(metrics["pope.f1"])
    assert metrics["accuracy_retention"] == pytest.approx(1)
    drawn = []
    for _ in range(300):
        images = dice.integers(0, 120, 120)
        take = np.concatenate(
            [[2 * image, 2 * image + 1, 240 + 2 * image, 241 + 2 * image] for image in images]
        )
        drawn.append(value(bench.metrics(AnswerArrays(answers.take(take)))["f1"]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert metrics["accuracy_ci_low"] == pytest.approx(low, abs=0.15 * (high - low))
    assert metrics["accuracy_ci_high"] == pytest.approx(high, abs=0.15 * (high - low))


def test_accuracy_of_points_is_a_share_of_the_maximum() -> None:
    rows = [
        {
            "row_id": f"{subtask}/{image}/{index}",
            "type": subtask,
            "correct": True,
            "media": [f"{subtask}/{image}"],
        }
        for subtask in ("existence", "OCR")
        for image in range(3)
        for index in "ab"
    ]
    metrics = summary.summarise(answer_arrays(rows).table, None, benchmark("mme"))
    assert metrics["mme.total"] == pytest.approx(400)
    assert metrics["accuracy"] == pytest.approx(400 / 2800)
    parts = intervals.RatioSum([1.0], [np.array([1.0, 0.0])], [np.array([0.0, 0.0])])
    assert intervals.ratio_sum(parts, np.array([0, 1])).value == 0


def test_headline_without_rows_is_left_out() -> None:
    rows = [{"correct": True, "meta": [("image", "no"), ("text", "no")], "options": ["a", "b"]}]
    metrics = summary.summarise(
        answer_arrays(rows).table, answer_arrays(rows).table, benchmark("scienceqa")
    )
    assert metrics["scienceqa.all"] == 1
    assert not {"accuracy", "accuracy_retention", "scienceqa.img"} & set(metrics)
