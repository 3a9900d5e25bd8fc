"""Attention kernels: eager, sdpa, flash and packed agree on kept tokens and answers."""

from __future__ import annotations

import pytest
import torch

from apet import attach
from apet.attention import packed_kernel
from tests.support import flash, tiny
from tests.support.attached import (
    CLOSE,
    batch_inputs,
    build_method,
    compressed,
    generate,
    kept_indices,
    model,
    row_inputs,
)

EVERY_KERNEL = pytest.mark.parametrize("attn", ["eager", flash.NAME, packed_kernel.NAME])


@pytest.mark.parametrize(
    ("family", "name"),
    [
        # Masks and packed rows after a site differ by family.
        *((family, "apet") for family in tiny.FAMILIES),
        # Without a site, kernels pack the prompt as it is.
        ("llava", "vanilla"),
        # Methods that read attention recompute it from padded rows, in several layers.
        ("llava", "sparsevlm"),
        ("qwen3_vl", "sparsevlm"),
        # Inside towers and on their attention.
        ("llava", "visionzip"),
        ("qwen2_5_vl", "visionzip"),
        ("video_llava", "tome"),
        ("qwen2_5_vl", "tome"),
    ],
)
@EVERY_KERNEL
def test_kernels_agree_on_kept_tokens_and_answers(family: str, name: str, attn: str) -> None:
    """In the prompt and in the steps after it."""
    want, want_stats = compressed(family, name)
    with attach(model(family, attn), build_method(name, family), keep_index=True) as run:
        answer = generate(model(family, attn), batch_inputs(family))
    assert list(map(kept_indices, run.stats)) == list(map(kept_indices, want_stats))
    assert torch.equal(answer.ids, want.ids)
    torch.testing.assert_close(answer.logits, want.logits, **CLOSE)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@EVERY_KERNEL
def test_kernels_agree_on_a_row_without_padding(family: str, attn: str) -> None:
    """Where nothing is padded, kernels get no mask at all."""
    want, _ = compressed(family, "apet", 0)
    with attach(model(family, attn), build_method("apet", family)):
        answer = generate(model(family, attn), row_inputs(family, 0))
    assert torch.equal(answer.ids, want.ids)
    torch.testing.assert_close(answer.logits, want.logits, **CLOSE)
