"""Budgets, schedules and shares: the table of design.md, its rule, and errors."""

import re
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from apet.schedule import Budget, Schedule, Site, share

# The table of design.md: visual tokens, layers, budget, schedule, groups and their shares.
TABLE = [
    pytest.param(576, 32, 192, "encoder=288,16=96", [576], [288], id="llava-1.5-192"),
    pytest.param(576, 32, 128, "encoder=192,16=64", [576], [192], id="llava-1.5-128"),
    pytest.param(576, 32, 64, "encoder=96,16=32", [576], [96], id="llava-1.5-64"),
    pytest.param(2880, 32, 640, "encoder=960,16=320", [576] * 5, [192] * 5, id="llava-next-640"),
    pytest.param(2880, 32, 320, "encoder=480,16=160", [576] * 5, [96] * 5, id="llava-next-320"),
    pytest.param(2880, 32, 160, "encoder=240,16=80", [576] * 5, [48] * 5, id="llava-next-160"),
    pytest.param(1000, 28, "20%", "encoder=300,14=100", [1000], [300], id="qwen-20%"),
    pytest.param(1000, 28, "10%", "encoder=150,14=50", [1000], [150], id="qwen-10%"),
    pytest.param(2048, 32, 256, "encoder=256", [256] * 8, [32] * 8, id="video-llava-256"),
]


@pytest.mark.parametrize(("tokens", "layers", "budget", "text", "groups", "shares"), TABLE)
def test_schedules_match_the_paper(tokens, layers, budget, text, groups, shares):
    schedule = Schedule.from_budget(
        budget, visual_tokens=tokens, layers=layers, encoder_only=text == "encoder=256"
    )
    assert str(schedule) == text
    assert schedule.average == Budget.parse(budget).of(tokens)
    assert share(schedule.tokens_at(0), groups) == shares


def test_layers_before_decoder_site_see_encoder_tokens():
    schedule = Schedule.from_budget(64, visual_tokens=576, layers=32)
    assert schedule.sites == (Site("encoder", 0, 96), Site("decoder", 16, 32))
    assert [schedule.tokens_at(layer) for layer in range(32)] == [96] * 16 + [32] * 16


def test_site_inside_vision_encoder_holds_until_next_site():
    schedule = Schedule.parse("vision.6=288,encoder=96,16=32", visual_tokens=576, layers=32)
    assert [schedule.tokens_at(layer, "vision") for layer in (0, 5, 6, 23)] == [576, 576, 288, 288]
    assert schedule.tokens_at(0, "encoder") == schedule.tokens_at(0) == 96
    assert Schedule.parse("vision.6=288", visual_tokens=576, layers=32).average == 288


@given(tokens=st.integers(1, 3000), layers=st.integers(1, 80), share_of=st.fractions(0, 1))
@example(tokens=576, layers=32, share_of=Fraction(2, 3))  # from here on the encoder keeps all
@example(tokens=735, layers=27, share_of=Fraction(1, 10))
def test_average_is_the_budget_within_rounding(tokens, layers, share_of):
    budget = share_of * tokens
    assume(budget >= 2)
    schedule = Schedule.from_budget(Budget(share_of, True), visual_tokens=tokens, layers=layers)
    counts = [schedule.tokens_at(layer) for layer in range(layers)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= 1
    assert abs(schedule.average - budget) <= 0.5
    assert schedule.tokens_at(0, "encoder") == min(tokens, round(budget * 3 / 2))
    assert [site.layer for site in schedule.sites] == [0, layers // 2]


@pytest.mark.parametrize("budget", [576, 577, 10_000, "100%"])
@pytest.mark.parametrize("encoder_only", [False, True])
def test_budget_of_all_tokens_or_more_drops_nothing(budget, encoder_only):
    row = {"visual_tokens": 576, "layers": 32}
    schedule = Schedule.from_budget(budget, **row, encoder_only=encoder_only)
    assert {schedule.tokens_at(layer) for layer in range(32)} == {576}
    assert schedule.average == Schedule.full(**row).average == 576


def test_row_of_text_alone_has_no_sites():
    full = Schedule.full(visual_tokens=0, layers=32)
    assert Schedule.from_budget(64, visual_tokens=0, layers=32) == full
    assert Schedule.parse("encoder=30%,16=32", visual_tokens=0, layers=32) == full
    assert full.average == 0


@pytest.mark.parametrize(
    "text", ["full", "encoder=96", "0=1", "encoder=96,16=32", "vision.6=288,2=100,31=1"]
)
def test_schedule_text_round_trips(text):
    schedule = Schedule.parse(text, visual_tokens=576, layers=32)
    assert str(schedule) == text
    assert Schedule.parse(str(schedule), visual_tokens=576, layers=32) == schedule


def test_sites_are_read_in_any_order_as_counts_or_shares():
    shares = Schedule.parse(" 14 = 10% , encoder=30 % ", visual_tokens=740, layers=28)
    assert shares == Schedule.parse("encoder=222,14=74", visual_tokens=740, layers=28)
    assert shares == Schedule.from_budget("20%", visual_tokens=740, layers=28)


def test_count_above_small_row_keeps_all_tokens():
    schedule = Schedule.parse("encoder=96,16=32", visual_tokens=50, layers=32)
    assert str(schedule) == "encoder=50,16=32"
    assert schedule.average == 41


@pytest.mark.parametrize(
    ("value", "amount", "is_share", "text"),
    [
        (64, 64, False, "64"),
        (64.0, 64, False, "64"),
        (" 64 ", 64, False, "64"),
        ("10%", Fraction(1, 10), True, "10%"),
        ("12.5 %", Fraction(1, 8), True, "12.5%"),
        ("100%", 1, True, "100%"),
    ],
)
def test_budget_formats_are_parsed(value, amount, is_share, text):
    budget = Budget.parse(value)
    assert (budget.amount, budget.is_share, str(budget)) == (amount, is_share, text)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    "value", [0, -1, 64.5, "64.5", "0%", "100.1%", "-5%", "", "abc", "1e3", "nan", True]
)
def test_invalid_budget_error_lists_valid_forms(value):
    with pytest.raises(
        ValueError,
        match=f"{re.escape(repr(str(value)))} is not a valid budget; expected .* 64, .* '10%'",
    ):
        Budget.parse(value)


def test_fraction_as_budget_suggests_percentage():
    with pytest.raises(ValueError, match=r"did you mean '12\.5%'"):
        Budget.parse(0.125)


@pytest.mark.parametrize(
    ("tokens", "layers", "budget", "encoder_only", "least"),
    [
        (576, 32, 1, False, 2),
        (576, 32, "0.1%", False, 2),
        (2048, 32, "0.01%", True, 1),
        (1, 32, "10%", False, 1),
    ],
)
def test_budget_too_small_for_a_site_error_names_smallest(
    tokens, layers, budget, encoder_only, least
):
    row = {"visual_tokens": tokens, "layers": layers, "encoder_only": encoder_only}
    with pytest.raises(
        ValueError, match=f"budget of {budget} leaves .* smallest possible is {least}$"
    ):
        Schedule.from_budget(budget, **row)
    assert min(site.keep for site in Schedule.from_budget(least, **row).sites) >= 1
    if least > 1:
        with pytest.raises(ValueError, match="smallest possible"):
            Schedule.from_budget(least - 1, **row)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read '' in the schedule ''.*'encoder=96'.*'vision.6=288'.*'16=32'"),
        ("64", "cannot read '64'"),
        ("encoder=96,", "cannot read '' in the schedule 'encoder=96,'"),
        ("encoder:96", "cannot read 'encoder:96'"),
        ("encodr=96", "did you mean 'encoder=96'"),
        ("layer16=32", "did you mean '16=32'"),
        ("vision6=288", "did you mean 'vision.6=288'"),
        ("-1=32", "did you mean '1=32'"),
        (
            "encoder=some",
            "'encoder=some' in the schedule .*'some' is not a valid budget; expected a whole",
        ),
        ("encoder=0.3", "did you mean '30%'"),
        ("16=0", "'0' is not a valid budget"),
        ("16=0.01%", "'16=0' leaves none of the row's 576 visual tokens; keep at least 1"),
        ("32=4", "'32=4' is outside the decoder; its layers are 0 to 31"),
        ("16=32,encoder=16", "'16=32' follows 'encoder=16'; keep 16 or fewer"),
        ("encoder=600,16=700", "'16=700' follows 'encoder=600'"),  # wrong for any row, this one too
        ("vision.6=50,encoder=60", "'encoder=60' follows 'vision.6=50'"),
        ("16=32,16=32", "'16=32' and '16=32' are the same site"),
    ],
)
def test_invalid_schedule_error_suggests_correction(text, message):
    with pytest.raises(ValueError, match=message):
        Schedule.parse(text, visual_tokens=576, layers=32)


def test_invalid_rows_and_layers_are_refused():
    with pytest.raises(ValueError, match="-1 visual tokens"):
        Schedule.full(visual_tokens=-1, layers=32)
    with pytest.raises(ValueError, match="0 layers"):
        Schedule.from_budget(64, visual_tokens=576, layers=0)
    with pytest.raises(ValueError, match="no decoder layer 32; the decoder's layers are 0 to 31"):
        Schedule.full(visual_tokens=576, layers=32).tokens_at(32)


@given(total=st.integers(0, 500), sizes=st.lists(st.integers(0, 100), max_size=12))
def test_shares_are_proportional_integers_and_complete(total, sizes):
    parts = share(total, sizes, allow_empty=True)
    assert sum(parts) == min(total, sum(sizes))
    for part, size in zip(parts, sizes, strict=True):
        assert 0 <= part <= size
        assert total >= sum(sizes) or abs(part - Fraction(total * size, sum(sizes))) < 1


def test_remainder_goes_to_largest_remainder_then_to_first_group():
    assert share(10, [6, 6, 8]) == [3, 3, 4]
    assert share(11, [6, 6, 8]) == [3, 3, 5]  # quotas 3.3, 3.3, 4.4
    assert share(8, [5, 5, 5]) == [3, 3, 2]
    assert share(3, [4, 0, 4]) == [2, 0, 1]


def test_group_without_token_needs_allow_empty():
    with pytest.raises(ValueError, match=r"4 tokens leave group 4 .*without a token; 5 are enough"):
        share(4, [576] * 5)
    assert share(5, [576] * 5) == [1] * 5
    assert share(4, [576] * 5, allow_empty=True) == [1, 1, 1, 1, 0]
    with pytest.raises(ValueError, match=r"group 1 .*; 101 are enough"):
        share(10, [100, 1])
    assert share(101, [100, 1]) == [100, 1]


@pytest.mark.parametrize(("total", "sizes"), [(-1, [3]), (2, [3, -1])])
def test_negative_counts_are_refused(total, sizes):
    with pytest.raises(ValueError, match="counts of 0 or more"):
        share(total, sizes)
