"""`compress` is the paper's ApET: compared with the oracle, on ordinary and on degenerate data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apet import compress
from apet.core.basis import SAMPLING
from apet.core.gram import Gram
from tests.support import oracle


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check_against_oracle(tokens: Tensor, keep: int, basis: int = 10, merge: bool = True) -> None:
    """Same kept set, errors within 1e-4 and tokens within rounding of the largest norm."""
    out = compress(tokens, keep, basis, merge=merge)
    want = oracle.apet(tokens.double().numpy(), keep, basis, merge)
    largest = float(tokens.double().norm(dim=-1).max())
    assert out.index.tolist() == want.index
    assert out.error.dtype == torch.float32
    assert np.abs(out.error.double().numpy() - want.error).max() <= 1e-4 * largest
    assert out.tokens.dtype == tokens.dtype
    tolerance = torch.finfo(tokens.dtype).eps * largest
    assert np.abs(out.tokens.double().numpy() - want.tokens).max() <= tolerance


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(
    ("count", "width", "keep", "basis"), [(36, 16, 12, 4), (144, 64, 32, 10), (576, 128, 64, 10)]
)
def test_random_data_matches_oracle(
    count: int, width: int, keep: int, basis: int, merge: bool
) -> None:
    check_against_oracle(normal(count, width, seed=count), keep, basis, merge)


def integers(*shape: int) -> Tensor:
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(shape[0])).float()


def degenerate_groups() -> dict[str, Tensor]:
    base = normal(64, 24, seed=1)
    outlier = base.clone()
    outlier[17] *= 1e5
    zeros = base.clone()
    zeros[10:20] = 0
    twins = (
        torch.randint(-3, 4, (16, 24), generator=torch.Generator().manual_seed(2))
        .float()
        .repeat(4, 1)
    )
    near_twins = base[:1] + 1e-4 * normal(64, 24, seed=3)
    return {
        "twins": twins,
        "float twins": base[:16].repeat(4, 1),
        "all equal": base[:1].repeat(64, 1),
        "all zero": torch.zeros(64, 24),
        "zero rows": zeros,
        "one zero row": base.index_fill(0, torch.tensor([3]), 0.0),
        "outlier": outlier,
        "rank 1": integers(64, 1) @ integers(1, 24),  # exactly, so that every error is exactly zero
        "rank 3": integers(64, 3) @ integers(3, 24),
        "nearly one token": near_twins,
        "one-hot": torch.eye(24).repeat(3, 1)[:64],
        "unit norms": torch.nn.functional.normalize(base, dim=1),
        "tiny": 1e-4 * base,
        "huge": 1e4 * base,
        "bfloat16": base.bfloat16(),
        "float16": base.half(),
    }


@pytest.mark.parametrize("name", degenerate_groups())
@pytest.mark.parametrize("keep", [10, 11, 30, 63])
def test_degenerate_data_matches_oracle(name: str, keep: int) -> None:
    check_against_oracle(degenerate_groups()[name], keep)


@pytest.mark.parametrize("basis", [1, 2, 40])
def test_basis_of_any_size_matches_oracle(basis: int) -> None:
    check_against_oracle(normal(64, 24, seed=6), 48, basis)  # 40 tokens span all 24 dimensions


def test_long_video_matches_oracle() -> None:
    check_against_oracle(normal(16_384, 16, seed=7), 64, 10)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_keep_of_all_tokens_returns_input(count: int) -> None:
    tokens = normal(count, 8)
    for keep in (count, count + 5):
        out = compress(tokens, keep, basis=10)  # whatever M is
        assert torch.equal(out.tokens, tokens)
        assert out.index.tolist() == list(range(count)) == out.slot.tolist()
        assert out.error.tolist() == [0.0] * count


def test_smallest_groups_match_oracle() -> None:
    check_against_oracle(normal(2, 8), 1, basis=1)
    check_against_oracle(torch.ones(2, 8), 1, basis=1)
    check_against_oracle(normal(3, 1), 2, basis=2)


def test_slot_names_kept_token_of_each_token() -> None:
    tokens = normal(48, 16)
    out = compress(tokens, 12)
    for slot in range(12):
        members = tokens[out.slot == slot]
        torch.testing.assert_close(out.tokens[slot], members.mean(0))
    assert torch.equal(out.slot[out.index], torch.arange(12))
    dropped = compress(tokens, 12, merge=False)
    assert (dropped.slot == -1).sum() == 36
    assert torch.equal(dropped.tokens, tokens[dropped.index])
    assert torch.equal(dropped.index, out.index)


# ---- invariances


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_group_result_is_independent_of_batch(sampling: str, variant: str) -> None:
    batch = normal(37, 80, 32, seed=8)
    batch[5] = batch[5, :20].repeat(4, 1)  # a group full of ties
    together = compress(batch, 20, sampling=sampling, variant=variant)
    for row in (0, 5, 36):
        alone = compress(batch[row], 20, sampling=sampling, variant=variant)
        assert torch.equal(alone.index, together.index[row])
        assert torch.equal(alone.tokens, together.tokens[row])
        assert torch.equal(alone.error, together.error[row])
        assert torch.equal(alone.slot, together.slot[row])


@pytest.mark.parametrize("sampling", SAMPLING)
def test_group_result_is_independent_of_scale_of_others(sampling: str) -> None:
    small, large = 1e-4 * normal(60, 16), 1e4 * normal(60, 16, seed=1)
    together = compress(torch.stack([small, large]), 20, sampling=sampling)
    for row, tokens in enumerate((small, large)):
        assert torch.equal(compress(tokens, 20, sampling=sampling).index, together.index[row])


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_gradients_flow_through_kept_tokens(variant: str) -> None:
    tokens = normal(30, 8).requires_grad_()
    out = compress(tokens, 12, 4, variant=variant)
    out.tokens.square().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.norm() > 0
    assert not out.error.requires_grad


def test_chunk_size_does_not_change_result(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = normal(5, 64, 16)
    once = compress(batch, 20)
    monkeypatch.setattr("apet.core.compression.MAX_CHUNK", {"cpu": 2 * 64 * 16})
    parts = compress(batch, 20)
    assert torch.equal(once.tokens, parts.tokens)
    assert torch.equal(once.index, parts.index)


def random_groups(*sizes: int) -> list[Tensor]:
    return [normal(size, 16, seed=place) for place, size in enumerate(sizes)]


def test_groups_of_different_sizes_equal_single_calls() -> None:
    groups = random_groups(40, 25, 40, 12, 40, 8)
    keeps = [12, 10, 12, 12, 20, 30]
    want = [compress(group, keep) for group, keep in zip(groups, keeps, strict=True)]
    flat = torch.cat(groups)
    lengths = [len(group) for group in groups]
    for found in (compress(groups, keeps), compress(flat, keeps, lengths=lengths),
                  compress(flat, keeps, lengths=torch.tensor(lengths))):  # fmt: skip
        assert len(found) == len(want)
        for one, other in zip(found, want, strict=True):
            assert torch.equal(one.tokens, other.tokens)
            assert torch.equal(one.index, other.index)
            assert torch.equal(one.error, other.error)
            assert torch.equal(one.slot, other.slot)


def test_groups_of_equal_size_are_compressed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Counting(Gram):
        def __init__(self, tokens: Tensor) -> None:
            made.append(len(tokens))
            super().__init__(tokens)

    monkeypatch.setattr("apet.core.compression.Gram", Counting)
    compress(random_groups(*[40, 20] * 8), keep=12)
    assert sorted(made) == [8, 8]


def test_keep_accepts_numpy_integer() -> None:
    assert compress(normal(40, 8), np.int64(12)).tokens.shape == (12, 8)


def test_no_groups_give_no_results() -> None:
    assert compress([], keep=3) == []
    assert compress(torch.zeros(0, 4), keep=3, lengths=[]) == []
    out = compress(torch.zeros(0, 30, 4), keep=12)
    assert out.tokens.shape == (0, 12, 4)


sizes = st.tuples(
    st.integers(12, 60), st.integers(11, 24), st.integers(0, 2**31)
)  # wider than the basis: no ties


@settings(deadline=None, max_examples=60)
@given(sizes, st.sampled_from(["fps", "dpc"]), st.integers(1, 10))
def test_reordered_tokens_give_reordered_result(
    shape: tuple[int, int, int], sampling: str, basis: int
) -> None:
    count, width, seed = shape
    tokens = normal(count, width, seed=seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    out, moved = compress(tokens, 11, basis, sampling), compress(tokens[order], 11, basis, sampling)
    assert sorted(order[moved.index].tolist()) == out.index.tolist()
    torch.testing.assert_close(moved.error, out.error[order])
    back = order[moved.index].argsort()
    torch.testing.assert_close(moved.tokens[back], out.tokens)


@settings(deadline=None, max_examples=60)
@given(sizes, st.sampled_from(list(SAMPLING)), st.floats(1e-6, 1e6))
def test_scaled_tokens_give_scaled_result(
    shape: tuple[int, int, int], sampling: str, factor: float
) -> None:
    count, width, seed = shape
    tokens = normal(count, width, seed=seed).double()
    out, scaled = compress(tokens, 11, 6, sampling), compress(factor * tokens, 11, 6, sampling)
    assert torch.equal(out.index, scaled.index)
    torch.testing.assert_close(scaled.tokens, factor * out.tokens)
    torch.testing.assert_close(
        scaled.error.double(), factor * out.error.double(), rtol=1e-5, atol=1e-6 * factor
    )


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(12, 60), st.integers(1, 24), st.integers(0, 2**31)),
    st.integers(1, 6),
    st.sampled_from(["float32", "bfloat16"]),
)
def test_ties_break_towards_lower_index(
    shape: tuple[int, int, int], distinct: int, dtype: str
) -> None:
    count, width, seed = shape
    few = normal(distinct, width, seed=seed).to(getattr(torch, dtype))
    which = torch.randint(distinct, (count,), generator=torch.Generator().manual_seed(seed))
    check_against_oracle(few[which], 11)


# ---- samplings and variants


def test_density_peaks_finds_one_token_of_each_cluster() -> None:
    centres = 20 * normal(4, 8, seed=9)
    tokens = (centres[:, None] + normal(4, 15, 8, seed=10)).flatten(0, 1)
    basis = SAMPLING["dpc"](Gram(tokens[None]), 4, 0)[0]
    assert sorted((basis // 15).tolist()) == [0, 1, 2, 3]


def test_density_peaks_matches_direct_computation() -> None:
    tokens = normal(30, 6, seed=11).double()
    apart = torch.cdist(tokens, tokens).square()
    spread = apart.mean()  # of all ordered pairs, a token and itself included
    density = torch.stack([(-(row / spread).sort().values[1:6].mean()).exp() for row in apart])
    score = []
    for place in range(30):
        denser = [
            float(apart[place, other] / spread)
            for other in range(30)
            if density[other] > density[place]
        ]
        score.append(
            float(density[place])
            * math.sqrt(min(denser, default=float(apart[place].max() / spread)))
        )
    want = sorted(range(30), key=lambda place: -score[place])[:7]
    assert SAMPLING["dpc"](Gram(tokens[None]), 7, 0)[0].tolist() == sorted(want)


def test_density_peaks_is_independent_of_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = normal(2, 50, 8)
    once = SAMPLING["dpc"](Gram(tokens), 10, 0)
    monkeypatch.setattr("apet.core.basis.MAX_BLOCK_ENTRIES", 2 * 50 * 7)
    assert torch.equal(SAMPLING["dpc"](Gram(tokens), 10, 0), once)


def test_random_basis_is_seeded_without_replacement() -> None:
    gram = Gram(normal(3, 40, 8))
    first = SAMPLING["random"](gram, 40, 5)
    assert torch.equal(first, SAMPLING["random"](gram, 40, 5))
    assert sorted(first[1].tolist()) == list(range(40))
    assert not torch.equal(first, SAMPLING["random"](gram, 40, 6))
    want = oracle.apet(normal(40, 8).double().numpy(), 20, basis=first[0, :10].tolist())
    assert compress(normal(40, 8), 20, sampling="random", seed=5).index.tolist() == want.index


def test_release_variant_matches_direct_computation() -> None:
    tokens = normal(50, 12, seed=12)
    values = tokens.double().numpy()
    basis = oracle.farthest(values, 4)
    anchor = values[basis]
    weights = np.linalg.solve(anchor @ anchor.T + 1e-5 * np.eye(4), anchor @ values.T)
    error = np.linalg.norm(values - weights.T @ anchor, axis=1)
    rank = np.argsort(-error, kind="stable")[:20].tolist()
    high, low = rank[:16], sorted(rank[16:])
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    members = {place: [place] for place in high}
    for other in set(range(50)) - set(rank):
        members[max(high, key=lambda place: unit[place] @ unit[other])].append(other)
    want = {place: values[group].mean(axis=0) for place, group in members.items()}
    want.update({place: values[pick] for place, pick in zip(low, basis, strict=True)})
    out = compress(tokens, 20, basis=4, variant="release")
    assert out.index.tolist() == sorted(rank)
    np.testing.assert_allclose(out.error.numpy(), error, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        out.tokens.numpy(), np.stack([want[place] for place in sorted(rank)]), rtol=1e-5, atol=1e-6
    )
    dropped = compress(tokens, 20, basis=4, variant="release", merge=False)
    assert torch.equal(dropped.index, out.index)
    assert dropped.slot.ge(0).sum() == 20


@pytest.mark.parametrize("name", degenerate_groups())
@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_degenerate_data_gives_finite_result(name: str, sampling: str, variant: str) -> None:
    out = compress(degenerate_groups()[name], 20, sampling=sampling, variant=variant)
    assert out.tokens.isfinite().all()
    assert out.error.isfinite().all()
    assert len(set(out.index.tolist())) == 20
    assert torch.equal(out.index, out.index.sort().values)


# ---- invalid arguments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compress(normal(40, 8), 5), r"5 of 40 tokens with a basis of 10.*at least 10"),
        (lambda: compress(normal(40, 8), 10, variant="release"), r"at least 11"),
        (lambda: compress(normal(40, 8), 0), r"keep is 0.*at least 1"),
        (lambda: compress(normal(40, 8), -3), r"keep is -3"),
        (lambda: compress(normal(40, 8), 12.5), r"not a valid keep: 12.5; expected a whole number"),
        (lambda: compress(normal(40, 8), 20, basis=0), r"basis is 0"),
        (lambda: compress(normal(8), 2), r"shape of tokens: \(8,\).*\(N, D\) or \(B, N, D\)"),
        (lambda: compress(normal(2, 2, 8, 8), 2), r"shape of tokens: \(2, 2, 8, 8\)"),
        (lambda: compress(torch.ones(40, 8, dtype=torch.int64), 12), r"torch.int64.*float32"),
        (lambda: compress(normal(40, 8), 12, sampling="k"), r"'k'.*'fps', 'dpc', 'random'"),
        (lambda: compress(normal(40, 8), 12, variant="fast"), r"'fast'.*'paper', 'release'"),
        (lambda: compress(normal(40, 8), [12]), r"only a list of groups may have a list"),
        (lambda: compress(random_groups(40, 30), [12]), r"keep has 1 numbers for 2 groups"),
        (lambda: compress([normal(40)], 12), r"shape of group 0: \(40,\)"),
        (lambda: compress(normal(40, 8), 12, lengths=[20, 21]), r"lengths that sum to 41"),
        (lambda: compress(random_groups(40), 12, lengths=[40]), r"a list of groups needs none"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("keep", [12, 40])
def test_error_names_group_that_is_not_finite(value: float, keep: int) -> None:
    batch = normal(4, 40, 8)
    batch[2, 7, 3] = value
    with pytest.raises(ValueError, match="group 2 hold NaN or Inf"):
        compress(batch, keep)
    with pytest.raises(ValueError, match="group 3 hold NaN or Inf"):
        compress([normal(30, 8), *batch], keep)


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", SAMPLING)
def test_gpu_result_equals_cpu_result(sampling: str) -> None:
    batch = normal(4, 576, 256)
    here, there = (
        compress(batch, 64, sampling=sampling),
        compress(batch.cuda(), 64, sampling=sampling),
    )
    assert torch.equal(here.index, there.index.cpu())
    torch.testing.assert_close(here.tokens, there.tokens.cpu(), rtol=0, atol=1e-6)
