"""Calls of the kernel "packed" without packed rows: SDPA, and steps whose heads share keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apet.attention.packed_kernel import packed_attention


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("masked", [True, False])
def test_step_reads_shared_keys_once(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six heads of queries share two of keys: no key is repeated, on any transformers."""
    query = normal(2, 6, 1, 8, seed=1)
    key, value = normal(2, 2, 5, 8, seed=2), normal(2, 2, 5, 8, seed=3)
    valid = torch.tensor([[True] * 5, [False, False, True, True, True]])
    mask = valid[:, None, None] if masked else None
    heads: list[int] = []
    real = F.scaled_dot_product_attention

    def counting(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
        heads.append(key.shape[1])
        return real(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    out, _ = packed_attention(nn.Module(), query, key, value, mask, scaling=0.5)
    repeated = [states.repeat_interleave(3, dim=1) for states in (key, value)]
    weights = query @ repeated[0].mT * 0.5
    if masked:
        weights = weights.masked_fill(~valid[:, None, None], -torch.inf)
    want = (weights.softmax(dim=-1) @ repeated[1]).transpose(1, 2)
    torch.testing.assert_close(out, want)
    assert heads == [2]
