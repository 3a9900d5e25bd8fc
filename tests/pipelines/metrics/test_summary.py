"""The numbers at the end of a job, against plain loops over the same answers and against scipy."""

from __future__ import annotations

import json
import math
import random
import statistics as stdlib_statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.metrics import intervals, summary
from pipelines.metrics.answer_metrics import AnswerArrays, Metric, mean_over
from pipelines.results.answer_schema import ANSWER_SCHEMA
from pipelines.results.answers import AnswerParts
from pipelines.results.storage import Folder

scipy_stats = pytest.importorskip("scipy.stats")


@dataclass
class Shapes:
    name: str = "shapes"
    headline: str = "accuracy"
    headline_max: float = 1.0

    def metrics(self, answers: AnswerArrays) -> dict[str, Metric]:
        return {"accuracy": mean_over(answers.scores, answers.scored)}

    @property
    def chances(self) -> dict[str, float]:
        return {"color": 0.25}


def answer(row_id: int, media: str, correct: bool | None, **more: Any) -> dict[str, Any]:
    return {
        "row_id": f"row-{row_id:04d}",
        "media": [media],
        "type": "",
        "correct": correct,
        "status": "ok",
        "error": None,
        "budget": 64.0,
        "visual_tokens_in": 576,
        "prefill_ms": 10.0,
        "decode_ms": 5.0,
        "compress_ms": 1.0,
        **more,
    }


def answers(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=ANSWER_SCHEMA)


def random_answers(seed: int, rows: int = 400, per_medium: int = 4) -> pa.Table:
    """Return random answers: several questions a medium, errors, rows without a reference."""
    dice = random.Random(seed)
    hard = [dice.random() for _ in range(rows)]
    result = []
    for number in range(rows):
        medium = number // per_medium
        row = answer(
            number,
            f"{medium}.png",
            dice.random() < 0.3 + 0.6 * hard[medium],
            type=dice.choice(["color", "count (all)", ""]),
            budget=dice.choice([32.0, 64.0]),
            visual_tokens_in=dice.choice([256, 576]),
            prefill_ms=dice.uniform(5, 50),
            decode_ms=dice.uniform(5, 50),
            compress_ms=dice.uniform(0, 2),
            peak_memory_bytes=dice.randrange(2**30),
        )
        if dice.random() < 0.05:
            row |= {
                "status": "error",
                "error": "OSError: truncated: at 3",
                "correct": None,
                "prefill_ms": None,
            }
        elif dice.random() < 0.05:
            row["correct"] = None
        result.append(row)
    dice.shuffle(result)
    return answers(result)


def test_every_metric_equals_a_plain_loop() -> None:
    table, vanilla = random_answers(1), random_answers(2)
    result = summary.summarise(table, vanilla, Shapes(), {"wall_s": 12.5, "load_s": 3.0})
    rows = table.to_pylist()
    good = [row for row in rows if row["status"] == "ok"]
    scored = [row for row in good if row["correct"] is not None]
    assert next(iter(result)) == "accuracy"
    assert result["rows_total"] == 400
    assert result["rows_error"] == 400 - len(good) > 0
    assert result["rows_scored"] == len(scored) < len(good)
    assert result["accuracy"] == pytest.approx(sum(row["correct"] for row in scored) / len(scored))
    for name, kind in (("color", "color"), ("count _all_", "count (all)")):
        mine = [row["correct"] for row in scored if row["type"] == kind]
        assert result[f"shapes.{name}.accuracy"] == pytest.approx(sum(mine) / len(mine))
        assert result[f"shapes.{name}.rows"] == len(mine)
        assert result[f"shapes.{name}.accuracy_ci_low"] < result[f"shapes.{name}.accuracy"]
    assert result["shapes.color.chance"] == 0.25
    assert "shapes.count _all_.chance" not in result
    theirs = {row["row_id"]: row["correct"] for row in vanilla.to_pylist() if row["status"] == "ok"}
    both = [
        (row["correct"], theirs[row["row_id"]])
        for row in scored
        if theirs.get(row["row_id"]) is not None
    ]
    assert result["accuracy_retention"] == pytest.approx(
        sum(a for a, _ in both) / sum(b for _, b in both)
    )
    assert (
        result["accuracy_retention_ci_low"]
        < result["accuracy_retention"]
        < result["accuracy_retention_ci_high"]
    )
    assert result["visual_retention"] == pytest.approx(
        stdlib_statistics.fmean(row["budget"] / row["visual_tokens_in"] for row in good)
    )
    assert result["visual_tokens_kept"] == pytest.approx(
        stdlib_statistics.fmean(row["budget"] for row in good)
    )
    seconds = sum(row["prefill_ms"] + row["decode_ms"] for row in good) / 1000
    assert result["samples_per_s"] == pytest.approx(len(good) / seconds)
    assert result["visual_tokens_per_s"] == pytest.approx(
        sum(row["visual_tokens_in"] for row in good) / seconds
    )
    prefill = sorted(row["prefill_ms"] for row in good)
    assert result["prefill_ms_p50"] == pytest.approx(stdlib_statistics.median(prefill))
    index = 0.95 * (len(prefill) - 1)
    below = math.floor(index)
    assert result["prefill_ms_p95"] == pytest.approx(
        prefill[below] + (index - below) * (prefill[below + 1] - prefill[below])
    )
    assert result["compress_ms_p50"] == pytest.approx(
        stdlib_statistics.median(row["compress_ms"] for row in good)
    )
    assert result["peak_memory_gib"] == max(row["peak_memory_bytes"] for row in good) / 2**30
    assert (result["wall_s"], result["load_s"]) == (12.5, 3.0)


def test_metrics_do_not_depend_on_row_order_or_files(tmp_path: Any) -> None:
    table, vanilla = random_answers(3), random_answers(4)
    result = summary.summarise(table, vanilla, Shapes())
    pq.write_table(table.sort_by("row_id").slice(0, 100), tmp_path / "a.parquet")
    pq.write_table(table.sort_by("row_id").slice(100), tmp_path / "b.parquet")
    again = summary.summarise(pq.read_table(tmp_path), vanilla.sort_by("prefill_ms"), Shapes())
    assert again == pytest.approx(result, rel=1e-12)
    assert {key: value for key, value in again.items() if "ci" in key} == {
        key: value for key, value in result.items() if "ci" in key
    }


def test_score_takes_precedence_over_correct() -> None:
    rows = [answer(number, f"{number}", number % 2 == 0, score=number / 10) for number in range(10)]
    result = summary.summarise(answers(rows), None, Shapes())
    assert result["accuracy"] == pytest.approx(0.45)
    assert result["accuracy_ci_low"] < 0.45 < result["accuracy_ci_high"]


def test_unknown_metrics_are_left_out() -> None:
    none = {
        "budget": None,
        "visual_tokens_in": None,
        "prefill_ms": None,
        "decode_ms": None,
        "compress_ms": None,
    }
    rows = [answer(number, "a", None, **none) for number in range(3)]
    assert summary.summarise(answers(rows), answers(rows), Shapes()) == {
        "rows_total": 3,
        "rows_error": 0,
    }
    assert summary.summarise(answers([]), answers([]), Shapes()) == {
        "rows_total": 0,
        "rows_error": 0,
    }


@given(st.integers(1, 300), st.data())
def test_wilson_equals_scipy(rows: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, rows))
    result = intervals.wilson(right, rows)
    expected = scipy_stats.binomtest(right, rows).proportion_ci(0.95, method="wilson")
    assert result == pytest.approx((right / rows, expected.low, expected.high), abs=1e-12)


def test_interval_of_one_question_a_medium_is_wilsons() -> None:
    rows = [answer(number, f"{number}", number < 30) for number in range(40)]
    result = summary.summarise(answers(rows), None, Shapes())
    expected = scipy_stats.binomtest(30, 40).proportion_ci(0.95, method="wilson")
    assert (result["accuracy_ci_low"], result["accuracy_ci_high"]) == pytest.approx(
        (expected.low, expected.high)
    )


def clustered_scores(seed: int, media: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dice = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(media), dice.integers(1, 7, media))
    easy = dice.uniform(0.1, 0.9, media)[cluster]
    return (
        (dice.random(len(cluster)) < easy) * 1.0,
        (dice.random(len(cluster)) < easy) * 1.0,
        cluster,
    )


@pytest.mark.parametrize("seed", range(5))
def test_bootstrap_equals_scipy(seed: int) -> None:
    ours, theirs, cluster = clustered_scores(seed)
    sums, reference, sizes = (
        np.bincount(cluster, weights=w) for w in (ours, theirs, np.ones_like(ours))
    )
    for result, pair in (
        (intervals.mean(ours, cluster), (sums, sizes)),
        (intervals.retention(ours, theirs, cluster), (sums, reference)),
    ):
        expected = scipy_stats.bootstrap(
            pair,
            lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=20_000,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        assert result is not None
        assert result.value == pytest.approx(pair[0].sum() / pair[1].sum())
        width = expected.high - expected.low
        assert result.low == pytest.approx(expected.low, abs=0.06 * width)
        assert result.high == pytest.approx(expected.high, abs=0.06 * width)


def test_intervals_of_clustered_rows_cover_95_percent() -> None:
    """Some media are easy: row by row, far fewer intervals would contain the true value."""
    dice = np.random.default_rng(0)
    held, naive = 0, 0
    for _ in range(400):
        cluster = np.repeat(np.arange(80), 6)
        values = (dice.random(480) < dice.choice([0.1, 0.9], 80)[cluster]) * 1.0
        result = intervals.mean(values, cluster)
        held += result.low <= 0.5 <= result.high
        alone = intervals.wilson(values.sum(), 480)
        naive += alone.low <= 0.5 <= alone.high
    assert 0.92 <= held / 400 <= 0.98
    assert naive / 400 < 0.8


def test_intervals_without_spread_are_not_empty() -> None:
    cluster = np.repeat(np.arange(10), 3)
    result = intervals.mean(np.ones(30), cluster)
    assert result == intervals.wilson(10, 10)
    same = intervals.retention(np.tile([1.0, 0.0, 1.0], 10), np.tile([1.0, 0.0, 1.0], 10), cluster)
    assert same is not None
    assert same.value == 1
    assert 0 < same.low < 1 < same.high < 1.5
    assert intervals.retention(np.ones(30), np.zeros(30), cluster) is None
    single = intervals.mean([1.0, 0.0], np.array([0, 0]))
    assert single.low < 0.2
    assert single.high > 0.8


def test_seed_determines_the_interval() -> None:
    ours, _, cluster = clustered_scores(9)
    assert intervals.mean(ours, cluster, seed=3) == intervals.mean(ours, cluster, seed=3)
    assert intervals.mean(ours, cluster, seed=3) != intervals.mean(ours, cluster, seed=4)


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=3), max_size=12))
def test_rows_that_share_a_medium_are_one_cluster(media: list[list[str]]) -> None:
    result = intervals.clusters(pa.array(media, pa.list_(pa.string())))
    groups = [{number} for number in range(len(media))]
    for one in range(len(media)):
        for other in range(len(media)):
            if set(media[one]) & set(media[other]):
                merged = groups[one] | groups[other]
                for number in merged:
                    groups[number] = merged
    assert [[bool(a == b) for b in result] for a in result] == [
        [other in groups[one] for other in range(len(media))] for one in range(len(media))
    ]
    assert not len(result) or sorted(set(result.tolist())) == list(range(result.max() + 1))


def test_row_without_media_is_its_own_cluster() -> None:
    assert (
        len(
            set(
                intervals.clusters(
                    pa.array([None, [], ["a"], ["a"]], pa.list_(pa.string()))
                ).tolist()
            )
        )
        == 3
    )


def test_failures_are_counted_by_class() -> None:
    broken = {"status": "error"}
    rows = [
        answer(1, "a", True),
        *(
            answer(number, "a", None, error=f"OSError: file {number}: gone", **broken)
            for number in range(2, 7)
        ),
        answer(8, "b", None, error="ValueError: empty", **broken),
        answer(9, "b", None, error=None, **broken),
    ]
    random.Random(0).shuffle(rows)
    table = answers(rows).select(summary.ERROR_COLUMNS)
    result = summary.failures([table])
    assert result == summary.failures(table.slice(start, 2) for start in range(0, len(table), 2))
    assert result[0] == ("OSError", 5, "file 2: gone", ("row-0002", "row-0003", "row-0004"))
    assert [(failure.kind, failure.rows) for failure in result[1:]] == [
        ("ValueError", 1),
        ("unknown", 1),
    ]
    lines = summary.failure_lines(result).splitlines()
    assert lines[0] == "5 x OSError: file 2: gone"
    assert lines[1].strip() == "row-0002, row-0003, row-0004, ..."
    assert summary.failure_lines([]) == ""


def test_table_is_aligned_and_at_most_100_wide() -> None:
    full = summary.summarise(random_answers(5), random_answers(6), Shapes())
    big = {
        **full,
        "visual_tokens_kept": 2880.0,
        "samples_per_s": 12345.6,
        "rows_total": 1_000_000,
        "rows_error": 99_999,
    }
    lines = summary.table(
        [("vanilla", {"rows_total": 3}), ("apet-64", full), ("x" * 80, big)]
    ).splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 100
    assert f"{100 * full['accuracy']:.1f} [{100 * full['accuracy_ci_low']:.1f}" in lines[3]
    assert "12,346" in lines[4]
    assert "99999/1000000" in lines[4]
    assert lines[2].split()[1:] == ["-"] * 6 + ["0/3"]


def test_table_shows_gpu_utilization_only_with_a_gpu() -> None:
    assert "GPU" not in summary.table([("vanilla", {"rows_total": 3, "worker_busy": 0.5})])
    points = [("vanilla", {"rows_total": 3, "gpu_busy": 0.957}), ("apet-64", {"rows_total": 3})]
    lines = summary.table(points).splitlines()
    assert [line.split("  ")[-1].strip() for line in (lines[0], *lines[2:])] == [
        "GPU busy",
        "95.7 %",
        "-",
    ]
    assert (
        summary.summarise(random_answers(5), None, Shapes(), {"gpu_busy": 0.957})["gpu_busy"]
        == 0.957
    )


def test_sample_has_errors_first_and_spans_the_run() -> None:
    result = json.loads(summary.sample(random_answers(7), rows=40))
    assert result["columns"][0] == "row_id"
    ids = [line[0] for line in result["data"]]
    assert len(ids) == len(set(ids)) == 40
    status = [line[result["columns"].index("status")] for line in result["data"]]
    assert status[:10] == ["error"] * 10
    assert set(status[10:]) == {"ok"}
    assert min(ids[10:]) < "row-0020"
    assert max(ids[10:]) > "row-0380"
    assert json.loads(summary.sample(answers([])))["data"] == []


def test_retention_of_a_million_rows_is_fast() -> None:
    dice = np.random.default_rng(0)
    values, reference = ((dice.random(1_000_000) < 0.6) * 1.0 for _ in range(2))
    cluster = np.repeat(np.arange(250_000), 4)
    result = intervals.retention(values, reference, cluster)
    assert result is not None
    assert result.low < 1 < result.high


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.usefixtures("subprocesses")
def test_summary_imports_nothing_heavy(tmp_path: Path) -> None:
    """Also when it lists errors. mlflow and pandas would slow down every start."""
    AnswerParts(Folder(str(tmp_path)), ["a", "b"]).write(
        [{"row_id": "a", "status": "error"}, {"row_id": "b", "status": "ok"}]
    )
    heavy = ("torch", "ray", "mlflow", "pandas")
    code = f"""
import sys, pipelines.results.run_record
from pipelines.metrics import summary
from pipelines.results import answers, storage
folder = storage.Folder({str(tmp_path)!r})
assert len(summary.failures(answers.batches(folder, summary.ERROR_COLUMNS))) == 1
assert answers.read(folder).num_rows == 2
print([name for name in {heavy} if name in sys.modules])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
