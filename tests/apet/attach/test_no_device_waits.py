"""Inside the decoder's layers nothing waits for the device: the host knows how many tokens stay."""

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
from apet.transformers_api import cache_input, cache_of
from tests.support import tiny

# Operations whose result, or its size, the host has to wait for.
READING = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique_consecutive",
    "_unique2",
    "unique_dim",
}
# SparseVLM counts words and raters at each of 3 sites, for each size of images.
SPARSEVLM_WAITS = {"llava": 6, "qwen2_5_vl": 18}
ROWS = [
    {"text": "Short", "images": [tiny.image(30, 20, 1)]},
    {"text": "Rather longer", "images": [tiny.image(50, 20, 2), tiny.image(24, 44, 3)]},
]


class DeviceWaits(TorchDispatchMode):
    """Records operations that need a value, or a size that depends on one, on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name in READING or masks:
            self.operations.append(name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def device_waits(model: PreTrainedModel, call: Callable[[], Any]) -> list[str]:
    """The waits between the decoder's input, after a method has acted there, and its end."""
    mode = DeviceWaits()

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
    return mode.operations


@pytest.mark.parametrize(
    ("family", "name"),
    [*(("llava", name) for name in METHODS), ("qwen2_5_vl", "apet"), ("qwen2_5_vl", "sparsevlm")],
)
def test_prompt_adds_no_waits(family: str, name: str) -> None:
    model, inputs = tiny.model(family), tiny.inputs(family, ROWS)
    unmodified = device_waits(model, lambda: model(**inputs))
    with attach(model, build(name, budget="40%")):
        masked = device_waits(model, lambda: model(**inputs))
        model.set_attn_implementation(packed_kernel.NAME)
        packed = device_waits(model, lambda: model(**inputs))
    assert len(masked) == len(unmodified) + SPARSEVLM_WAITS[family] * (name == "sparsevlm"), masked
    assert len(packed) == SPARSEVLM_WAITS[family] * (name == "sparsevlm"), packed


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS])
@pytest.mark.parametrize("name", ["apet", "pdrop", "uniform"])
@torch.no_grad()
def test_step_adds_no_waits(name: str, rows: list[dict[str, Any]]) -> None:
    """A step asks the device at most once whether all new tokens are valid, like the model does."""
    model, inputs = tiny.model("llava"), tiny.inputs("llava", rows)
    word = torch.full((len(rows), 1), 65)
    step = {
        "input_ids": word,
        "attention_mask": torch.cat([inputs["attention_mask"], word > 0], dim=1),
    }
    cache = cache_of(model(**inputs, use_cache=True))
    unmodified = device_waits(model, lambda: model(**step, **cache_input(model, cache)))
    with attach(model, build(name, budget="40%")):
        cache = cache_of(model(**inputs, use_cache=True))
        assert len(device_waits(model, lambda: model(**step, **cache_input(model, cache)))) == len(
            unmodified
        )
