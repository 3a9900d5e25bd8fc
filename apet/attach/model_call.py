"""The state of one call of the model, from the decoder's input through its layers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from apet.attach.prefill import Prefill
from apet.attention.masks import causal_mask
from apet.attention.packed_rows import PackedRows
from apet.transformers_api import cache_among
from apet.view import LayerInput
from apet.view import Sequence as TokenSequence


@dataclass
class ModelCall:
    """One call of the model: a prompt, or a step after it."""

    ids: Tensor | None = None  # (B, S) of a prompt, on the host; None: a step
    prompt_mask: Tensor | None = None  # its attention mask, and the same on the host
    valid: Tensor | None = None
    has_media: bool = False
    will_repeat: bool = False  # without a cache every step repeats the whole prompt
    prefill: Prefill = None  # type: ignore[assignment]  # of a prompt: set at the decoder's input
    packs: bool = False  # may layers see the prompt without padding?
    packed_rows: PackedRows | None = None  # how they see it now; None: padded, (B, S, D)
    overrides: dict[str, Any] = field(default_factory=dict)  # replace inputs of layers
    has_positions: bool = True  # the caller gave the positions of a step
    answer: Tensor | None = None  # (B, t) bool: valid tokens after the prompt
    answer_padded: bool = False  # is any of these padding?
    # For methods that read attention: what entered the layer before a site, what entered the
    # decoder, and the column (B, S) there of each token.
    previous_layer: LayerInput | None = None
    entry_sequence: TokenSequence | None = None
    entry_columns: Tensor | None = None

    # ---- a prompt: the inputs of its layers

    def pack_inputs(self, kwargs: dict[str, Any], per_token: Sequence[str]) -> None:
        """Change the decoder's inputs in place, so that its layers see no padding."""
        embeds, self.overrides = kwargs["inputs_embeds"], self._without_mask(-1)
        # The decoder hands a mask of four dimensions to its layers unread; `overrides` removes it.
        kwargs["attention_mask"] = embeds.new_empty(1, 1, 1, 1)
        if self.packed_rows is None:
            return
        if kwargs.get("position_ids") is None:
            kwargs["position_ids"] = torch.arange(embeds.shape[1], device=embeds.device)[None]
        for name in ("position_ids", *per_token):
            if kwargs.get(name) is not None:
                kwargs[name] = self.packed_rows.pack_scalars(kwargs[name])
        kwargs["inputs_embeds"] = self.pack(embeds)

    def continue_at(
        self, decoder: nn.Module, layer: int, hidden: Tensor, angles: Sequence[Tensor]
    ) -> Tensor:
        """Set the inputs of the layers from a site on; returns `hidden` (B, S, D) for them."""
        # Layers need the angles only. To a flash kernel, gaps in positions look like packed rows.
        if self.packs:
            self.overrides = self._without_mask(layer)
        else:
            mask = self.mask(decoder, layer, hidden)
            self.overrides = {"attention_mask": mask, "position_ids": None}
        self.overrides["position_embeddings"] = tuple(map(self.pack, angles))
        return self.pack(hidden)

    def _without_mask(self, layer: int) -> dict[str, Any]:
        """Pack unequal rows from this layer on; equal rows need no mask as they are."""
        padded = self.prefill.token_masks[layer].padded
        self.packed_rows = PackedRows(self.prefill.layout, self.prefill.device) if padded else None
        inputs = self.packed_rows.inputs if self.packed_rows else {}
        return {"attention_mask": None, "position_ids": None, **inputs}

    def pack(self, padded: Tensor) -> Tensor:
        """(..., B, S, D) as layers see it now."""
        return padded if self.packed_rows is None else self.packed_rows.pack(padded)

    def pad(self, packed: Tensor) -> Tensor:
        """(..., B, S, D) from what layers see now."""
        return packed if self.packed_rows is None else self.packed_rows.pad(packed)

    # ---- a step after the prompt

    def continue_prompt(self, kwargs: dict[str, Any], keeps_positions: bool) -> dict[str, Any]:
        """Change the decoder's inputs, so that the step's tokens follow the shortened prompt."""
        prefill = self.prefill
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        entry = prefill.token_masks[-1].valid
        # The model measures the prompt by the cache of layer 0.
        measured = prefill.token_masks.get(0, prefill.token_masks[-1]).valid.shape[1]
        before = cache_among(kwargs).get_seq_length() - measured
        if before < 0:
            raise ValueError(
                f"the cache was cut back by {-before} tokens into the compressed prompt, as"
                " assisted decoding does; generate without prompt_lookup_num_tokens or an"
                " assistant_model"
            )
        count = before + kwargs["inputs_embeds"].shape[1]
        width = prefill.prompt_width
        if mask is None:
            self.answer = torch.ones(len(entry), count, dtype=torch.bool, device=entry.device)
        elif isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == width + count:
            self.answer = mask[:, width:].bool()
        else:
            raise ValueError(
                "this step does not continue the compressed prompt: give an attention_mask"
                " (rows, tokens) over the prompt as it was and all tokens since, or start again"
                " without the cache"
            )
        # This waits for the device, once a step.
        has_sites = len(prefill.token_masks) > 1
        self.answer_padded = mask is not None and has_sites and not bool(self.answer.all())
        if prefill.changed_input:
            kwargs["attention_mask"] = torch.cat([entry, self.answer], dim=1).long()
        if positions is None and measured < entry.shape[1]:
            # The decoder would count from the shorter cache.
            new = torch.arange(before, count, device=entry.device)[None]
            kwargs["position_ids"] = new + entry.shape[1]
        elif positions is not None and not keeps_positions:
            kwargs["position_ids"] = positions - prefill.position_shift
        elif positions is not None and not self.has_positions:
            # The model counted from the shorter cache.
            kwargs["position_ids"] = positions + width - measured
        return kwargs

    def mask(self, decoder: nn.Module, layer: int, hidden: Tensor) -> Tensor | None:
        """The attention mask of the layers from a site on."""
        valid, padded = self.prefill.token_masks[layer]
        total = self.prefill.token_masks[-1].valid.shape[1]
        if self.answer is not None:
            valid = torch.cat([valid, self.answer], dim=1)
            padded, total = padded or self.answer_padded, total + self.answer.shape[1]
        return causal_mask(decoder, layer, hidden, valid, padded, total)
