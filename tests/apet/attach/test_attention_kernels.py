"""Any attention kernel: eager, sdpa and flash keep the same tokens and answer alike, for every family and method."""

from __future__ import annotations

import pytest
import torch

from apet import attach
from apet.attention import packed_kernel
from tests.support import flash
from tests.support.attached import (
    CLOSE,
    EITHER,
    EVERY,
    alone,
    batch,
    compressed,
    generate,
    index,
    make,
    model,
)


@EVERY
@pytest.mark.parametrize("attn", ["eager", flash.NAME, packed_kernel.NAME])
def test_kernels_agree(family: str, name: str, attn: str) -> None:
    """In the prompt and in the steps after it."""
    want, want_stats = compressed(family, name)
    with attach(model(family, attn), make(name, family), keep_index=True) as run:
        answer = generate(model(family, attn), batch(family))
    assert list(map(index, run.stats)) == list(map(index, want_stats))
    assert torch.equal(answer.ids, want.ids)
    torch.testing.assert_close(answer.logits, want.logits, **CLOSE)


@EITHER
@pytest.mark.parametrize("attn", ["eager", flash.NAME, packed_kernel.NAME])
def test_a_row_without_padding(family: str, attn: str) -> None:
    """Where nothing is padded, kernels get no mask at all."""
    want, _ = compressed(family, "apet", 0)
    with attach(model(family, attn), make("apet", family)):
        answer = generate(model(family, attn), alone(family, 0))
    assert torch.equal(answer.ids, want.ids)
    torch.testing.assert_close(answer.logits, want.logits, **CLOSE)
