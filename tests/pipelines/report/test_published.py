"""The paper's figures: the averages that it prints follow from its rows."""

from __future__ import annotations

import pytest

from pipelines.config.method_spec import METHODS
from pipelines.report.published import Entry, Figures, entries_of, methods_of, published

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


def average(figures: Figures, vanilla: Figures) -> float:
    ratios = [
        one / base
        for one, base in zip(figures, vanilla, strict=True)
        if one is not None and base is not None
    ]
    return 100 * sum(ratios) / len(ratios)


@pytest.mark.parametrize(
    "table", published()["accuracy"], ids=lambda table: f"table {table['table']}"
)
def test_averages_equal_the_printed_ones(table: Entry) -> None:
    for budget, methods in table["budgets"].items():
        found = [average(figures, table["vanilla"]) for figures in methods.values()]
        assert found == pytest.approx(PRINTED[table["table"], budget], abs=0.06)
    if "scores" in table:
        found = {
            name: average(row, table["scores"]["vanilla"])
            for name, row in table["scores"].items()
            if name != "vanilla"
        }
        assert found == pytest.approx(SCORES, abs=0.06)


def test_benchmarks_and_methods_exist() -> None:
    from pipelines.benchmarks import BENCHMARKS

    for table in published()["accuracy"]:
        assert set(table["benchmarks"]) < set(BENCHMARKS)
        assert {name for methods in table["budgets"].values() for name in methods} < set(METHODS)
    for half in published()["ablations"]:
        # ApET's own value has the figures of the main tables.
        main = next(table for table in published()["accuracy"] if table["model"] == half["model"])
        own = main["budgets"][half["budget"]]["apet"]
        assert half["values"]["fps" if half["option"] == "sampling" else "10"] == [
            own[main["benchmarks"].index(name)] for name in half["benchmarks"]
        ]


def test_speed_ups_equal_the_printed_ones() -> None:
    found = {
        half["model"]: half["methods"]["vanilla"][0] / half["methods"]["apet"][0]
        for half in published()["efficiency"]
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
        ("video-llava-1.5-7b", None),
        ("llava-1.5-13b-hf", None),
        ("llava-v1.6-mistral-7b-hf", None),
        ("demo-llava", None),
    ],
)
def test_model_names_select_a_table(model: str, number: int | None) -> None:
    assert [entry["table"] for entry in entries_of(model, "accuracy")] == (
        [number] if number else []
    )


def test_budgets_in_percent_match_budgets_in_tokens() -> None:
    llava, _, qwen, video = published()["accuracy"]
    assert methods_of(llava, "64") is llava["budgets"]["64"]
    assert methods_of(llava, "33.3333%") is llava["budgets"]["192"]
    assert methods_of(video, "12.5%") is video["budgets"]["256"]
    assert methods_of(qwen, "10%") is qwen["budgets"]["10%"]
    assert methods_of(llava, "") == {"vanilla": llava["vanilla"]}
    assert methods_of(llava, "65") == {}
    assert methods_of(llava, "encoder=96,16=32") == {}
    assert methods_of(llava, "encoder=30%") == {}
