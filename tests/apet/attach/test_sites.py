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
from tests.support.attached import EITHER, SIZES, alone, last_logits, make, model


class Entries(NamedTuple):
    """What the decoder and its layer 3 are called with, before and after the method."""

    entry: Tensor
    layer: Tensor


@torch.no_grad()
def entries(
    model: PreTrainedModel, inputs: BatchFeature, method: Method | None
) -> tuple[Entries, Entries]:
    core, seen = model.model, {}

    def watch(when: str) -> list[Any]:
        return [
            core.language_model.register_forward_pre_hook(
                lambda module, args, kwargs: seen.update({when: kwargs["inputs_embeds"]}),
                with_kwargs=True,
            ),
            core.language_model.layers[3].register_forward_pre_hook(
                lambda module, args: seen.update({when + " layer": args[0]})
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
    return Entries(seen["before"], seen["before layer"]), Entries(
        seen["after"], seen["after layer"]
    )


def packed(core: Any, features: Tensor, sizes: Tensor) -> Tensor:
    """Which feature each placeholder of one image holds, by the model's own packing; -1 for newlines."""
    numbers = torch.arange(features[..., 0].numel()).view(*features.shape[:2], 1).double()
    (flat,), _ = core.pack_image_features(
        [numbers], sizes, "default", image_newline=torch.tensor([-1.0])
    )
    return flat[:, 0].long()


def by_hand(family: str) -> tuple[list[tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
    """The groups of row 0 as (columns, tokens at the encoder's site), and what is left to do to these."""
    core, inputs = model(family).model, alone(family, 0)
    columns = (inputs["input_ids"][0] == model(family).config.image_token_id).nonzero()[:, 0]
    if family not in ("llava", "llava_next"):
        embeds = entries(model(family), inputs, None)[0].entry[0]
        if family == "llava_onevision":
            columns = columns[(embeds[columns] != core.image_newline).any(-1)]
        return [
            (part, embeds[part]) for part in columns.split(SIZES[family][0][0])
        ], lambda tokens: tokens
    seen: list[Tensor] = []
    hook = core.multi_modal_projector.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    last_logits(model(family), inputs)
    hook.remove()
    features = seen[0]  # (tiles, T, D)
    if family == "llava":
        return [(columns, features[0])], core.multi_modal_projector
    cells = packed(core, features, inputs["image_sizes"])
    tiles = [
        cells.where(cells >= 0, -features.shape[1]) // features.shape[1] == tile
        for tile in range(len(features))
    ]
    return [
        (columns[tile], features.flatten(0, 1)[cells[tile]]) for tile in tiles
    ], core.multi_modal_projector


@EITHER
@torch.no_grad()
def test_inside_apet_is_compress(family: str) -> None:
    inputs = alone(family, 0)
    before, after = entries(model(family), inputs, make("apet", family))
    whole = entries(model(family), inputs, None)[0].entry[0]
    groups, project = by_hand(family)
    sizes = [len(columns) for columns, _ in groups]
    assert sizes == SIZES[family][0][0]
    schedule = Schedule.from_budget(
        "40%", visual_tokens=sum(sizes), layers=6, encoder_only=family == "video_llava"
    )
    alive, visual = (
        torch.ones(len(whole), dtype=torch.bool),
        torch.zeros(len(whole), dtype=torch.bool),
    )
    for (columns, tokens), keep in zip(
        groups, share(schedule.tokens_at(0, "encoder"), sizes), strict=True
    ):
        out = compress(tokens, keep, basis=min(4, keep))
        alive[columns] = False
        alive[columns[out.index]] = visual[columns[out.index]] = True
        whole[columns[out.index]] = project(out.tokens)
    torch.testing.assert_close(after.entry[0], whole[alive], rtol=1e-5, atol=1e-5)
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
