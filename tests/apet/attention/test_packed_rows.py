"""Packed rows: layers see no padding, and everything else sees the same tensors as under SDPA.

`tests/apet/attach/test_attention_kernels.py` tests that every family and method answers as under
SDPA; `tests/apet/attach/test_no_device_waits.py`, that nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import varlen as torch_varlen
from transformers import AttentionMaskInterface, BatchFeature, DynamicCache, PreTrainedModel

from apet import ApET, attach
from apet.attention import packed_kernel
from apet.attention.packed_rows import PackedRows, can_pack
from apet.models import pack_windows
from apet.transformers_api import cache_input, cache_of
from tests.support import flash, tiny
from tests.support.attached import (
    CLOSE,
    EVERY_FAMILY,
    batch_inputs,
    build_method,
    example_rows,
    model,
    row_inputs,
)

KERNELS = pytest.mark.parametrize("attn", [packed_kernel.NAME, flash.NAME])
METHODS = pytest.mark.parametrize(
    "name", ["vanilla", "apet", "fastv", "pdrop", "sparsevlm", "visionzip"]
)


@contextmanager
def record_layers(core: PreTrainedModel) -> Iterator[tuple[list[torch.Size], list[Tensor | None]]]:
    """Record the input shapes of the decoder's MLPs and its attention masks, layer by layer."""
    shapes: list[torch.Size] = []
    masks: list[Tensor | None] = []
    hooks = []
    for layer in core.model.language_model.layers:
        hooks.append(
            layer.mlp.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
        )
        look = lambda module, args, kwargs: masks.append(kwargs["attention_mask"])  # noqa: E731
        hooks.append(layer.self_attn.register_forward_pre_hook(look, with_kwargs=True))
    try:
        yield shapes, masks
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def run_attached(
    core: PreTrainedModel, inputs: BatchFeature, method: Any, **more: Any
) -> tuple[Any, list[Any]]:
    with attach(core, method) as run:
        return core(**inputs, **{"use_cache": True, **more}), run.stats


# ---- inside layers


@EVERY_FAMILY
@KERNELS
@pytest.mark.parametrize("name", ["vanilla", "apet", "pdrop"])
def test_layers_see_no_padding(family: str, attn: str, name: str) -> None:
    core, inputs = model(family, attn), batch_inputs(family)
    with record_layers(core) as (shapes, masks):
        _, stats = run_attached(core, inputs, build_method(name, family))
    assert all(mask is None for mask in masks)
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    for layer, shape in enumerate(shapes):
        there = 0
        for length, row in zip(lengths, stats, strict=True):
            sites = [site for site in ("encoder", *map(str, range(layer + 1))) if site in row.kept]
            there += (
                length - row.visual_tokens + (row.kept[sites[-1]] if sites else row.visual_tokens)
            )
        assert shape[:-1] == (1, there)
    with record_layers(model(family)) as (padded, _):
        run_attached(model(family), inputs, build_method(name, family))
    assert all(many[0] * many[1] > few[1] for many, few in zip(padded, shapes, strict=True))


@EVERY_FAMILY
@KERNELS
@pytest.mark.parametrize("use_cache", [True, False])
def test_rows_of_equal_length_are_not_packed(
    family: str, attn: str, use_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mask is created for them, nor for packed rows."""

    def refuse(**_: Any) -> Tensor:
        raise AssertionError("a mask was created")

    monkeypatch.setitem(AttentionMaskInterface._global_mapping, attn, refuse)
    core, inputs = model(family, attn), tiny.inputs(family, [example_rows(family)[0]] * 2)
    with record_layers(core) as (shapes, masks):
        out, _ = run_attached(core, inputs, build_method("apet", family), use_cache=use_cache)
        assert all(shape[0] == 2 for shape in shapes)
        run_attached(core, batch_inputs(family), build_method("apet", family), use_cache=use_cache)
    assert all(mask is None for mask in masks)
    want, _ = run_attached(model(family), row_inputs(family, 0), build_method("apet", family))
    torch.testing.assert_close(out.logits, want.logits.expand(2, -1, -1), **CLOSE)


# ---- outside layers


@EVERY_FAMILY
@KERNELS
@METHODS
def test_caches_and_outputs_are_padded(family: str, attn: str, name: str) -> None:
    if (family, name) == ("llava_onevision", "visionzip"):
        return  # refused: its tokens are no patches of the tower
    inputs, method = batch_inputs(family), build_method(name, family)
    want, _ = run_attached(model(family), inputs, method)
    found, _ = run_attached(model(family, attn), inputs, method)
    lengths = []
    for one, other in zip(cache_of(want).layers, cache_of(found).layers, strict=True):
        pads = (other.keys == 0).all(dim=3).all(dim=1)  # (B, S)
        lengths.append((~pads).sum(dim=1).tolist())
        assert (pads.long().diff(dim=1) <= 0).all()  # on the left
        for before, after in ((one.keys, other.keys), (one.values, other.values)):
            assert after.is_contiguous()
            real = ~pads[:, None, :, None]
            torch.testing.assert_close(after, before * real, **CLOSE)
    assert lengths[0] >= lengths[-1]
    assert max(lengths[0]) == cache_of(want).layers[0].keys.shape[2]
    real = (
        torch.arange(want.logits.shape[1])
        >= want.logits.shape[1] - torch.tensor(lengths[-1])[:, None]
    )
    assert found.logits.shape == want.logits.shape
    torch.testing.assert_close(found.logits[real], want.logits[real], **CLOSE)


@EVERY_FAMILY
@KERNELS
@torch.no_grad()
def test_padding_in_the_middle_is_packed(family: str, attn: str) -> None:
    """Rows follow any mask, and positions are those of the inputs."""
    given = {**row_inputs(family, 0)}
    given["attention_mask"] = given["attention_mask"].clone()
    given["attention_mask"][0, -3] = 0
    inputs = BatchFeature(given)
    want, _ = run_attached(model(family), inputs, build_method("vanilla", family))
    found, _ = run_attached(model(family, attn), inputs, build_method("vanilla", family))
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found.logits[real], want.logits[real], **CLOSE)
    assert not found.logits[0, -3].equal(want.logits[0, -3])


@KERNELS
def test_requested_hidden_states_are_padded(attn: str) -> None:
    want, _ = run_attached(
        model("llava"),
        batch_inputs("llava"),
        build_method("apet", "llava"),
        output_hidden_states=True,
    )
    found, _ = run_attached(
        model("llava", attn),
        batch_inputs("llava"),
        build_method("apet", "llava"),
        output_hidden_states=True,
    )
    assert [one.shape for one in found.hidden_states] == [one.shape for one in want.hidden_states]
    torch.testing.assert_close(
        found.hidden_states[-1][:, -1], want.hidden_states[-1][:, -1], **CLOSE
    )


def test_gradients_equal_those_of_sdpa() -> None:
    found = []
    for attn in ("sdpa", packed_kernel.NAME):
        core = tiny.model("llava", attn)
        with attach(core, build_method("apet", "llava")):
            core(**batch_inputs("llava")).logits[:, -1].square().sum().backward()
        found.append(core.model.language_model.layers[0].mlp.up_proj.weight.grad)
    assert found[0].abs().max() > 0.01
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


def test_unsupported_decoders_are_not_packed() -> None:
    decoder, moved = model("llava", packed_kernel.NAME).model.language_model, DynamicCache()
    assert can_pack(decoder, cache_input(decoder, moved))
    moved.offloading = True  # layers move to the host before they can be unpacked
    narrow = SimpleNamespace(
        config=decoder.config, layers=[SimpleNamespace(self_attn=SimpleNamespace(sliding_window=9))]
    )
    assert not can_pack(decoder, cache_input(decoder, moved))
    assert not can_pack(decoder, {"output_attentions": True})
    assert not can_pack(narrow, {})
    assert not can_pack(model("llava").model.language_model, {})
    assert not can_pack(model("llava", "eager").model.language_model, {})


@pytest.mark.parametrize("there", [True, False])
def test_rows_are_packed_on_gpu_only_with_flash_kernel(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda")
    weight = SimpleNamespace(device=gpu, dtype=torch.bfloat16)
    monkeypatch.setattr(
        packed_kernel, "has_flash", lambda *about: there and about == (gpu, torch.bfloat16, 16)
    )
    decoder = SimpleNamespace(
        config=SimpleNamespace(
            _attn_implementation=packed_kernel.NAME, hidden_size=64, num_attention_heads=4
        ),
        layers=OneWeight([SimpleNamespace(self_attn=SimpleNamespace(sliding_window=None))], weight),
    )
    assert can_pack(decoder, {}) == there


class OneWeight(list[Any]):
    """Layers with a single weight that pretends to be on a GPU."""

    def __init__(self, layers: list[Any], weight: Any) -> None:
        super().__init__(layers)
        self.weight = weight

    def parameters(self) -> Iterator[Any]:
        return iter([self.weight])


def test_pack_and_pad_are_inverse() -> None:
    layout = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 1]], dtype=torch.bool)
    rows = PackedRows(layout, torch.device("cpu"))
    padded = torch.arange(9.0).view(3, 3, 1)
    assert rows.pack(padded).flatten().tolist() == [1, 2, 3, 5, 8]
    assert rows.pack(padded[:1]).flatten().tolist() == [1, 2, 0, 2, 2]  # one for all rows
    assert rows.pack_scalars(torch.stack([padded, -padded])[..., 0]).tolist() == [
        [[1, 2, 3, 5, 8]],
        [[-1, -2, -3, -5, -8]],
    ]
    assert torch.equal(rows.pad(rows.pack(padded)), padded * layout[..., None])
    assert rows.inputs["cu_seq_lens_q"].tolist() == [0, 2, 4, 5]
    assert rows.inputs["max_length_k"] == 2


# ---- the kernel

LENGTHS = [5, 1, 9]


class Attention(nn.Module):
    is_causal, num_key_value_groups = True, 2


def states(
    dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of four heads, and keys and values of two, of packed rows."""
    draw = torch.Generator().manual_seed(0)
    count = sum(LENGTHS)
    return tuple(
        torch.randn(1, heads, count, 8, generator=draw).to(device, dtype) for heads in (4, 2, 2)
    )  # type: ignore[return-value]


def packed_inputs(device: str = "cpu") -> dict[str, Any]:
    real = torch.arange(9) >= 9 - torch.tensor(LENGTHS)[:, None]
    return PackedRows(real, torch.device(device)).inputs


def by_row(
    query: Tensor, key: Tensor, value: Tensor, causal: bool = True, scale: float = 0.5
) -> Tensor:
    """Reference attention, row by row in float64: (T, H, d)."""
    ends = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    query, key, value = (
        part[0].double().repeat_interleave(4 // part.shape[1], dim=0)
        for part in (query, key, value)
    )
    done = [
        flash.attend(query[:, here], key[:, here], value[:, here], scale, causal)
        for here in (slice(start, end) for start, end in pairwise(ends))
    ]
    return torch.cat(done, dim=1).transpose(0, 1)


@pytest.mark.parametrize("causal", [None, False])
def test_cpu_kernel_attends_row_by_row(causal: bool | None) -> None:
    found, _ = packed_kernel.packed_attention(
        Attention(), *states(), None, scaling=0.5, is_causal=causal, **packed_inputs()
    )
    torch.testing.assert_close(
        found[0].double(), by_row(*states(), causal is None), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("takes_groups", [True, False])
@pytest.mark.parametrize("causal", [None, False])
def test_pytorch_kernel_gets_valid_arguments(
    takes_groups: bool, causal: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference replaces it, with the kernel's arguments in an old and in a new PyTorch."""

    def reference(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        **more: Any,
    ) -> Tensor:
        assert more == ({"enable_gqa": True} if takes_groups else {})
        assert [part.shape for part in (query, key, value)] == [
            (15, 4, 8),
            *[(15, 2, 8)] * 2,  # an old one takes fewer heads of keys as well
        ]
        assert cu_seq_q is cu_seq_k
        assert (cu_seq_q.tolist(), cu_seq_q.dtype, max_q, max_k) == (
            [0, 5, 6, 15],
            torch.int32,
            9,
            9,
        )
        assert window_size in ((-1, 0), (-1, -1))
        parts = (part.transpose(0, 1)[None] for part in (query, key, value))
        return by_row(*parts, causal=window_size == (-1, 0), scale=scale or 0).to(query.dtype)

    takes = {"scale", "window_size"} | ({"enable_gqa"} if takes_groups else set())
    monkeypatch.setattr(packed_kernel, "_VARLEN_ARGUMENTS", takes)
    monkeypatch.setattr(packed_kernel, "has_flash", lambda *about: True)
    monkeypatch.setattr(torch_varlen, "varlen_attn", reference)
    found, _ = packed_kernel.packed_attention(
        Attention(), *states(), None, scaling=0.5, is_causal=causal, **packed_inputs()
    )
    torch.testing.assert_close(
        found[0].double(), by_row(*states(), causal is None), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("schedule", [None, "vision.2=50%,encoder=50%"])
@torch.no_grad()
def test_tower_with_windows_needs_one_launch_per_block(
    family: str, schedule: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outputs equal those of SDPA by window, also if tokens are dropped between blocks."""
    segments: list[int] = []

    def reference(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        ends: Tensor,
        same: Tensor,
        longest: int,
        most: int,
        **more: Any,
    ) -> Tensor:
        lengths = ends.diff().tolist()
        assert ends is same
        assert ends.dtype == torch.int32
        assert max(lengths) <= longest == most
        assert isinstance(longest, int)
        assert more["window_size"] == (-1, -1)
        segments.append(len(lengths))
        parts = zip(
            *(part.transpose(0, 1).split(lengths, dim=1) for part in (query, key, value)),
            strict=True,
        )
        return torch.cat(
            [flash.attend(*part, more["scale"], False) for part in parts], dim=1
        ).transpose(0, 1)

    def logits_of(core: PreTrainedModel) -> Tensor:
        pictures: list[Tensor] = []
        hook = core.model.visual.merger.register_forward_hook(
            lambda module, args, out: pictures.append(args[0])
        )
        method = (
            build_method("vanilla", family)
            if schedule is None
            else ApET(schedule=schedule, basis=3)
        )
        with attach(core, method):
            core.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        hook.remove()
        return pictures[0]

    inputs, core = batch_inputs(family), tiny.model(family, packed_kernel.NAME)
    want = logits_of(core)
    pack_windows(core)
    # A CPU has no such kernel.
    assert core.model.visual.config._attn_implementation == packed_kernel.NAME
    monkeypatch.setattr(packed_kernel, "has_flash", lambda *about: True)
    monkeypatch.setattr(torch_varlen, "varlen_attn", reference)
    assert torch.equal(logits_of(core), want)
    assert not segments
    pack_windows(core)
    torch.testing.assert_close(logits_of(core), want, **CLOSE)
    assert len(segments) == 4
    if family == "qwen2_5_vl":  # the second and the last block see whole pictures
        assert min(segments[0], segments[2]) > max(segments[1], segments[3])
    monkeypatch.setattr(packed_kernel, "has_flash", lambda *about: False)
    assert torch.equal(logits_of(core), want)  # as a model that has been moved to a CPU
    assert len(segments) == 4
    assert core.model.language_model.config._attn_implementation == packed_kernel.NAME


def test_other_towers_keep_their_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_kernel, "has_flash", lambda *about: True)
    for family, attn in (("llava", packed_kernel.NAME), ("qwen2_5_vl", "sdpa")):
        core = tiny.model(family, attn)
        pack_windows(core)
        assert core.config.vision_config._attn_implementation == attn


def test_pytorch_kernel_accepts_arguments() -> None:
    """On meta tensors, for which it returns the output's shape."""
    parts = states(torch.bfloat16, "meta")
    ends = torch.empty(4, dtype=torch.int32, device="meta")
    assert packed_kernel._flash(*parts, ends, 9, 0.5, True).shape == (1, 15, 4, 8)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pytorch_kernel_matches_reference(dtype: torch.dtype) -> None:
    parts = states(dtype, "cuda")
    assert packed_kernel.has_flash(parts[0].device, dtype, 8) == (dtype == torch.bfloat16)
    found, _ = packed_kernel.packed_attention(
        Attention(), *parts, None, scaling=0.5, **packed_inputs("cuda")
    )
    torch.testing.assert_close(found[0].double(), by_row(*parts), rtol=0, atol=2e-2)
