"""Compression attached to an ordinary transformers model, and taken off again.

    with attach(model, ApET(budget=64)) as run:
        model.generate(**inputs)
    run.stats

Hooks only: no class is replaced, no forward is copied, and leaving the block leaves the model as it was. (Vision towers
that share their work, `apet/towers/shared_outputs.py`, are the one exception.) Every site
is the same act at another depth: choose among the visual tokens of each row, gather the rows of the sequence that
stay, and let all later layers and decode steps see the shorter sequence. The cache that `generate` returns is an
ordinary one with shorter layers.
"""

from __future__ import annotations

from collections import abc
from contextlib import ExitStack
from functools import partial
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel

from apet.attach.call import Call
from apet.attach.encoder_site import EncoderSite
from apet.attach.prefill import Prefill, RowStats
from apet.attach.vision import Vision
from apet.attention.unpadded import takes_packed
from apet.methods.base import Method, Model
from apet.models import family_of
from apet.models.base import Family
from apet.shortened import Shortened
from apet.towers.labels import read_labels
from apet.towers.shared_outputs import Towers
from apet.view import DecoderSite, LayerInput, Sequence

MEDIA = (
    "pixel_values",
    "pixel_values_images",
    "pixel_values_videos",
    "mm_encoder_outputs",
)  # bring visual tokens
Given = tuple[tuple[Any, ...], dict[str, Any]]


def attach(
    model: PreTrainedModel,
    method: Method,
    *,
    keep_index: bool = False,
    towers: Towers | None = None,
) -> Attachment:
    """Compress the visual tokens of every prompt that `model` sees inside the `with` block.

    keep_index: let `stats` say which tokens were kept, too
    towers: a memory that several attachments share; the same media are then encoded once for all of them
    """
    return Attachment(family_of(model), method, keep_index, towers)


def attached_to(core: nn.Module) -> Attachment | None:
    """What is attached to the module that takes token ids and pixels."""
    owners = (getattr(hook, "__self__", None) for hook in core._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Attachment)), None)


class Attachment:
    """An attached method. `stats` speaks of the latest prompts, one entry a row."""

    def __init__(
        self, family: Family, method: Method, keep_index: bool, towers: Towers | None = None
    ) -> None:
        self.family, self.method, self.keep_index, self.towers = family, method, keep_index, towers
        self.seeds: abc.Sequence[int] | None = (
            None  # a number for each row of the next prompts, for methods that draw
        )
        self._hooks: list[RemovableHandle] = []
        self._sharing = ExitStack()
        self._caches: WeakKeyDictionary[Cache, Prefill] = WeakKeyDictionary()
        self._latest: Prefill | None = None
        self._now: Call | None = None
        self._model = Model(
            len(family.layers),
            family.tower_layers,
            family.first_decoder_site,
            family.encoder_only,
        )
        self._vision = Vision(family, method, self._model)

    @property
    def stats(self) -> list[RowStats]:
        return self._latest.stats if self._latest else []

    def prefill_of(self, cache: Cache) -> Prefill | None:
        """What was made of the prompts that this cache holds."""
        return self._caches.get(cache)

    def __enter__(self) -> Self:
        family = self.family
        if attached_to(family.core) is not None:
            raise ValueError("a method is attached already; leave its `with` block first")
        try:
            self._hooks.extend(self._vision.hooks())
            self._hooks.append(family.core.register_forward_pre_hook(self._begin, with_kwargs=True))
            self._hooks.append(
                family.decoder.register_forward_pre_hook(self._enter, with_kwargs=True)
            )
            for depth, layer in enumerate(family.layers):
                self._hooks.append(
                    layer.register_forward_pre_hook(partial(self._layer, depth), with_kwargs=True)
                )
                self._hooks.append(
                    layer.register_forward_hook(partial(self._cached, depth), with_kwargs=True)
                )
            self._hooks.append(family.decoder.register_forward_hook(self._leave))
            if self.towers is not None and not self._vision.inside:
                self._sharing.enter_context(
                    self.towers.shared([*(family.towers or [family.tower])])
                )
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._sharing.close()
        self._caches.clear()
        self._vision.begin(0)
        self._now = None

    # ---- a prompt, in the order in which the model calls these

    def _begin(self, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A new prompt, a later step of one that was compressed, or nothing of ours."""
        self._now = None
        cache = kwargs.get("past_key_values")
        started = cache is not None and cache.get_seq_length() > 0
        media = any(kwargs.get(name) is not None and len(kwargs[name]) for name in MEDIA)
        if cache is not None and cache.is_compileable:
            if media:
                raise ValueError(
                    "a static cache has one length for all layers; with compression use the default cache"
                )
            self._latest = None
            return
        if cache is not None and started and not media:
            prefill = self._caches.get(cache)
            self._now = (
                Call(prefill=prefill, placed=kwargs.get("position_ids") is not None)
                if prefill
                else None
            )
            return
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        if not media and (ids is None or getattr(mask, "shape", ids.shape) != ids.shape):
            self._latest = None
            return
        if started or ids is None:
            raise ValueError(
                "compression starts with the prompt: give images or videos together with their input_ids and an empty"
                " cache (for a further turn, the whole conversation again)"
            )
        encoded = kwargs.get("mm_encoder_outputs") or {}
        self._vision.begin(sum(output is not None for output in encoded.values()))
        self._now = Call(ids=ids, media=media, returns=kwargs.get("use_cache") is False)

    def _enter(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Given | None:
        if self._now is None or (self._now.ids is None and not self._now.prefill.shortened):
            return None
        if self._now.ids is None:
            return args, self._now.continued(dict(kwargs), self.family.keeps_positions)
        return args, self._compress_prompt(self._now, dict(kwargs))

    def _compress_prompt(self, call: Call, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's entry: here the prompt is complete, and here the encoder's site takes effect."""
        assert call.ids is not None
        embeds, mask, ids = kwargs["inputs_embeds"], kwargs.get("attention_mask"), call.ids.cpu()
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
            raise ValueError(
                "attention_mask is not (rows, tokens), one for each of input_ids, as compression needs it"
            )
        valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool().cpu()
        seen, is_visual, lost = (
            self._vision.take(keep=call.returns),
            self.family.visual(ids) & call.media,
            None,
        )
        if seen.features or any(run.cells is not None for run in seen.runs):
            seen.labels, lost = read_labels(embeds)
            seen.labels = torch.where(is_visual & (seen.labels >= 0), seen.labels - seen.first, -1)
            lost &= seen.labels >= 0
        prefill = self._latest = call.prefill = Prefill(
            self.family.media(ids, embeds, seen) if call.media else [[] for _ in ids],
            valid,
            is_visual,
            self.method,
            self._model,
            self._seeds(len(ids)),
            embeds.device,
            self.keep_index,
            lost,
        )
        prefill.stopwatch = seen.stopwatch or prefill.stopwatch
        if prefill.lost is not None:
            prefill.note("vision")
        embeds, chosen, writes = EncoderSite(self.method, self._vision, prefill, seen).choose(
            embeds
        )
        prefill.join_groups()
        prefill.note("encoder")
        if chosen or prefill.lost is not None:
            before = prefill.valid
            short = prefill.drop(chosen)
            embeds = short.rows(embeds)
            writes = [(row, short.place[row, columns], vectors) for row, columns, vectors in writes]
            kwargs["position_ids"] = self._positions(
                prefill, kwargs.get("position_ids"), before, short
            )
            kwargs["attention_mask"] = prefill.valid.long()
            kwargs.update(self.family.shorten(kwargs, short))
            prefill.repacked = True
        elif writes:
            embeds = embeds.clone()
        for row, columns, vectors in writes:
            embeds[row, columns] = vectors.to(embeds)
        kwargs["inputs_embeds"] = embeds
        prefill.pass_layer(-1)
        if self.method.needs_attention:
            call.entered = Sequence(embeds, prefill.valid, prefill.visual)
            call.source = torch.arange(embeds.shape[1], device=embeds.device).expand_as(
                prefill.valid
            )
        call.packs = takes_packed(self.family.decoder, kwargs)
        if call.packs:
            call.enter(kwargs, self.family.per_token)
        return kwargs

    def _seeds(self, rows: int) -> list[int]:
        """A number for each row; beams and several answers to a prompt share it."""
        seeds = [0] if self.seeds is None else list(self.seeds)
        if not seeds or rows % len(seeds):
            raise ValueError(
                f"there are {len(seeds)} seeds for {rows} rows; give one for each prompt of the batch"
            )
        return [seed for seed in seeds for _ in range(rows // len(seeds))]

    def _positions(
        self, prefill: Prefill, positions: Tensor | None, before: Tensor, short: Shortened
    ) -> Tensor | None:
        """Survivors keep their positions, or close ranks: each then moves down by what was dropped before it."""
        if self.family.keeps_positions:
            if positions is None:
                positions = torch.arange(before.shape[1], device=before.device)[None]
            positions = short.last(positions)
            if positions.ndim == 3 and len(positions) == 4:
                # The first of Qwen's four says only which tokens belong together: gaps would look like packed rows.
                positions[0] = (short.valid.cumsum(dim=1) - 1).clamp(min=0)
            return positions
        stay = torch.zeros_like(before).scatter(1, short.source, short.valid)
        gone = (before & ~stay).cumsum(dim=1)
        prefill.dropped = gone[:, -1:]
        return None if positions is None else short.last(positions - gone)

    def _layer(
        self, depth: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Given | None:
        if self._now is None:
            return None
        call, hidden = self._now, args[0]
        if call.ids is not None:
            hidden = self._decoder_site(call, depth, layer, hidden, kwargs | call.replaced)
        elif depth in call.prefill.left:
            call.replaced = {"attention_mask": call.mask(self.family.decoder, depth, hidden)}
        return (hidden, *args[1:]), kwargs | call.replaced

    def _decoder_site(
        self, call: Call, depth: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        """The entry of a decoder layer: what goes in, after what the schedule drops here."""
        prefill, before = call.prefill, call.before
        asks_later = self.method.needs_attention and depth + 1 in prefill.sites
        call.before = None
        if depth not in prefill.sites and not asks_later:
            return hidden
        home = prefill.device  # of a model on several devices, all tokens are chosen on one
        entering, hidden = hidden, call.pad(hidden.to(home))
        here = LayerInput(
            layer, hidden, *(call.pad(angles.to(home)) for angles in kwargs["position_embeddings"])
        )
        call.before = here if asks_later else None
        if depth not in prefill.sites:
            return entering
        site = DecoderSite(
            Sequence(hidden, prefill.valid, prefill.visual),
            here,
            before,
            self.family.decoder.norm,
            call.entered,
            call.source,
        )
        chosen = prefill.choose(
            prefill.decoder_work(depth),
            lambda batch: batch.view(
                "decoder", depth, hidden[batch.rows, batch.columns], decoder=site
            ),
        )
        prefill.note(str(depth))
        if not chosen:
            return entering
        short = prefill.drop(chosen)
        prefill.pass_layer(depth)
        hidden = short.rows(hidden)
        for one in chosen:
            hidden[one.batch.rows, short.place[one.batch.rows, one.columns]] = one.tokens.to(
                hidden.dtype
            )
        call.source = None if call.source is None else short.last(call.source)
        angles = short.rows(here.cos), short.rows(here.sin)
        if asks_later:
            call.before = LayerInput(layer, hidden, *angles)
        return call.go_on(self.family.decoder, depth, hidden, angles)

    def _cached(
        self, depth: int, layer: nn.Module, args: object, kwargs: dict[str, Any], output: object
    ) -> None:
        """The layer has run: what it has put into the cache is laid out for steps."""
        cache = kwargs.get("past_key_values")
        if self._now is not None and self._now.unpadded is not None and cache is not None:
            self._now.unpadded.lay_out(cache.layers[depth])

    def _leave(self, decoder: nn.Module, args: object, output: Any) -> None:
        if self._now is None:
            return
        output.last_hidden_state = self._now.pad(output.last_hidden_state)
        cache, prefill = output.past_key_values, self._now.prefill
        if cache is not None:
            self._caches[cache] = prefill
            prefill.cache_bytes = sum(
                layer.keys.nbytes + layer.values.nbytes for layer in cache.layers
            )
        self._now = None
