"""Short answers: what `generate` says, in steps that copy no cache, with rows that leave when they are done.

    decode = Decode(model)                                   # once
    with attach(model, ApET(budget=64)):                     # or without
        ids = decode.answer(inputs, max_new_tokens=8)        # (B, n), as `generate` would have them

`generate` prepares the prompt, the processors of logits and the rules for stopping, by its own seam for a loop of
one's own; the prompt goes through the model. From then on only the decoder is needed, over caches of each layer's own
length with room for the answer (`apet/decoding/step.py`), and where there is CUDA as a graph (`apet/decoding/graph.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.configuration_utils import GenerationMode

from apet.attach.prefill import Left
from apet.attach.session import attached_to
from apet.attention.masks import window_of
from apet.decoding.graph import Fixed, Graphs
from apet.decoding.step import Past, Rooms, single_queries
from apet.models import family_of


class Decode:
    """Answers of one model, on the device where it stays, whatever is attached to it at the time.

    The likeliest token is taken each time; for sampling, a processor of logits adds noise, as Gumbel's trick has it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self.family = family_of(model)
        self.graphs = Graphs(self.family) if model.device.type == "cuda" else None

    def answer(
        self,
        inputs: Mapping[str, Any],
        max_new_tokens: int,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
    ) -> Tensor:
        """The new tokens (B, n) of a padded batch, up to the last row's end; behind a row's own end is padding.

        inputs: what the processor made: `input_ids` (B, S) among them
        """
        own = (
            {"custom_generate": self._loop, "use_cache": True}
            if self._fits(inputs, max_new_tokens)
            else {}
        )
        out = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            **own,
        )
        answers: Tensor = out[:, inputs["input_ids"].shape[1] :]
        return answers

    def forget(self) -> bool:
        """Memory is short: give back what graphs hold, and make no more of them. Were there any?"""
        there, self.graphs = self.graphs is not None, None
        return there

    def _fits(self, inputs: Mapping[str, Any], max_new_tokens: int) -> bool:
        """Is this plain greedy choice, on one device, over caches that keep all columns? If not, `generate` does it."""
        config = deepcopy(self.model.generation_config)
        config.do_sample = False
        total = inputs["input_ids"].shape[1] + max_new_tokens
        windows = [
            window for layer in self.family.layers if (window := window_of(layer)) is not None
        ]
        return (
            config.get_generation_mode() == GenerationMode.GREEDY_SEARCH
            and config.cache_implementation in (None, "dynamic")
            and config.num_return_sequences in (None, 1)
            and min(windows, default=total) >= total
            and len({*getattr(self.model, "hf_device_map", {}).values()}) <= 1
        )

    def _loop(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        """What `generate` calls in the place of its own loop: (B, S) -> (B, S + n)."""
        batch, width = input_ids.shape
        prompt = model.prepare_inputs_for_generation(
            input_ids, is_first_iteration=True, **model_kwargs
        )
        out = model(**prompt, return_dict=True)
        logits, cache, steps = out.logits[:, -1], out.past_key_values, None
        del out
        pad, end = _pad(generation_config), generation_config.max_length
        ids = torch.cat([input_ids, input_ids.new_zeros(batch, end - width)], dim=1)
        unfinished = torch.ones(batch, dtype=torch.bool, device=ids.device)
        rows: Tensor | None = None  # those that are still at work; None: all
        with single_queries(self.family.decoder):
            for at in range(width, end):
                tokens = logits_processor(ids[:, :at], logits.float()).argmax(dim=-1)
                ids[:, at] = tokens if pad is None else tokens.where(unfinished, pad)
                unfinished = unfinished & ~stopping_criteria(ids[:, : at + 1], None)
                # This waits for the device: the moment until the next launch costs less than a step for nobody.
                if at + 1 == end or (left := int(unfinished.sum())) == 0:
                    break
                if steps is None:
                    steps = self._steps(self._past(prompt, cache))
                    del prompt, cache
                elif steps.full:
                    steps = self._steps(steps.past())
                here = batch if rows is None else len(rows)
                if pad is not None and 2 * left <= here and isinstance(steps, Rooms):
                    places = (unfinished if rows is None else unfinished[rows]).nonzero()[:, 0]
                    rows = places if rows is None else rows[places]
                    steps.keep(places)
                if rows is None:
                    logits = steps(ids[:, at, None])
                else:
                    some = steps(ids[rows, at, None])
                    logits = some.new_zeros(batch, some.shape[1]).index_copy(0, rows, some)
        return ids[:, : at + 1]

    def _steps(self, past: Past) -> Rooms | Fixed:
        """Also of a single step: `Rooms` would copy caches as often, and a graph that comes again is one launch."""
        if self.graphs is not None:
            try:
                fixed = self.graphs.take(past)
            except RuntimeError as error:  # also torch.OutOfMemoryError
                warnings.warn(
                    f"answers go on without CUDA graphs, which could not be made: {error}",
                    stacklevel=2,
                )
                self.forget()
            else:
                if fixed is not None:
                    return fixed
        return Rooms(self.family, past)

    def _past(self, prompt: Mapping[str, Any], cache: Any) -> Past:
        """Where the prompt leaves off; an attached method has made it shorter, and knows how."""
        positions, mask = prompt["position_ids"][..., -1:] + 1, prompt.get("attention_mask")
        attachment = attached_to(self.family.core)
        prefill = attachment.prefill_of(cache) if attachment is not None else None
        if prefill is None:
            first = cache.layers[0].keys
            valid = (
                first.new_ones(first.shape[0], first.shape[2], dtype=torch.bool)
                if mask is None
                else mask.bool()
            )
            return Past(cache.layers, {0: Left(valid, mask is not None)}, positions)
        if not self.family.keeps_positions:
            positions = positions - prefill.dropped
        left = {max(layer, 0): prefill.left[layer] for layer in sorted(prefill.left)}
        return Past(cache.layers, left, positions)


def _pad(config: GenerationConfig) -> int | None:
    """What stands behind a row's end, as `generate` chooses it; None: rows have no end."""
    ends = config.eos_token_id
    if ends is None:
        return None
    first: int = ends if isinstance(ends, int) else ends[0]
    return first if config.pad_token_id is None else config.pad_token_id
