"""Compiled vision towers give the same features, whatever is attached.

Only the graph is compiled here, without C++.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from apet import Towers, attach
from apet.models import family_of
from apet.models.compiled_towers import compile_towers
from tests.support import tiny
from tests.support.attached import CLOSE, batch_inputs, build_method, model

METHODS = ("vanilla", "apet", "visionzip", "tome")  # after a tower, and inside it


@contextmanager
def compiled_model(
    family: str, monkeypatch: pytest.MonkeyPatch, backend: str
) -> Iterator[PreTrainedModel]:
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with torch.inference_mode():
        core = tiny.model(family)
        compile_towers(core)
        yield core
    torch._dynamo.reset()


def logits(
    model: PreTrainedModel, method: Any, inputs: Any, towers: Towers | None = None
) -> torch.Tensor:
    with attach(model, method, towers=towers):
        return model(**inputs, logits_to_keep=1).logits


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.gpu)])
def test_hooks_work_on_compiled_blocks(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    family = "llava"
    with compiled_model(family, monkeypatch, backend) as fast:
        one = tiny.inputs(family, [{"text": "What?", "images": [tiny.image(30, 20, 1)]}])
        for inputs in (one, batch_inputs(family)):
            towers = Towers()
            for name in METHODS:
                method = build_method(name, family)
                want = logits(model(family), method, inputs)
                for shared in (None, towers, towers):  # alone, computed, from memory
                    torch.testing.assert_close(logits(fast, method, inputs, shared), want, **CLOSE)
        assert counters["stats"]["unique_graphs"] <= 2  # for one image, and for any number
        blocks = next(iter(family_of(fast).towers.values())).layers
        ran = dict(counters["frames"])
        logits(fast, build_method("tome", family), batch_inputs(family))
        assert dict(counters["frames"]) == ran  # with hooks inside, blocks run uncompiled
        assert all("forward" in block.__dict__ for block in blocks)


def test_unsupported_towers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match="qwen2_5_vl cannot be compiled: its blocks loop over windows"
    ):
        compile_towers(tiny.model("qwen2_5_vl"))
    with (
        compiled_model("llava", monkeypatch, "eager") as fast,
        pytest.raises(ValueError, match="spread over devices"),
    ):
        compile_towers(fast)
