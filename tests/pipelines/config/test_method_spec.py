"""Methods with their options and budgets: parsing, names, and building."""

from __future__ import annotations

import json
import re
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apet import METHODS, Budget
from apet.methods.base import ModelLayout
from pipelines.config import method_spec, parsers
from pipelines.config.method_spec import (
    MAX_NAME,
    MethodSpec,
    expand_methods,
    parse_method,
)


def test_known_methods_are_the_methods_of_apet() -> None:
    assert sorted(method_spec.METHODS) == sorted(METHODS)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("vanilla", "vanilla"),
        ("apet:budget=64", "apet-64"),
        ("apet: basis=5, budget=10%", "apet-10pct-basis5"),
        ("apet:sampling=dpc,budget=64,merge=false", "apet-64-merge=false-sampling=dpc"),
        ("sparsevlm:budget=12.50%,tau=0.25", "sparsevlm-12.5pct-tau0.25"),
        (
            "tome:schedule=vision.6=50%, encoder=30%,16=5%",
            "tome-vision.6=50pct_encoder=30pct_16=5pct",
        ),
        ("apet:schedule=encoder=96,16=32,basis=5", "apet-encoder=96_16=32-basis5"),
    ],
)
def test_name_of_a_method_spec(given: str, name: str) -> None:
    assert parse_method(given).name == name


def test_options_that_read_as_numbers_are_numbers() -> None:
    assert dict(parse_method("apet:basis=5,merge=true,sampling=dpc").options) == {
        "basis": 5,
        "merge": True,
        "sampling": "dpc",
    }
    assert parse_method("apet:basis=5,seed=1") == parse_method("apet:seed=1,basis=5")


def test_every_method_gets_every_budget_once() -> None:
    specs = expand_methods(
        ["vanilla", "apet", "fastv:budget=128", "apet:basis=5"], ["64", "10%"], None
    )
    assert [spec.name for spec in specs] == [
        "vanilla",
        "apet-64",
        "apet-10pct",
        "fastv-128",
        "apet-64-basis5",
        "apet-10pct-basis5",
    ]
    with pytest.raises(ValueError, match="--budget 64"):
        expand_methods(["apet"], [], None)


OPTIONS = st.dictionaries(
    st.sampled_from(["budget", "schedule", "basis", "sampling", "merge", "pivot_image"]),
    st.one_of(st.integers(), st.floats(0, 1), st.text(string.printable + "é%", min_size=1)),
    max_size=4,
).map(
    lambda options: {
        key: value for key, value in options.items() if key not in ("budget", "schedule")
    }
)
SPENT = st.sampled_from(
    ["64", "6.4%", "10%", "encoder=64", "encoder=96,16=32", "full", ",".join(["16=32"] * 30)]
)


@given(
    st.lists(
        st.tuples(st.sampled_from(["apet", "apet_greedy", "dart"]), SPENT, OPTIONS), max_size=6
    )
)
def test_names_are_safe_short_and_unique(drawn: list[tuple[str, str, dict[str, Any]]]) -> None:
    specs = {
        MethodSpec.of(method, **{"schedule" if "=" in spent else "budget": spent}, **options)
        for method, spent, options in drawn
    }
    names = {spec.name for spec in specs}
    assert all(re.fullmatch(r"[A-Za-z0-9_.=-]+", name) and len(name) <= MAX_NAME for name in names)
    assert len(names) == len({json.dumps([spec.method, spec.options]) for spec in specs})


def test_method_spec_builds_the_method() -> None:
    assert parse_method("apet:basis=5,sampling=dpc,budget=10%").build() == METHODS["apet"](
        budget="10%",
        basis=5,
        sampling="dpc",  # type: ignore[call-arg]
    )
    assert parse_method("vanilla").build().name == "vanilla"
    assert parse_method("visionzip:budget=64,contextual=0").build() == METHODS["visionzip"](
        budget="64", contextual=0
    )  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("apet:bassi=5,budget=64", "did you mean 'basis'?"),
        ("apet:basis=five,budget=64", "expected a whole number"),
        ("apet:basis=5.5,budget=64", "expected a whole number"),
        ("apet:merge=1,budget=64", "expected true or false"),
        ("apet:sampling=dcp,budget=64", "did you mean 'dpc'?"),
        ("sparsevlm:tau=2,budget=64", "from 0 to 1"),
        ("visionzip:contextual=half,budget=64", "expected a number"),
    ],
)
def test_wrong_option_of_a_method_is_an_error(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        parse_method(text).build()
    assert expected in str(error.value)


def test_error_of_an_impossible_budget_names_the_smallest_possible_one() -> None:
    model = ModelLayout(layers=32, tower_layers=23, first_decoder_site=0, encoder_only=False)
    with pytest.raises(ValueError, match=r"fastv-10: .* the smallest possible is \d+") as error:
        parse_method("fastv:budget=10").build(model, 576)
    least = str(error.value).rpartition(" ")[2]
    parse_method(f"fastv:budget={least}").build(model, 576)
    with pytest.raises(ValueError, match="smallest possible"):
        parse_method(f"fastv:budget={int(least) - 1}").build(model, 576)
    with pytest.raises(ValueError, match="smallest possible"):
        parse_method("fastv:budget=1%").build(model)  # impossible at any size
    parse_method("fastv:budget=10").build(model)  # depends on the size
    with pytest.raises(ValueError, match="its layers are 0 to 31"):
        parse_method("apet:schedule=encoder=96,32=32").build(model, 576)
    with pytest.raises(ValueError, match="tokens only drop"):
        parse_method("apet:schedule=encoder=10%,16=20%").build(model)


@given(
    st.one_of(
        st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,3})?%?", fullmatch=True),
        st.text(string.printable, max_size=6),
    )
)
def test_budget_parser_agrees_with_apet(text: str) -> None:
    try:
        expected = Budget.parse(text)
    except ValueError:
        with pytest.raises(ValueError, match="not a valid budget"):
            parsers.budget(text)
    else:
        assert parsers.budget(text) == str(expected)
        assert Budget.parse(parsers.budget(text)) == expected
