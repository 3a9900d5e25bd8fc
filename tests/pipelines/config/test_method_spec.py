"""What a method and its budget are asked as, what such a point is called, and which a model can do."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apet import METHODS, Budget, attach
from apet.methods.base import Model
from apet.models import FAMILIES
from pipelines.config import parsers
from pipelines.config.method_spec import (
    LONGEST,
    MethodSpec,
    expand_methods,
    known_methods,
    parse_method,
)
from pipelines.config.model_info import model_info
from tests.support import tiny


def test_the_methods_are_known_without_importing_them() -> None:
    assert set(known_methods()) == set(METHODS)


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
def test_names_of_points(given: str, name: str) -> None:
    assert parse_method(given).name == name


def test_options_are_numbers_where_they_read_as_such() -> None:
    assert dict(parse_method("apet:basis=5,merge=true,sampling=dpc").options) == {
        "basis": 5,
        "merge": True,
        "sampling": "dpc",
    }
    assert parse_method("apet:basis=5,seed=1") == parse_method("apet:seed=1,basis=5")


def test_every_method_meets_every_budget_once() -> None:
    found = expand_methods(
        ["vanilla", "apet", "fastv:budget=128", "apet:basis=5"], ["64", "10%"], None
    )
    assert [point.name for point in found] == [
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
def test_names_are_safe_short_and_unique(made: list[tuple[str, str, dict[str, Any]]]) -> None:
    found = {
        MethodSpec.of(method, **{"schedule" if "=" in spent else "budget": spent}, **options)
        for method, spent, options in made
    }
    names = {point.name for point in found}
    assert all(re.fullmatch(r"[A-Za-z0-9_.=-]+", name) and len(name) <= LONGEST for name in names)
    assert len(names) == len({json.dumps([point.method, point.options]) for point in found})


def test_a_point_becomes_the_method() -> None:
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
    ("given", "said"),
    [
        ("apet:bassi=5,budget=64", "did you mean 'basis'?"),
        ("apet:basis=five,budget=64", "takes a whole number"),
        ("apet:basis=5.5,budget=64", "takes a whole number"),
        ("apet:merge=1,budget=64", "takes true or false"),
        ("apet:sampling=dcp,budget=64", "did you mean 'dpc'?"),
        ("sparsevlm:tau=2,budget=64", "from 0 to 1"),
        ("visionzip:contextual=half,budget=64", "takes a number"),
    ],
)
def test_wrong_options_of_a_method_are_refused(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refusal:
        parse_method(given).build()
    assert said in str(refusal.value)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_is_known_without_its_weights(family: str, tmp_path: Path) -> None:
    model = tiny.model(family)
    model.config.save_pretrained(tmp_path)  # config.json alone
    known = model_info(str(tmp_path), frames=4)
    assert known.model == attach(model, METHODS["vanilla"]())._model
    assert known.visual_tokens == {"llava": 4 * 36, "video_llava": 4 * 36}.get(family)


def test_a_budget_out_of_reach_is_refused_with_the_smallest_possible() -> None:
    model = Model(layers=32, tower_layers=23, first_decoder_site=0, encoder_only=False)
    with pytest.raises(ValueError, match=r"fastv-10: .* the smallest possible is \d+") as refusal:
        parse_method("fastv:budget=10").build(model, 576)
    least = str(refusal.value).rpartition(" ")[2]
    parse_method(f"fastv:budget={least}").build(model, 576)
    with pytest.raises(ValueError, match="smallest possible"):
        parse_method(f"fastv:budget={int(least) - 1}").build(model, 576)
    with pytest.raises(ValueError, match="smallest possible"):
        parse_method("fastv:budget=1%").build(model)  # a share is out of reach whatever the size
    parse_method("fastv:budget=10").build(model)  # a count depends on it
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
def test_a_budget_is_what_apet_takes_for_one(text: str) -> None:
    try:
        expected = Budget.parse(text)
    except ValueError:
        with pytest.raises(ValueError, match="is no budget"):
            parsers.budget(text)
    else:
        assert parsers.budget(text) == str(expected)
        assert Budget.parse(parsers.budget(text)) == expected
