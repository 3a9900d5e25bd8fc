"""Inside the decoder's layers nothing waits for the device: how many tokens stay is known on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from apet import attach
from apet.attention import packed_kernel
from apet.methods import METHODS, build
from tests.support import tiny

READING = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique_consecutive",
    "_unique2",
    "unique_dim",
}
SPARSEVLM = {
    "llava": 6,
    "qwen2_5_vl": 18,
}  # it counts words and raters, at each of 3 sites, for each size of images
ROWS = [
    {"text": "Short", "images": [tiny.image(30, 20, 1)]},
    {"text": "Rather longer", "images": [tiny.image(50, 20, 2), tiny.image(24, 44, 3)]},
]


class Waits(TorchDispatchMode):
    """Operations that need a value, or a size that depends on one, on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name in READING or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def waits(model: PreTrainedModel, call: Callable[[], Any]) -> list[str]:
    """What waits between the decoder's entry, a method's work there excluded, and its end."""
    mode = Waits()

    def begin(*_: object) -> None:
        mode.__enter__()

    def end(*_: object) -> None:
        mode.__exit__(None, None, None)

    decoder = model.model.language_model
    hooks = [decoder.register_forward_pre_hook(begin), decoder.register_forward_hook(end)]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return mode.found


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("name", METHODS)
def test_a_prompt(family: str, name: str) -> None:
    model, inputs = tiny.model(family), tiny.inputs(family, ROWS)
    plain = waits(model, lambda: model(**inputs))
    with attach(model, build(name, budget="40%")):
        found = waits(model, lambda: model(**inputs))
        model.set_attn_implementation(packed_kernel.NAME)
        packed = waits(model, lambda: model(**inputs))
    assert len(found) == len(plain) + SPARSEVLM[family] * (name == "sparsevlm"), found
    assert len(packed) == SPARSEVLM[family] * (name == "sparsevlm"), packed


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS])
@pytest.mark.parametrize("name", ["apet", "pdrop", "uniform"])
@torch.no_grad()
def test_a_step(name: str, rows: list[dict[str, Any]]) -> None:
    """One question a step at most: are all the new tokens real?"""
    model, inputs = tiny.model("llava"), tiny.inputs("llava", rows)
    word = torch.full((len(rows), 1), 65)
    step = {
        "input_ids": word,
        "attention_mask": torch.cat([inputs["attention_mask"], word > 0], dim=1),
    }
    cache = model(**inputs, use_cache=True).past_key_values
    plain = waits(model, lambda: model(**step, past_key_values=cache))
    with attach(model, build(name, budget="40%")):
        cache = model(**inputs, use_cache=True).past_key_values
        assert len(waits(model, lambda: model(**step, past_key_values=cache))) == len(plain)
