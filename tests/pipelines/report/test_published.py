"""The paper's figures: the averages that it prints follow from the rows, by our rule."""

from __future__ import annotations

import pytest

from pipelines.config.method_spec import known_methods
from pipelines.report import published

PRINTED = {
    (1, "192"): (88.5, 90.4, 96.1, 97.2, 97.8, 98.0),
    (1, "128"): (80.4, 85.4, 93.7, 96.2, 96.2, 97.1),
    (1, "64"): (70.1, 76.7, 87.2, 86.6, 92.7, 95.2),
    (2, "640"): (95.7, 95.8, 97.4, 97.6),
    (2, "320"): (93.7, 90.4, 93.7, 94.2),
    (2, "160"): (80.2, 86.4, 88.2, 90.1),
    (3, "20%"): (89.8, 91.6, 95.2, 96.3),
    (3, "10%"): (84.5, 86.6, 90.3, 92.1),
    (4, "256"): (83.9, 84.6, 82.4, 94.4, 100.7),
}
SCORES = {"fastv": 94.9, "sparsevlm": 95.2, "pdrop": 94.4, "visionzip": 98.2, "apet": 100.4}


def average(figures: published.Row, vanilla: published.Row) -> float:
    ratios = [
        one / base
        for one, base in zip(figures, vanilla, strict=True)
        if one is not None and base is not None
    ]
    return 100 * sum(ratios) / len(ratios)


@pytest.mark.parametrize("table", published.ACCURACY, ids=lambda table: f"table {table.table}")
def test_averages_are_the_printed_ones(table: published.Accuracy) -> None:
    for budget, methods in table.budgets.items():
        found = [average(figures, table.vanilla) for figures in methods.values()]
        assert found == pytest.approx(PRINTED[table.table, budget], abs=0.06)
    if table.scores:
        found = {
            name: average(row, table.scores["vanilla"])
            for name, row in table.scores.items()
            if name != "vanilla"
        }
        assert found == pytest.approx(SCORES, abs=0.06)


def test_names_are_ours() -> None:
    from pipelines.benchmarks import BENCHMARKS

    for table in published.ACCURACY:
        assert set(table.benchmarks) < set(BENCHMARKS)
        assert {name for methods in table.budgets.values() for name in methods} < set(
            known_methods()
        )
    for half in published.ABLATIONS:  # the table's choice is that of the paper's main tables
        whole = next(table for table in published.ACCURACY if table.model == half.model)
        own = whole.budgets[half.budget]["apet"]
        assert half.values["fps" if half.option == "sampling" else "10"] == tuple(
            own[whole.benchmarks.index(name)] for name in half.benchmarks
        )


def test_speed_ups_are_the_printed_ones() -> None:
    found = {
        half.model: half.methods["vanilla"].total_s / half.methods["apet"].total_s
        for half in published.EFFICIENCY
    }
    assert list(found.values()) == pytest.approx([1.46, 1.30], abs=0.005)


@pytest.mark.parametrize(
    ("model", "number"),
    [
        ("llava-hf/llava-1.5-7b-hf", 1),
        ("liuhaotian/llava-v1.5-7b", 1),
        ("llava-v1.6-vicuna-7b-hf", 2),
        ("Qwen2.5-VL-7B-Instruct", 3),
        ("Video-LLaVA-7B-hf", 4),
        ("llava-1.5-13b-hf", None),
        ("llava-v1.6-mistral-7b-hf", None),
        ("demo-llava", None),
    ],
)
def test_a_model_has_its_table(model: str, number: int | None) -> None:
    table = published.accuracy(model)
    assert (table.table if table else None) == number


def test_a_share_is_a_budget_in_tokens() -> None:
    llava, _, qwen, video = published.ACCURACY
    assert published.budget_of(llava, "64") == "64"
    assert published.budget_of(llava, "33.3333%") == "192"
    assert published.budget_of(video, "12.5%") == "256"
    assert published.budget_of(qwen, "10%") == "10%"
    assert published.budget_of(llava, "65") is None
    assert published.budget_of(llava, "encoder=96,16=32") is None
