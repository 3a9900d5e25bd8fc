"""Compression attached to an ordinary transformers model, and detached again.

    with attach(model, ApET(budget=64)) as run:
        model.generate(**inputs)
    run.stats

All of it is hooks: no class is replaced, no forward is copied, and leaving the block restores the
model. (The one exception: vision towers that share their work, `apet/towers/shared_outputs.py`.)
Every site does the same at another depth: select among the visual tokens of each row, gather the
rows of the sequence that stay, and let all later layers and decode steps see the shorter sequence.
The cache that `generate` returns is an ordinary one with shorter layers.
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

from apet.attach.encoder_site import EncoderSite
from apet.attach.model_call import ModelCall
from apet.attach.prefill import Prefill
from apet.attach.row_stats import RowStats
from apet.attach.token_groups import GroupBatch
from apet.attach.vision_hooks import VisionHooks
from apet.attention.packed_rows import can_pack
from apet.methods.base import Method, ModelLayout
from apet.models import family_of
from apet.models.base import Family
from apet.shortened_batch import ShortenedBatch
from apet.towers.labels import read_labels
from apet.towers.shared_outputs import Towers
from apet.transformers_api import MEDIA_INPUTS, cache_among, cache_of
from apet.view import DecoderSite, LayerInput, Sequence, View

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
HookInputs = tuple[Args, Kwargs]


def attach(
    model: PreTrainedModel,
    method: Method,
    *,
    keep_index: bool = False,
    towers: Towers | None = None,
) -> Attachment:
    """Compress the visual tokens of every prompt that `model` sees inside the `with` block.

    keep_index: let `stats` list the kept tokens as well
    towers:     a memory that attachments share, so that equal media are encoded once for all
    """
    return Attachment(family_of(model), method, keep_index, towers)


def attached_to(core: nn.Module) -> Attachment | None:
    """The attachment of the module that takes token ids and pixels."""
    owners = (getattr(hook, "__self__", None) for hook in core._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Attachment)), None)


class Attachment:
    """An attached method. `stats` has one entry for each row of the latest prompts.

    seeds: set this to a number for each row of the next prompts, for methods that draw
    """

    def __init__(
        self, family: Family, method: Method, keep_index: bool, towers: Towers | None = None
    ) -> None:
        self.family, self.method, self.keep_index, self.towers = family, method, keep_index, towers
        self.seeds: abc.Sequence[int] | None = None
        self._hooks: list[RemovableHandle] = []
        self._sharing = ExitStack()
        self._prefills: WeakKeyDictionary[Cache, Prefill] = WeakKeyDictionary()
        self._latest: Prefill | None = None
        self._call: ModelCall | None = None
        self._model = ModelLayout.of(family)
        self._vision = VisionHooks(family, method, self._model)

    @property
    def stats(self) -> list[RowStats]:
        return self._latest.stats if self._latest else []

    def prefill_of(self, cache: Cache) -> Prefill | None:
        """The compressed prompts that this cache holds."""
        return self._prefills.get(cache)

    def __enter__(self) -> Self:
        family, method = self.family, self.method
        if attached_to(family.core) is not None:
            raise ValueError("a method is attached already; leave its `with` block first")
        try:
            self._hooks.extend(self._vision.hooks())
            for module, hook in (
                (family.core, self._start_call),
                (family.decoder, self._enter_decoder),
                *((layer, partial(self._enter_layer, n)) for n, layer in enumerate(family.layers)),
            ):
                self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            for number, layer in enumerate(family.layers):
                leave = partial(self._leave_layer, number)
                self._hooks.append(layer.register_forward_hook(leave, with_kwargs=True))
            self._hooks.append(family.decoder.register_forward_hook(self._leave_decoder))
            if self.towers is not None and not self._vision.inside:
                modules = [*(family.towers or [family.tower])]
                # Hooks inside a tower record something for each medium of the batch.
                shared = self.towers.shared(modules, within_batch=not method.needs_tower)
                self._sharing.enter_context(shared)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._sharing.close()
        self._prefills.clear()
        self._vision.start_prompt(0)
        self._call = None

    # ---- hooks, in the order in which the model runs them

    def _start_call(self, core: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Tell a new prompt from a step after a compressed one and from calls to leave alone."""
        self._call = None
        cache, mask = cache_among(kwargs), kwargs.get("attention_mask")
        started = cache is not None and cache.get_seq_length() > 0
        has_media = any(kwargs.get(name) is not None and len(kwargs[name]) for name in MEDIA_INPUTS)
        if cache is not None and cache.is_compileable:
            if has_media:
                raise ValueError(
                    "a static cache has one length for all layers; with compression use the"
                    " default cache"
                )
            self._latest = None
            return
        if cache is not None and started and not has_media:
            if prefill := self._prefills.get(cache):
                has_positions = kwargs.get("position_ids") is not None
                self._call = ModelCall(prefill=prefill, has_positions=has_positions)
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not has_media and (ids is None or getattr(mask, "shape", ids.shape) != ids.shape):
            self._latest = None
            return
        if started or ids is None:
            raise ValueError(
                "compression starts with the prompt: give images or videos together with their"
                " input_ids and an empty cache (for a further turn, the whole conversation again)"
            )
        encoded = kwargs.get("mm_encoder_outputs") or {}
        self._vision.start_prompt(sum(output is not None for output in encoded.values()))
        no_cache = kwargs.get("use_cache") is False
        # The device is read here, while it has nothing to do: later it works on the vision tower.
        valid = mask.bool().cpu() if isinstance(mask, Tensor) else None
        self._call = ModelCall(
            ids=ids.cpu(),
            prompt_mask=mask,
            valid=valid,
            has_media=has_media,
            will_repeat=no_cache,
        )

    def _enter_decoder(self, decoder: nn.Module, args: Args, kwargs: Kwargs) -> HookInputs | None:
        call = self._call
        if call is None or (call.ids is None and not call.prefill.shortened):
            return None
        if call.ids is None:
            return args, call.continue_prompt(dict(kwargs), self.family.keeps_positions)
        return args, self._compress_prompt(call, call.ids, dict(kwargs))

    def _compress_prompt(self, call: ModelCall, ids: Tensor, kwargs: Kwargs) -> Kwargs:
        """Apply the encoder's site to the decoder's inputs: here the prompt is complete."""
        embeds, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
            raise ValueError(
                "attention_mask is not (rows, tokens), one for each of input_ids, as compression"
                " needs it"
            )
        if mask is None:
            valid = torch.ones_like(ids, dtype=torch.bool)
        elif mask is call.prompt_mask and call.valid is not None:
            valid = call.valid
        else:
            valid = mask.bool().cpu()
        visual = self.family.visual(ids) & call.has_media
        record, dropped_in_tower = self._vision.take_record(keep=call.will_repeat), None
        if record.features or not record.complete:
            known = self.family.labels(ids, record.count) if record.complete else None
            if known is None:
                labels, dropped_in_tower = read_labels(embeds)
                known = torch.where(visual & (labels >= 0), labels - record.first, -1)
                dropped_in_tower &= known >= 0
            record.labels = known
        prefill = self._latest = call.prefill = Prefill(
            self.family.media(ids, embeds, record) if call.has_media else [[] for _ in ids],
            valid,
            visual,
            self.method,
            self._model,
            self._row_seeds(len(ids)),
            embeds.device,
            self.keep_index,
            dropped_in_tower,
        )
        prefill.stopwatch = record.stopwatch or prefill.stopwatch
        if prefill.marked is not None:
            prefill.record_site("vision")
        site = EncoderSite(self.method, self._vision, prefill, record)
        embeds, selections, writes = site.select(embeds)
        prefill.join_groups()
        prefill.record_site("encoder")
        if selections or prefill.marked is not None:
            before = prefill.valid
            short = prefill.drop(selections)
            embeds = short.take(embeds)
            writes = [(row, short.destination[row, column], value) for row, column, value in writes]
            positions = kwargs.get("position_ids")
            kwargs["position_ids"] = self._positions(prefill, positions, before, short)
            kwargs["attention_mask"] = prefill.valid.long()
            kwargs.update(self.family.shorten(kwargs, short))
            prefill.changed_input = True
        elif writes:
            embeds = embeds.clone()
        for row, column, value in writes:
            embeds[row, column] = value.to(embeds)
        kwargs["inputs_embeds"] = embeds
        prefill.store_token_mask(-1)
        if self.method.needs_attention:
            call.entry_sequence = Sequence(embeds, prefill.valid, prefill.visual)
            columns = torch.arange(embeds.shape[1], device=embeds.device)
            call.entry_columns = columns.expand_as(prefill.valid)
        call.packs = can_pack(self.family.decoder, kwargs)
        if call.packs:
            call.pack_inputs(kwargs, self.family.per_token)
        return kwargs

    def _row_seeds(self, rows: int) -> list[int]:
        """A seed for each row. Beams and several answers to a prompt share it."""
        seeds = [0] if self.seeds is None else list(self.seeds)
        if not seeds or rows % len(seeds):
            raise ValueError(
                f"there are {len(seeds)} seeds for {rows} rows; give one for each prompt of the"
                " batch"
            )
        return [seed for seed in seeds for _ in range(rows // len(seeds))]

    def _positions(
        self, prefill: Prefill, positions: Tensor | None, before: Tensor, short: ShortenedBatch
    ) -> Tensor | None:
        """Keep the positions of remaining tokens, or move them down by the count dropped before."""
        if self.family.keeps_positions:
            if positions is None:
                positions = torch.arange(before.shape[1], device=before.device)[None]
            positions = short.take_scalars(positions)
            if positions.ndim == 3 and len(positions) == 4:
                # The first of Qwen's four only says which tokens belong together: with gaps they
                # would look like packed rows.
                positions[0] = (short.valid.cumsum(dim=1) - 1).clamp(min=0)
            return positions
        stays = torch.zeros_like(before).scatter(1, short.source, short.valid)
        dropped = (before & ~stays).cumsum(dim=1)
        prefill.position_shift = dropped[:, -1:]
        return None if positions is None else short.take_scalars(positions - dropped)

    def _enter_layer(
        self, number: int, layer: nn.Module, args: Args, kwargs: Kwargs
    ) -> HookInputs | None:
        call, hidden = self._call, args[0]
        if call is None:
            return None
        if call.ids is not None:
            hidden = self._decoder_site(call, number, layer, hidden, kwargs | call.overrides)
        elif number in call.prefill.token_masks:
            mask = call.mask(self.family.decoder, number, hidden)
            call.overrides = {"attention_mask": mask}
        return (hidden, *args[1:]), kwargs | call.overrides

    def _decoder_site(
        self, call: ModelCall, number: int, layer: nn.Module, hidden: Tensor, kwargs: Kwargs
    ) -> Tensor:
        """Apply the site at the entry of decoder layer `number`; returns the layer's input."""
        prefill, previous = call.prefill, call.previous_layer
        precedes_site = self.method.needs_attention and number + 1 in prefill.sites
        call.previous_layer = None
        if number not in prefill.sites and not precedes_site:
            return hidden
        # In a model on several devices, all tokens are selected on one.
        device = prefill.device
        unchanged, hidden = hidden, call.pad(hidden.to(device))
        angles = [call.pad(angle.to(device)) for angle in kwargs["position_embeddings"]]
        current = LayerInput(layer, hidden, *angles)
        call.previous_layer = current if precedes_site else None
        if number not in prefill.sites:
            return unchanged
        site = DecoderSite(
            Sequence(hidden, prefill.valid, prefill.visual),
            current,
            previous,
            self.family.decoder.norm,
            call.entry_sequence,
            call.entry_columns,
        )

        def view(batch: GroupBatch) -> View:
            tokens = hidden[batch.rows, batch.columns]
            return batch.view("decoder", number, tokens, decoder=site)

        selections = prefill.select(prefill.decoder_targets(number), view)
        prefill.record_site(str(number))
        if not selections:
            return unchanged
        short = prefill.drop(selections)
        prefill.store_token_mask(number)
        shorter = short.take(hidden)
        for batch, tokens, columns in selections:
            shorter[batch.rows, short.destination[batch.rows, columns]] = tokens.to(shorter.dtype)
        if call.entry_columns is not None:
            call.entry_columns = short.take_scalars(call.entry_columns)
        angles = [short.take(angle) for angle in angles]
        if precedes_site:
            call.previous_layer = LayerInput(layer, shorter, *angles)
        return call.continue_at(self.family.decoder, number, shorter, angles)

    def _leave_layer(
        self, number: int, layer: nn.Module, args: object, kwargs: Kwargs, output: object
    ) -> None:
        """Pad the packed keys and values that the layer has put into the cache, for steps."""
        cache = cache_among(kwargs)
        if self._call is not None and self._call.packed_rows is not None and cache is not None:
            self._call.packed_rows.unpack_cache(cache.layers[number])

    def _leave_decoder(self, decoder: nn.Module, args: object, output: Any) -> None:
        if self._call is None:
            return
        output.last_hidden_state = self._call.pad(output.last_hidden_state)
        cache, prefill = cache_of(output), self._call.prefill
        if cache is not None:
            self._prefills[cache] = prefill
            sizes = (layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
            prefill.cache_bytes = sum(sizes)
        self._call = None
