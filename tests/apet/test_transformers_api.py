"""Assumptions about transformers' internals, one test each: the message says what to mend."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs

from apet import transformers_api as api
from apet.models import FAMILIES, family_of
from apet.towers.qwen_tower import QwenTower
from tests.support import tiny
from tests.support.attached import EVERY_FAMILY, batch_inputs, model

VERSION = f"transformers {transformers.__version__}"


def arguments(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_installed_version_was_tested() -> None:
    assert not api.is_newer_than_tested(transformers.__version__), (
        f"{VERSION} is newer than {api.NEWEST_TESTED}: run `make test-versions`, mend what fails in"
        " apet/transformers_api.py, and then raise NEWEST_TESTED there"
    )


def test_newer_version_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    core = model("llava")
    monkeypatch.setattr(api, "VERSION", "5.999.0.dev0")
    monkeypatch.setattr(api, "_warned", set())
    with pytest.warns(UserWarning, match=rf"tested with transformers up to {api.NEWEST_TESTED}"):
        family_of(core)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        family_of(core)


@pytest.mark.parametrize(
    ("version", "newer"), [("5.17.0", False), (f"{api.NEWEST_TESTED}.9", False), ("5.100", True)]
)
def test_versions_are_compared_as_numbers(version: str, newer: bool) -> None:
    assert api.is_newer_than_tested(version) is newer


@EVERY_FAMILY
def test_modules_take_the_arguments_that_hooks_use(family: str) -> None:
    """`check_arguments` and `cache_argument` raise with a sentence."""
    parts = family_of(model(family))  # checks the model, its decoder and a layer
    for module in (parts.model, parts.core, parts.decoder, parts.layers[0]):
        api.cache_argument(module)
    for module, tower in parts.towers.items():
        if isinstance(tower, QwenTower):
            api.check_arguments("Qwen tower", module)
            api.check_arguments("Qwen tower block", tower.layers[0])
    layer = inspect.signature(type(parts.layers[0]).forward).parameters.values()
    assert any(parameter.kind is parameter.VAR_KEYWORD for parameter in layer), (
        f"decoder layers of {VERSION} no longer pass further arguments to their kernel: packed rows"
        " need another way than packed_arguments"
    )
    assert next(iter(arguments(type(parts.core).forward) & {*api.MEDIA_INPUTS}), None), (
        f"{type(parts.core).__name__} of {VERSION} takes pixels under a new name: mend MEDIA_INPUTS"
    )


@EVERY_FAMILY
def test_layers_have_the_parts_that_attention_is_computed_from(family: str) -> None:
    parts = family_of(model(family))
    modules = {"decoder layer": parts.layers[0], "decoder attention": parts.layers[0].self_attn}
    for tower in parts.towers.values():
        layer: Any = tower.layers[0]
        if isinstance(tower, QwenTower):
            modules |= {"Qwen tower block": layer, "Qwen tower attention": layer.attn}
        else:
            modules |= {"CLIP layer": layer, "CLIP attention": layer.self_attn}
    for role, module in modules.items():
        missing = api.missing_parts(role, module)
        assert not missing, (
            f"{type(module).__name__} (a {role}) of {VERSION} has no {', '.join(missing)}: mend"
            " ATTRIBUTES and the functions that read them"
        )


def test_layer_without_known_parts_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"RenamedLayer: it has no .*self_attn.*choose a method"):
        api.decoder_attention(RenamedLayer())


@EVERY_FAMILY
@torch.no_grad()
def test_calls_and_outputs_are_what_hooks_expect(family: str) -> None:
    core = model(family)
    parts = family_of(core)
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def record(role: str) -> Any:
        return lambda module, args, kwargs: calls.append((role, args, kwargs))

    modules = {"core": parts.core, "decoder": parts.decoder, "layer": parts.layers[0]}
    hooks = [
        module.register_forward_pre_hook(record(role), with_kwargs=True)
        for role, module in modules.items()
    ]
    try:
        out = core(**batch_inputs(family), use_cache=True)
    finally:
        for hook in hooks:
            hook.remove()
    by_role = {role: (args, kwargs) for role, args, kwargs in calls}
    args, kwargs = by_role["layer"]
    assert len(args) == 1, (
        f"decoders of {VERSION} no longer hand hidden states to a layer as the only positional"
        " argument: mend Attachment._enter_layer"
    )
    assert {"attention_mask", "position_embeddings"} <= kwargs.keys(), (
        f"decoders of {VERSION} no longer name these arguments in the call of a layer: mend"
        " Attachment._decoder_site and ModelCall.continue_at"
    )
    assert api.cache_among(kwargs) is not None, (
        f"decoders of {VERSION} hand the KV cache to layers under a new name: mend CACHE_NAMES"
    )
    assert "inputs_embeds" in by_role["decoder"][1], (
        f"models of {VERSION} no longer hand inputs_embeds to the decoder by name: mend"
        " Attachment._compress_prompt"
    )
    cache = api.cache_of(out)
    assert cache is api.cache_among(kwargs)
    assert api.stores_input_unchanged(cache) or type(cache) is not DynamicCache, (
        f"DynamicCache of {VERSION} has changed: mend stores_input_unchanged"
    )
    assert [layer.keys.ndim for layer in cache.layers] == [4] * len(parts.layers), (
        f"layers of caches in {VERSION} no longer hold keys (B, H, S, d): mend FilledLayer"
    )
    assert cache.get_seq_length() == batch_inputs(family)["input_ids"].shape[1]
    assert cache.is_compileable is False


def test_caches_of_filled_layers_are_measured_and_updated() -> None:
    class Growing(api.FilledLayer):
        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            self.keys = torch.cat([self.keys, key_states], dim=2)
            self.values = torch.cat([self.values, value_states], dim=2)
            return self.keys, self.values

    states = torch.randn(2, 3, 5, 4)
    cache = api.make_cache([Growing(states, states)])
    message = f"Cache or DynamicLayer of {VERSION} has changed: mend FilledLayer and make_cache"
    assert cache.get_seq_length() == 5, message
    keys, _ = cache.update(states[:, :, :1], states[:, :, :1], 0)
    assert keys.shape == (2, 3, 6, 4), message
    assert cache.get_seq_length() == 6, message


@pytest.mark.parametrize("padded", [True, False])
def test_causal_mask_shows_valid_earlier_columns(padded: bool) -> None:
    config = family_of(model("llava")).decoder.config
    valid = torch.ones(2, 5, dtype=torch.bool)
    valid[1, :2] = not padded
    mask = api.build_causal_mask(config, 3, valid, padded, torch.float32)
    if not padded and mask is None:
        return
    columns = torch.arange(5)
    want = valid[:, None, None] & (columns <= columns[2:, None])
    assert mask is not None
    assert torch.equal(mask.bool(), want), (
        f"masks of {VERSION} differ from a causal mask over valid columns: mend build_causal_mask"
    )


def test_kernels_are_registered_and_packed_rows_keep_their_names() -> None:
    assert "packed" in AttentionInterface(), "mend register_kernel"
    assert "packed" in AttentionMaskInterface(), "mend register_kernel"
    names = api.packed_arguments(torch.zeros(2), 1).keys()
    assert names <= FlashAttentionKwargs.__annotations__.keys(), (
        f"{VERSION} names the ends of packed rows anew: mend packed_arguments and packed_attention"
    )
    config = family_of(model("llava")).decoder.config
    assert api.attention_kernel(config) == "sdpa", "mend attention_kernel"
    assert not api.uses_flash_attention(config)


def test_generation_lets_decode_replace_its_loop() -> None:
    core = model("llava")
    assert "custom_generate" in arguments(core.generate), (
        f"generate of {VERSION} has no custom_generate: mend Decode.answer"
    )
    assert "is_first_iteration" in arguments(core.prepare_inputs_for_generation), (
        f"{VERSION} prepares a prompt's inputs in another way: mend prompt_inputs"
    )
    assert api.is_greedy(transformers.GenerationConfig(do_sample=False)), "mend is_greedy"
    assert not api.is_greedy(transformers.GenerationConfig(num_beams=2)), "mend is_greedy"


def test_window_order_is_a_permutation() -> None:
    tower = family_of(model("qwen2_5_vl")).tower
    grid = torch.tensor([[1, 8, 12]])
    order = api.window_order(tower, grid)
    assert sorted(order.tolist()) == list(range(24)), (
        f"get_vision_window_index of {VERSION} has changed: mend window_order"
    )


class RenamedLayer(nn.Module):
    def forward(self, hidden_states: Any, mask: Any, kv: Any) -> Any:
        return hidden_states


def test_renamed_arguments_are_named_in_the_error() -> None:
    with pytest.raises(RuntimeError, match=r"RenamedLayer .*attention_mask.*ARGUMENTS"):
        api.check_arguments("decoder layer", RenamedLayer())
    with pytest.raises(RuntimeError, match=r"no KV cache under a known name.*CACHE_NAMES"):
        api.cache_argument(RenamedLayer())
    with pytest.raises(RuntimeError, match=r"has no KV cache under a known name.*CACHE_NAMES"):
        api.cache_of(object())


def test_every_family_is_checked() -> None:
    assert set(tiny.FAMILIES) == FAMILIES.keys()
