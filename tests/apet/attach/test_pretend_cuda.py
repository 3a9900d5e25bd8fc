"""Every family under every method on a pretend CUDA device: no mismatch, and few waits.

The device claims a flash kernel, so rows are packed and steps are captured as graphs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from apet import Decode, attach
from apet.attention import packed_kernel
from apet.decoding.cuda_graphs import CaptureError, FixedSteps
from apet.methods import METHODS
from apet.models import pack_windows
from tests.support import tiny
from tests.support.attached import build_method, example_rows
from tests.support.pretend_cuda import DeviceTensor, PretendCuda, Wait

TOKENS = 3
# Waits that a method may add to those of the unmodified model, for a prompt and its answer: one
# for ids and mask each, for the grids of images and of videos in Qwen's tower, for labels or
# newlines in the decoder's input, for columns of DeepStack.
ADDED = {
    "llava": 2,
    "llava_next": 3,
    "qwen2_5_vl": 6,
    "video_llava": 3,
    "qwen3_vl": 7,
    "llava_onevision": 4,
}
# SparseVLM counts words and raters at three sites, for each size of media.
MAX_SPARSEVLM_WAITS = 36
# Qwen's windows and segments are counted once a call for methods that act inside its tower.
MAX_QWEN_TOWER_WAITS = 10
REFUSED = ("llava_onevision", "visionzip")  # no token of the decoder is a patch of its tower
PAIRS = [
    pair for family in tiny.FAMILIES for name in METHODS if (pair := (family, name)) != REFUSED
]


@cache
def moved_model(family: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    model = tiny.model(family, packed_kernel.NAME, dtype)
    with torch.no_grad(), PretendCuda() as device:
        device.move(model)
        pack_windows(model)
    return model


@cache
def host_inputs(family: str) -> dict[str, Tensor]:
    inputs = dict(tiny.inputs(family, example_rows(family)))
    positions = Decode(tiny.model(family)).family.positions(inputs)
    return inputs if positions is None else {**inputs, "position_ids": positions}


@torch.no_grad()
def answer(
    family: str, name: str | None, times: int = 1, dtype: torch.dtype = torch.bfloat16
) -> tuple[list[Tensor], list[Wait], PretendCuda]:
    """The answers to a batch, `times` times, and the waits of the last time."""
    model, answers = moved_model(family, dtype), []
    with PretendCuda() as device:
        decode = Decode(model)
        attached: Any = attach(model, build_method(name or "vanilla", family))
        with device.watching(decode.family.decoder):
            if name is not None:
                attached.__enter__()
            try:
                for _ in range(times):
                    device.waits.clear()
                    out = decode.answer(device.move_all(host_inputs(family)), TOKENS)
                    assert isinstance(out, DeviceTensor)
                    answers.append(out.host)
            finally:
                attached.__exit__()
    return answers, device.waits, device


@cache
def unmodified_waits(family: str) -> int:
    return len(answer(family, None)[1])


def check(family: str, name: str) -> None:
    _, waits, device = answer(family, name)
    allowed = MAX_SPARSEVLM_WAITS if name == "sparsevlm" else 0
    in_layers = [wait for wait in waits if wait.in_layers and "modeling_" not in wait.where]
    own = [wait for wait in in_layers if "sparsevlm.py" not in wait.where]
    assert own == []
    assert len(in_layers) <= allowed
    method, added = METHODS[name], ADDED[family]
    if "qwen" in family and (method.needs_tower or method.inside_tower):
        added += MAX_QWEN_TOWER_WAITS
    assert len(waits) - len(in_layers) <= unmodified_waits(family) + added, waits
    assert "cudnn" not in device.attention


@pytest.mark.parametrize(
    ("family", "name"), [("llava", "apet"), ("llava", "random"), ("qwen2_5_vl", "apet")]
)
def test_prompt_and_answer_stay_on_device(family: str, name: str) -> None:
    check(family, name)


@pytest.mark.usefixtures("long_running")
@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_every_family_and_method_stays_on_device(family: str, name: str) -> None:
    check(family, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_replayed_graph_gives_the_same_answer(dtype: torch.dtype) -> None:
    """A shape is captured when it comes for the second time, where a wait would raise."""
    answers, _, device = answer("llava", "apet", 3, dtype)
    assert device.captured == 1
    assert device.replayed == 2 * (TOKENS - 1)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@torch.no_grad()
def test_answers_in_float32_are_those_of_the_cpu() -> None:
    answers, _, _ = answer("llava", "apet", 1, torch.float32)
    model = tiny.model("llava", packed_kernel.NAME)
    with attach(model, build_method("apet", "llava")):
        want = Decode(model).answer(host_inputs("llava"), TOKENS)
    assert torch.equal(answers[0], want)


def test_failed_capture_raises_instead_of_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    run = FixedSteps._run

    def waiting(self: FixedSteps) -> Tensor:
        self._step.item()
        return run(self)

    monkeypatch.setattr(FixedSteps, "_run", waiting)
    with pytest.raises(CaptureError, match=r"start another: _local_scalar_dense at .* captured"):
        answer("llava", "apet", 2)


# ---- the device itself


def test_mismatch_raises_and_waits_are_listed() -> None:
    with torch.no_grad(), PretendCuda() as device:
        there, here = device.move_all({"x": torch.arange(4.0)})["x"], torch.arange(4.0)
        assert there.is_cuda
        with pytest.raises(RuntimeError, match="got tensors on cuda:0 and on the CPU"):
            there + here
        assert (2 * there).sum().item() == 12
        assert bool((there > 2).any())
        assert there[there > 1].tolist() == [2, 3]
        there + here.to(there.device)
        there + here.pin_memory().to(there.device, non_blocking=True)
    assert [wait.what for wait in device.waits] == [
        "_local_scalar_dense",
        "_local_scalar_dense",
        "index by a mask",
        "tolist",
        "copy from pageable memory",
    ]


def test_graph_runs_again_on_its_addresses_and_refuses_waits() -> None:
    with torch.no_grad(), PretendCuda() as device:
        x = device.move_all({"x": torch.arange(4.0)})["x"]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = (x * 2)[1:] + 1
        x.fill_(5)
        graph.replay()
        assert y.tolist() == [11, 11, 11]
        with (
            pytest.raises(RuntimeError, match="not permitted while a graph is captured"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            x.sum().item()
