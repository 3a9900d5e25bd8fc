"""Random, uniform, downsample, divprune and greedy ApET, against their rules as plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from apet import attach
from apet.core.gram import Gram
from apet.core.greedy_basis import greedy_basis
from apet.core.regions import partition
from apet.methods import METHODS, build
from apet.methods.base import Method
from apet.methods.divprune import most_diverse
from apet.view import View
from tests.support import oracle, tiny

NAMES = ["random", "uniform", "downsample", "divprune", "apet_greedy"]
GRIDS = [(1, 1), (1, 7), (6, 6), (12, 12), (5, 9), (13, 4), (2, 30)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def view(
    tokens: Tensor, keep: int, grid: tuple[int, int] | None = None, seeds: tuple[int, ...] = ()
) -> View:
    """A view of the encoder's site with one group per row."""
    groups, count, _ = tokens.shape
    rows = torch.arange(groups)[:, None]
    columns = torch.arange(count).expand(groups, count)
    numbers = tuple(range(groups))
    seeds = seeds or (0,) * groups
    return View("encoder", 0, tokens, keep, grid or (1, count), seeds, numbers, rows, columns)


def difficult_tokens() -> dict[str, Tensor]:
    """Tokens (48, 12) with ties, zeros or dependence; integers where ties must be exact."""
    base = normal(48, 12, seed=1)
    integers = torch.randint(-3, 4, (48, 12), generator=torch.Generator().manual_seed(2)).float()
    return {
        "normal": base,
        "positive": base.abs(),
        "twins": integers[:12].repeat(4, 1),
        "all equal": integers[:1].repeat(48, 1),
        "all zero": torch.zeros(48, 12),
        "zero rows": base.index_fill(0, torch.tensor([3, 10, 11]), 0.0),
        "rank 3": integers[:, :3] @ integers[:3],
        "outlier": base.index_fill(0, torch.tensor([7]), 1e5),
        "one-hot": torch.eye(12).repeat(4, 1),
        "bfloat16": base.bfloat16(),
        "tiny": 1e-6 * base,
    }


# ---- the rules, one token at a time


def divprune_in_loops(tokens: Tensor, keep: int) -> list[int]:
    values = tokens.double().numpy()
    count = len(values)

    def distance(one: int, other: int) -> float:
        lengths = float(np.linalg.norm(values[one]) * np.linalg.norm(values[other]))
        if lengths == 0:
            return float(np.any(values[one] != values[other]))
        return 1 - float(values[one] @ values[other]) / lengths

    isolation = [min(distance(i, j) for j in range(count) if j != i) for i in range(count)]
    picks = [oracle.first_best(np.array(isolation), 1.0, list(range(count)))]
    while len(picks) < keep:
        nearest = np.array([min(distance(i, pick) for pick in picks) for i in range(count)])
        picks.append(oracle.first_best(nearest, 1.0, [i for i in range(count) if i not in picks]))
    return picks


def greedy_in_loops(tokens: Tensor, keep: int) -> list[int]:
    """Residuals by least squares on all picks so far, from scratch each time."""
    values = tokens.double().numpy()
    norms = np.linalg.norm(values, axis=1)
    picks: list[int] = []
    while len(picks) < keep:
        error = oracle.errors(values, picks) if picks else norms
        error = np.where(error > 1e-5 * norms, error, 0)
        picks.append(
            oracle.first_best(error, norms.max(), [i for i in range(len(values)) if i not in picks])
        )
    return picks


# Picks come one after the other, so a large `keep` covers the smaller ones.
@pytest.mark.parametrize(
    ("name", "keep"), [*((name, 13) for name in difficult_tokens()), ("normal", 1), ("normal", 47)]
)
def test_divprune_equals_its_rule_in_loops(name: str, keep: int) -> None:
    tokens = difficult_tokens()[name]
    picks = divprune_in_loops(tokens, keep)
    assert most_diverse(tokens[None], keep)[0].tolist() == picks
    kept = build("divprune", budget=keep).select(view(tokens[None], keep))
    assert kept.indices[0].tolist() == sorted(picks)
    assert torch.equal(kept.tokens[0], tokens[sorted(picks)])


@pytest.mark.parametrize(
    ("name", "keep", "merge"),
    [
        *((name, 9, True) for name in difficult_tokens()),
        ("normal", 1, True),
        ("twins", 47, True),
        ("rank 3", 47, True),
        ("normal", 9, False),
        ("bfloat16", 47, False),
    ],
)
def test_greedy_equals_its_rule_in_loops(name: str, keep: int, merge: bool) -> None:
    tokens = difficult_tokens()[name]
    picks = greedy_in_loops(tokens, keep)
    assert greedy_basis(Gram(tokens[None]), keep)[0].tolist() == picks
    want = oracle.apet(tokens.double().numpy(), keep, merge=merge, basis=picks)
    kept = build("apet_greedy", budget=keep, merge=merge).select(view(tokens[None], keep))
    assert kept.indices[0].tolist() == want.index == sorted(picks)
    assert kept.tokens.dtype == tokens.dtype
    tolerance = torch.finfo(tokens.dtype).eps * float(tokens.double().norm(dim=-1).max())
    assert np.abs(kept.tokens[0].double().numpy() - want.tokens).max() <= tolerance


def test_greedy_keeps_one_of_two_equal_tokens_where_apet_keeps_both() -> None:
    """Both are far from ApET's basis, but the second adds nothing to the first."""
    tokens = normal(40, 64)
    tokens[20:] *= 0.5
    tokens[39] = tokens[38] = 2 * tokens[38]
    assert {38, 39} <= set(
        build("apet", budget=20, basis=4).select(view(tokens[None], 20)).indices[0].tolist()
    )
    assert 39 not in build("apet_greedy", budget=20).select(view(tokens[None], 20)).indices[0]


def test_downsample_averages_squares_of_a_picture() -> None:
    tokens = normal(2, 576, 8).view(2, 24, 24, 8)
    kept = build("downsample", budget=64).select(view(tokens.flatten(1, 2), 64, (24, 24)))
    for band in range(8):
        for column in range(8):
            region = tokens[:, 3 * band : 3 * band + 3, 3 * column : 3 * column + 3]
            torch.testing.assert_close(kept.tokens[:, 8 * band + column], region.mean(dim=(1, 2)))
            assert (
                kept.indices[:, 8 * band + column].tolist()
                == [(3 * band + 1) * 24 + 3 * column + 1] * 2
            )


def test_uniform_keeps_the_central_tokens_of_downsample() -> None:
    tokens = normal(2, 45, 8)
    for keep in range(1, 46):
        uniform = build("uniform", budget=keep).select(view(tokens, keep, (5, 9)))
        pooled = build("downsample", budget=keep).select(view(tokens, keep, (5, 9)))
        assert torch.equal(uniform.indices, pooled.indices)
        assert torch.equal(uniform.tokens[1], tokens[1, uniform.indices[1]])


# ---- the grid


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_partition_makes_equal_rectangles_for_any_number_of_regions(
    rows: int, columns: int
) -> None:
    row, column = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
    for regions in range(1, rows * columns + 1):
        region, centres = partition(rows, columns, regions)
        extent = torch.zeros(regions, dtype=torch.int64)
        top, left = (
            extent.scatter_reduce(0, region, line, "amin", include_self=False)
            for line in (row, column)
        )
        bottom, right = (extent.scatter_reduce(0, region, line, "amax") for line in (row, column))
        high, wide = bottom - top + 1, right - left + 1
        assert torch.equal(
            high * wide, torch.bincount(region, minlength=regions)
        )  # rectangles, none empty
        assert torch.equal(centres, (top + bottom) // 2 * columns + (left + right) // 2)
        assert torch.equal(region[centres], torch.arange(regions))
        assert (centres.diff() > 0).all()
        assert high.max() - high.min() <= 1
        bands = len((centres // columns).unique())
        assert regions % bands or wide.max() - wide.min() <= 1


@pytest.mark.parametrize(
    ("rows", "columns", "regions", "bands"),
    [
        (24, 24, 64, 8),
        (24, 24, 144, 12),
        (24, 24, 192, 12),
        (24, 24, 128, 8),
        (24, 24, 576, 24),
        (12, 48, 64, 4),
        (24, 24, 63, 7),
        (24, 24, 11, 3),
        (24, 24, 1, 1),
        (1, 30, 7, 1),
    ],
)
def test_partition_makes_a_grid_where_one_fits(
    rows: int, columns: int, regions: int, bands: int
) -> None:
    _, centres = partition(rows, columns, regions)
    a_band = (centres // columns).unique(return_counts=True)[1].tolist()
    assert len(a_band) == bands
    assert max(a_band) - min(a_band) == (regions % bands != 0)


@pytest.mark.parametrize("regions", [0, -1, 37])
def test_partition_refuses_an_impossible_number_of_regions(regions: int) -> None:
    with pytest.raises(ValueError, match=rf"6 x 6 tokens into {regions} regions; expected 1 to 36"):
        partition(6, 6, regions)


# ---- independence of the batch


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [1, 9, 35])
def test_group_keeps_the_same_tokens_alone_as_in_a_batch(name: str, keep: int) -> None:
    tokens = normal(19, 36, 16, seed=3)
    tokens[4] = tokens[4, :9].repeat(4, 1)  # full of ties
    seeds = tuple(range(100, 119))
    method = build(name, budget=keep)
    together = method.select(view(tokens, keep, (6, 6), seeds))
    assert together.tokens.shape == (19, keep, 16)
    for group in (0, 4, 18):
        alone = method.select(
            view(tokens[group : group + 1], keep, (6, 6), seeds[group : group + 1])
        )
        assert torch.equal(alone.indices[0], together.indices[group])
        assert torch.equal(alone.tokens[0], together.tokens[group])
        assert together.indices[group].tolist() == sorted(set(together.indices[group].tolist()))


def test_blocks_and_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = [
        build(name, budget=9).select(view(normal(5, 36, 16), 9))
        for name in ("divprune", "apet_greedy")
    ]
    monkeypatch.setattr("apet.methods.divprune.MAX_COSINES", 5 * 36 * 7)
    monkeypatch.setattr("apet.core.compression.MAX_CHUNK", {"cpu": 2 * 36 * 16})
    in_parts = [
        build(name, budget=9).select(view(normal(5, 36, 16), 9))
        for name in ("divprune", "apet_greedy")
    ]
    for one, other in zip(at_once, in_parts, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.tokens, other.tokens)


def draw(seed: int, number: int, groups: int = 1) -> list[list[int]]:
    """The draws for groups of one row."""
    groups_of_rows = view(normal(groups, 36, 4), 9, (6, 6), (number,) * groups)
    one_row = replace(groups_of_rows, row_numbers=(0,) * groups)
    return build("random", budget=9, seed=seed).select(one_row).indices.tolist()


def test_random_draws_by_seed_row_and_group() -> None:
    assert draw(0, 5) == draw(0, 5)
    different = [draw(0, 5), draw(1, 5), draw(0, 6), draw(5, 0), draw(6, 0)]
    assert len({str(one) for one in different}) == 5
    crops = draw(0, 5, groups=3)
    assert crops[0] == draw(0, 5)[0]
    assert len({str(one) for one in crops}) == 3


def test_random_draws_every_token_equally_often() -> None:
    counts = torch.zeros(36)
    for seed in range(400):
        counts[draw(seed, 0)[0]] += 1
    assert counts.sum() == 400 * 9
    assert (counts - 100).abs().max() < 5 * math.sqrt(400 * 0.25 * 0.75)


@pytest.mark.parametrize("name", NAMES)
def test_attached_method_spends_the_budget_at_its_sites(name: str) -> None:
    rows = [{"text": "What?", "images": [tiny.image(30, 20, 1)]}]
    model, inputs = tiny.model("llava"), tiny.inputs("llava", rows)
    with torch.no_grad(), attach(model, build(name, budget=8)) as run:
        model(**inputs, logits_to_keep=1)
    (stats,) = run.stats
    assert stats.budget == 8.0
    assert stats.kept == ({"encoder": 12, "3": 4} if name == "apet_greedy" else {"encoder": 8})


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_gpu_keeps_the_same_tokens_as_cpu(name: str) -> None:
    tokens = normal(4, 576, 256)
    on_cpu = view(tokens, 64, (24, 24))
    on_gpu = view(tokens.cuda(), 64, (24, 24))
    method = build(name, budget=64)
    assert torch.equal(method.select(on_cpu).indices, method.select(on_gpu).indices.cpu())


# ---- building by name


def test_build_makes_every_method() -> None:
    for name, kind in METHODS.items():
        method = build(name, budget=64)
        assert isinstance(method, Method)
        assert type(method) is kind
    assert build("apet", schedule="encoder=96", basis=20).basis == 20  # type: ignore[attr-defined]


def test_build_explains_invalid_methods_and_options() -> None:
    with pytest.raises(
        ValueError, match=r"'devprune' is not a valid method \(did you mean 'divprune'\?\)"
    ) as caught:
        build("devprune", budget=64)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == list(METHODS)
    assert "  apet_greedy: budget, schedule, merge" in lines
    with pytest.raises(
        ValueError,
        match=r"apet has no option 'base' \(did you mean 'basis'\?\); its options are budget, ",
    ):
        build("apet", budget=64, base=10)
    with pytest.raises(
        ValueError,
        match=r"random has no option 'temperature'; its options are budget, schedule, seed$",
    ):
        build("random", budget=64, temperature=1)
    with pytest.raises(ValueError, match="give one of the two"):
        build("uniform")
