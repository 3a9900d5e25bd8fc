"""Compiled vision towers: the same features, whatever is attached. Compiled here is the graph alone, without C++."""

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
from apet.models.compiled import compile_towers
from tests.support import tiny
from tests.support.attached import CLOSE, batch, make, model

METHODS = ("vanilla", "apet", "visionzip", "tome")  # behind a tower, and reading in it


@contextmanager
def compiled(
    family: str, monkeypatch: pytest.MonkeyPatch, backend: str
) -> Iterator[PreTrainedModel]:
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with torch.inference_mode():
        made = tiny.model(family)
        compile_towers(made)
        yield made
    torch._dynamo.reset()


def logits(
    model: PreTrainedModel, method: Any, inputs: Any, towers: Towers | None = None
) -> torch.Tensor:
    with attach(model, method, towers=towers):
        return model(**inputs, logits_to_keep=1).logits


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.gpu)])
def test_hooks_work_on_compiled_blocks(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    family = "llava"
    with compiled(family, monkeypatch, backend) as fast:
        one = tiny.inputs(family, [{"text": "What?", "images": [tiny.image(30, 20, 1)]}])
        for inputs in (one, batch(family)):
            towers = Towers()
            for name in METHODS:
                method = make(name, family)
                want = logits(model(family), method, inputs)
                for shared in (None, towers, towers):  # alone, computed for all, remembered
                    torch.testing.assert_close(logits(fast, method, inputs, shared), want, **CLOSE)
        assert counters["stats"]["unique_graphs"] <= 2  # for one image, and for any number
        blocks = next(iter(family_of(fast).towers.values())).layers
        ran = dict(counters["frames"])
        logits(fast, make("tome", family), batch(family))
        assert dict(counters["frames"]) == ran  # who looks inside is not compiled for
        assert all("forward" in block.__dict__ for block in blocks)


def test_what_is_not_compiled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match="qwen2_5_vl is not compiled: its blocks walk over windows"
    ):
        compile_towers(tiny.model("qwen2_5_vl"))
    with (
        compiled("llava", monkeypatch, "eager") as fast,
        pytest.raises(ValueError, match="spread over devices"),
    ):
        compile_towers(fast)
