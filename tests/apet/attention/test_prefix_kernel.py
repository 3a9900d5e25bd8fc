"""Attention to a prefix that rows share equals a softmax over the prefix and their own tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apet.attention import prefix_kernel
from apet.attention.prefix_kernel import (
    Prefix,
    PrefixRows,
    attention_bias,
    prefix_attention,
)

HEADS, KEY_HEADS, WIDTH, SCALING = 6, 2, 8, 0.4
LONGEST = 7  # columns of the prefixes


def states(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, WIDTH, generator=generator).to(dtype)


def plain_softmax(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Attention (S, H, d) of one row, head by head: queries (H, S, d), visible (S, T)."""
    heads = []
    for head, queries in enumerate(query.double()):
        shared = head * KEY_HEADS // HEADS
        scores = queries @ key[shared].double().T * SCALING
        heads.append(
            scores.masked_fill(~visible, -torch.inf).softmax(dim=-1) @ value[shared].double()
        )
    return torch.stack(heads, dim=1)


def batch(
    counts: list[int], queries: int, own: int, dtype: torch.dtype, padded: bool
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor, Tensor]:
    """Queries, prefixes, own keys and values, and which keys of both are tokens."""
    rows = sum(counts)
    query = states(rows, HEADS, queries, seed=1, dtype=dtype)
    prefixes = [states(len(counts), KEY_HEADS, LONGEST, seed=seed, dtype=dtype) for seed in (2, 3)]
    own_states = [states(rows, KEY_HEADS, own, seed=seed, dtype=dtype) for seed in (4, 5)]
    lengths = [LONGEST - 2 * number if padded else LONGEST for number in range(len(counts))]
    tokens = torch.arange(LONGEST) >= LONGEST - torch.tensor(lengths)[:, None]
    own_lengths = torch.tensor([1 + row % own for row in range(rows)])
    causal = torch.ones(own, own, dtype=torch.bool).tril()[-queries:]
    visible = causal & (torch.arange(own) >= own - own_lengths[:, None])[:, None]
    return query, prefixes, own_states, tokens, visible


@pytest.mark.parametrize("counts", [[3], [2, 2], [1, 3, 2]], ids=str)
@pytest.mark.parametrize(("queries", "own"), [(1, 5), (4, 4)], ids=["step", "prompt"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_output_equals_a_plain_softmax(
    counts: list[int], queries: int, own: int, padded: bool, dtype: torch.dtype, atol: float
) -> None:
    query, prefixes, own_states, tokens, visible = batch(counts, queries, own, dtype, padded)
    rows = PrefixRows(counts, torch.device("cpu"))
    bias = attention_bias(tokens)[:, None, None] if padded else None
    output, _ = prefix_attention(
        nn.Identity(),
        query,
        *own_states,
        attention_bias(visible[:, None]),
        scaling=SCALING,
        shared_prefix=Prefix(rows, *prefixes, bias),
    )
    assert output.dtype == dtype
    numbers = [number for number, count in enumerate(counts) for _ in range(count)]
    for row, number in enumerate(numbers):
        key, value = (
            torch.cat([far[number], own[row]], dim=1)
            for far, own in zip(prefixes, own_states, strict=True)
        )
        seen = torch.cat([tokens[number].expand(queries, -1), visible[row]], dim=1)
        want = plain_softmax(query[row], key, value, seen)
        torch.testing.assert_close(output[row].double(), want, rtol=0, atol=atol)


@pytest.mark.parametrize("padded", [False, True])
def test_many_scores_are_computed_in_parts(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    query, prefixes, own_states, tokens, visible = batch([3, 2], 4, 3, torch.float32, padded)
    rows = PrefixRows([3, 2], torch.device("cpu"))
    bias = attention_bias(tokens)[:, None, None] if padded else None
    mask, prefix = attention_bias(visible[:, None]), Prefix(rows, *prefixes, bias)
    outputs = []
    for most in (prefix_kernel.MAX_SCORES, 1):
        monkeypatch.setattr(prefix_kernel, "MAX_SCORES", most)
        outputs.append(
            prefix_attention(
                nn.Identity(), query, *own_states, mask, scaling=SCALING, shared_prefix=prefix
            )[0]
        )
    torch.testing.assert_close(*outputs)


def test_scores_far_apart_do_not_overflow() -> None:
    """Own keys that match a thousand times better than the prefix, and the other way round."""
    query, prefixes, own_states, tokens, visible = batch([1, 1], 1, 3, torch.float32, padded=False)
    prefixes[0][0] *= 1e3
    own_states[0][1] *= 1e3
    rows = PrefixRows([1, 1], torch.device("cpu"))
    mask = attention_bias(visible[:, None])
    output, _ = prefix_attention(
        nn.Identity(),
        query,
        *own_states,
        mask,
        scaling=SCALING,
        shared_prefix=Prefix(rows, *prefixes, None),
    )
    for row in range(2):
        key, value = (
            torch.cat([far[row], own[row]], dim=1)
            for far, own in zip(prefixes, own_states, strict=True)
        )
        seen = torch.cat([tokens[row][None], visible[row]], dim=1)
        want = plain_softmax(query[row], key, value, seen)
        torch.testing.assert_close(output[row].double(), want, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("kept", "counts", "prefixes"),
    [
        ([0, 2, 3, 5], [1, 2, 1], None),
        ([1, 2, 4], [2, 1], [1, 2]),
        ([5], [1], [2]),
    ],
)
def test_kept_rows_need_fewer_prefixes(
    kept: list[int], counts: list[int], prefixes: list[int] | None
) -> None:
    rows, needed = PrefixRows([1, 3, 2], torch.device("cpu")).keep(kept)
    assert rows.counts == tuple(counts)
    assert (None if needed is None else needed.tolist()) == prefixes
    assert rows.prefix.tolist() == [n for n, count in enumerate(counts) for _ in range(count)]


def test_prefixes_are_copied_only_when_some_are_dropped() -> None:
    rows = PrefixRows([2, 1], torch.device("cpu"))
    _, (keys, values), _, tokens, _ = batch([2, 1], 1, 1, torch.float32, padded=True)
    prefix = Prefix(rows, keys, values, attention_bias(tokens)[:, None, None])
    assert prefix.keep(*rows.keep([0, 2])).keys is keys
    second = prefix.keep(*rows.keep([2]))
    assert second.bias is not None
    for one, whole in ((second.keys, keys), (second.values, values), (second.bias, prefix.bias)):
        assert torch.equal(one, whole[1:])
