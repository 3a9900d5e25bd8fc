"""Inside a model, ApET is `compress` applied to the tensors at its sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel

from apet import attach, compress
from apet.methods.base import Method
from apet.schedule import Schedule, share
from tests.support.attached import (
    EVERY_FAMILY,
    GROUP_SIZES,
    build_method,
    last_logits,
    model,
    row_inputs,
)


class DecoderInputs(NamedTuple):
    """Inputs of the decoder and of its layer 3."""

    entry: Tensor
    layer: Tensor


@torch.no_grad()
def decoder_inputs(
    model: PreTrainedModel, inputs: BatchFeature, method: Method | None
) -> tuple[DecoderInputs, DecoderInputs]:
    """The inputs before and after a method, if any, has acted."""
    core, inputs_of = model.model, {}

    def watch(when: str) -> list[Any]:
        return [
            core.language_model.register_forward_pre_hook(
                lambda module, args, kwargs: inputs_of.update({when: kwargs["inputs_embeds"]}),
                with_kwargs=True,
            ),
            core.language_model.layers[3].register_forward_pre_hook(
                lambda module, args: inputs_of.update({when + " layer": args[0]})
            ),
        ]

    held = watch("before")
    if method is not None:
        with attach(model, method):
            held += watch("after")
            model(**inputs)
    else:
        held += watch("after")
        model(**inputs)
    for hook in held:
        hook.remove()
    return DecoderInputs(inputs_of["before"], inputs_of["before layer"]), DecoderInputs(
        inputs_of["after"], inputs_of["after layer"]
    )


def features_of_placeholders(core: Any, features: Tensor, sizes: Tensor) -> Tensor:
    """The feature of each placeholder of an image, by the model's own packing; -1 for newlines."""
    numbers = torch.arange(features[..., 0].numel()).view(*features.shape[:2], 1).double()
    (flat,), _ = core.pack_image_features(
        [numbers], sizes, "default", image_newline=torch.tensor([-1.0])
    )
    return flat[:, 0].long()


def groups_and_projector(
    family: str,
) -> tuple[list[tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
    """The groups of row 0 as (columns, tokens at the encoder's site), and what projects these."""
    core, inputs = model(family).model, row_inputs(family, 0)
    columns = (inputs["input_ids"][0] == model(family).config.image_token_id).nonzero()[:, 0]
    if family not in ("llava", "llava_next"):
        embeds = decoder_inputs(model(family), inputs, None)[0].entry[0]
        if family == "llava_onevision":
            columns = columns[(embeds[columns] != core.image_newline).any(-1)]
        return [
            (part, embeds[part]) for part in columns.split(GROUP_SIZES[family][0][0])
        ], lambda tokens: tokens
    projector_inputs: list[Tensor] = []
    hook = core.multi_modal_projector.register_forward_pre_hook(
        lambda module, args: projector_inputs.append(args[0])
    )
    last_logits(model(family), inputs)
    hook.remove()
    features = projector_inputs[0]  # (tiles, T, D)
    if family == "llava":
        return [(columns, features[0])], core.multi_modal_projector
    cells = features_of_placeholders(core, features, inputs["image_sizes"])
    tiles = [
        cells.where(cells >= 0, -features.shape[1]) // features.shape[1] == tile
        for tile in range(len(features))
    ]
    return [
        (columns[tile], features.flatten(0, 1)[cells[tile]]) for tile in tiles
    ], core.multi_modal_projector


@EVERY_FAMILY
@torch.no_grad()
def test_apet_in_a_model_equals_compress_at_each_site(family: str) -> None:
    inputs = row_inputs(family, 0)
    before, after = decoder_inputs(model(family), inputs, build_method("apet", family))
    embeds_after = decoder_inputs(model(family), inputs, None)[0].entry[0]
    groups, project = groups_and_projector(family)
    sizes = [len(columns) for columns, _ in groups]
    assert sizes == GROUP_SIZES[family][0][0]
    schedule = Schedule.from_budget(
        "40%", visual_tokens=sum(sizes), layers=6, encoder_only=family == "video_llava"
    )
    alive, visual = (
        torch.ones(len(embeds_after), dtype=torch.bool),
        torch.zeros(len(embeds_after), dtype=torch.bool),
    )
    for (columns, tokens), keep in zip(
        groups, share(schedule.tokens_at(0, "encoder"), sizes), strict=True
    ):
        out = compress(tokens, keep, basis=min(4, keep))
        alive[columns] = False
        alive[columns[out.index]] = visual[columns[out.index]] = True
        embeds_after[columns[out.index]] = project(out.tokens)
    torch.testing.assert_close(after.entry[0], embeds_after[alive], rtol=1e-5, atol=1e-5)
    if family == "video_llava":
        return
    hidden, kept = before.layer[0], schedule.tokens_at(3)
    columns = visual[alive].nonzero()[:, 0]
    out = compress(hidden[columns], kept, basis=min(4, kept))
    alive = torch.ones(len(hidden), dtype=torch.bool)
    alive[columns] = False
    alive[columns[out.index]] = True
    hidden[columns[out.index]] = out.tokens
    assert torch.equal(after.layer[0], hidden[alive])
