"""Short answers: the same as from `generate`, without copying caches, and finished rows leave.

    decode = Decode(model)                                   # once
    with attach(model, ApET(budget=64)):                     # or without
        ids = decode.answer(inputs, max_new_tokens=8)        # (B, n), the same as from `generate`
        ids = decode.answer(prefixes, 8, suffixes=suffixes)  # the same, each prefix computed once

`generate` prepares the prompt, the logits processors and the stopping criteria, and calls the loop
here through its `custom_generate` hook. The prompt goes through the model. After that only the
decoder is needed, over caches that have a length for each layer and free columns for the answer
(`apet/decoding/growing_steps.py`), and with CUDA as a graph (`apet/decoding/cuda_graphs.py`).

Prompts that begin alike, with the same media, can share that beginning: its keys and values, from
which a method has dropped tokens, are computed once (`apet/decoding/shared_steps.py`).
"""

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from apet.attach.attachment import attached_to
from apet.attach.token_groups import TokenMask
from apet.decoding.cuda_graphs import FixedSteps, GraphStore
from apet.decoding.decode_step import DecodeState, sdpa_attention
from apet.decoding.growing_steps import GrowingSteps
from apet.decoding.shared_steps import SharedSteps, Suffixes, next_positions
from apet.models import family_of
from apet.transformers_api import (
    cache_of,
    is_greedy,
    prompt_inputs,
    set_prompt_padding,
    sliding_window,
)

# Options of a checkpoint's generation config whose logits processors are made for the prompt that
# `generate` sees. With shared prefixes, that is not the whole prompt.
PROMPT_OPTIONS = (
    "min_new_tokens",
    "min_length",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "exponential_decay_length_penalty",
    "encoder_repetition_penalty",
    "encoder_no_repeat_ngram_size",
)


class Decode:
    """Answers of one model, which stays on its device, with or without an attached method.

    Decoding is greedy. To sample, give a logits processor that adds Gumbel noise.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self.family = family_of(model)
        self.graphs = GraphStore(self.family) if model.device.type == "cuda" else None

    def answer(
        self,
        inputs: Mapping[str, Any],
        max_new_tokens: int,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        suffixes: Suffixes | None = None,
        after_prefixes: Callable[[], None] | None = None,
    ) -> Tensor:
        """The new tokens (B, n) after a processor's output; shorter answers are padded.

        suffixes:       the rows that continue the G prompts of `inputs`; ask `can_share` first
        after_prefixes: called once the prefixes have been computed
        """
        loop = partial(self._loop, suffixes, after_prefixes)
        width = inputs["input_ids"].shape[1]
        more = 0 if suffixes is None else suffixes.ids.shape[1]
        if self._supports(width + more + max_new_tokens):
            own_loop = {"custom_generate": loop, "use_cache": True}
        elif suffixes is None:
            own_loop = {}
        else:
            raise ValueError(
                f"prompts and answers of {width + more + max_new_tokens} tokens cannot share"
                " prefixes in this model; ask `can_share` first, or give whole prompts"
            )
        out = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=more + max_new_tokens,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            **own_loop,
        )
        answers: Tensor = out[:, width + more :]
        return answers

    def can_share(self, tokens: int) -> bool:
        """Whether rows of at most `tokens` tokens, with their answers, can share prefixes."""
        config = self.model.generation_config
        options = (getattr(config, name, None) for name in PROMPT_OPTIONS)
        return self._supports(tokens) and not any(options)

    def forget(self) -> bool:
        """Free the memory of graphs and make no more of them. Returns whether there were any."""
        had_graphs, self.graphs = self.graphs is not None, None
        return had_graphs

    def _supports(self, total: int) -> bool:
        """Whether this is greedy search on one device over caches that keep all `total` columns.

        Everything else is left to `generate`.
        """
        config = deepcopy(self.model.generation_config)
        config.do_sample = False
        windows = filter(None, map(sliding_window, self.family.layers))
        return (
            is_greedy(config)
            and min(windows, default=total) >= total
            and len({*getattr(self.model, "hf_device_map", {}).values()}) <= 1
        )

    def _loop(
        self,
        suffixes: Suffixes | None,
        after_prefixes: Callable[[], None] | None,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        """Replace the loop of `generate`: (B, S) -> (B, S + n)."""
        prompt = prompt_inputs(model, input_ids, model_kwargs)
        out = model(**prompt, return_dict=True)
        logits, cache = out.logits[:, -1], cache_of(out)
        del out
        steps: GrowingSteps | FixedSteps | SharedSteps | None = None
        with sdpa_attention(self.family.decoder):
            if suffixes is not None:
                if after_prefixes is not None:
                    after_prefixes()
                state = self._state(prompt, cache)
                steps = SharedSteps(self.family, state, suffixes)
                mask = prompt.get("attention_mask")  # None: nothing is padded
                valid = torch.ones_like(input_ids) if mask is None else mask
                input_ids, padding = steps.prompts(input_ids, valid.bool())
                set_prompt_padding(logits_processor, padding)
                logits = steps.start()
                if self.graphs is not None:
                    steps = self._steps(steps.state())
                del prompt, cache, state
            batch, width = input_ids.shape
            pad, end = _pad_token(generation_config), generation_config.max_length
            ids = torch.cat([input_ids, input_ids.new_zeros(batch, end - width)], dim=1)
            unfinished = torch.ones(batch, dtype=torch.bool, device=ids.device)
            rows: Tensor | None = None  # of the batch that `steps` still computes; None: all
            for column in range(width, end):
                tokens = logits_processor(ids[:, :column], logits.float()).argmax(dim=-1)
                ids[:, column] = tokens if pad is None else tokens.where(unfinished, pad)
                unfinished = unfinished & ~stopping_criteria(ids[:, : column + 1], None)
                # This waits for the device. The delay of the next launch costs less than a step
                # that no row needs.
                if column + 1 == end or (remaining := int(unfinished.sum())) == 0:
                    break
                if steps is None:
                    steps = self._steps(self._state(prompt, cache))
                    del prompt, cache
                elif steps.full:
                    steps = self._steps(steps.state())
                count = batch if rows is None else len(rows)
                rows_leave = pad is not None and 2 * remaining <= count
                if rows_leave and not isinstance(steps, FixedSteps):
                    kept = (unfinished if rows is None else unfinished[rows]).nonzero()[:, 0]
                    rows = kept if rows is None else rows[kept]
                    steps.keep_rows(kept)
                if rows is None:
                    logits = steps(ids[:, column, None])
                else:
                    computed = steps(ids[rows, column, None])
                    logits = computed.new_zeros(batch, computed.shape[1])
                    logits.index_copy_(0, rows, computed)
        return ids[:, : column + 1]

    def _steps(self, state: DecodeState) -> GrowingSteps | FixedSteps:
        """Steps that continue from `state`, with a graph where possible, even for a single step.

        `GrowingSteps` would copy the caches as often, and a known graph is one launch.
        """
        if self.graphs is not None:
            try:
                fixed = self.graphs.steps_from(state)
            except RuntimeError as error:  # also torch.OutOfMemoryError, but not CaptureError
                warnings.warn(
                    f"answers go on without CUDA graphs, which could not be made: {error}",
                    stacklevel=2,
                )
                self.forget()
            else:
                if fixed is not None:
                    return fixed
        return GrowingSteps(self.family, state)

    def _state(self, prompt: Mapping[str, Any], cache: Any) -> DecodeState:
        """The state after the prompt, which an attached method may have shortened."""
        positions, mask = next_positions(prompt["position_ids"]), prompt.get("attention_mask")
        attachment = attached_to(self.family.core)
        prefill = attachment.prefill_of(cache) if attachment is not None else None
        if prefill is None:
            keys = cache.layers[0].keys
            unpadded = keys.new_ones(len(keys), keys.shape[2], dtype=torch.bool)
            valid = unpadded if mask is None else mask.bool()
            return DecodeState(cache.layers, {0: TokenMask(valid, mask is not None)}, positions)
        if not self.family.keeps_positions:
            positions = positions - prefill.position_shift
        # Layer 0 sees the decoder's input (-1), unless it has a site of its own.
        masks = {max(layer, 0): prefill.token_masks[layer] for layer in sorted(prefill.token_masks)}
        return DecodeState(cache.layers, masks, positions)


def _pad_token(config: GenerationConfig) -> int | None:
    """The token behind a row's end, as `generate` chooses it; None: rows have no end."""
    ends = config.eos_token_id
    if ends is None:
        return None
    first: int = ends if isinstance(ends, int) else ends[0]
    return first if config.pad_token_id is None else config.pad_token_id
