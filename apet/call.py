"""What is known of one call of the model while it lasts, from the decoder's entry through its layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from apet.mask import causal_mask
from apet.prefill import Prefill
from apet.view import LayerInput, Sequence


@dataclass
class Call:
    """One call of the model: a prompt on its way through, or a step after it."""

    ids: Tensor | None = None  # (B, S) of a prompt; None: a step after it
    media: bool = False  # has the prompt any?
    returns: bool = False  # without a cache, a step brings the whole prompt again
    prefill: Prefill = None  # type: ignore[assignment]  # of a prompt from the decoder's entry on
    replaced: dict[str, Any] = field(default_factory=dict)  # what layers get instead of what the decoder gives them
    placed: bool = True  # the caller gave the positions of a later step
    news: Tensor | None = None  # (B, t) bool: tokens after the prompt
    gaps: bool = False  # is any of them padding?
    before: LayerInput | None = None  # what entered the layer before a site, where a method reads its attention
    entered: Sequence | None = None  # likewise, what entered the decoder
    source: Tensor | None = None  # (B, S) int64: the column there that each token comes from

    def continued(self, kwargs: dict[str, Any], keeps_positions: bool) -> dict[str, Any]:
        """A step after the prompt: its new tokens follow the shorter prompt."""
        prefill, mask, positions = self.prefill, kwargs.get("attention_mask"), kwargs.get("position_ids")
        entered = prefill.left[-1].valid
        first = prefill.left.get(0, prefill.left[-1]).valid.shape[1]  # what the model counts as the prompt, by layer 0
        before = kwargs["past_key_values"].get_seq_length() - first
        if before < 0:
            raise ValueError(
                f"the cache was cut back by {-before} tokens into the compressed prompt, as assisted decoding does;"
                " generate without prompt_lookup_num_tokens or an assistant_model"
            )
        count = before + kwargs["inputs_embeds"].shape[1]
        if mask is None:
            self.news = torch.ones(len(entered), count, dtype=torch.bool, device=entered.device)
        elif isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == prefill.width + count:
            self.news = mask[:, prefill.width :].bool()
        else:
            raise ValueError(
                "this step does not continue the compressed prompt: give an attention_mask (rows, tokens) over the"
                " prompt as it was and all tokens since, or start again without the cache"
            )
        self.gaps = mask is not None and len(prefill.left) > 1 and not bool(self.news.all())  # waits, once a step
        if prefill.repacked:
            kwargs["attention_mask"] = torch.cat([entered, self.news], dim=1).long()
        if positions is None and first < entered.shape[1]:  # the decoder would count from the shorter cache
            kwargs["position_ids"] = torch.arange(before, count, device=entered.device)[None] + entered.shape[1]
        elif positions is not None and not keeps_positions:
            kwargs["position_ids"] = positions - prefill.dropped
        elif positions is not None and not self.placed:  # the model did
            kwargs["position_ids"] = positions + prefill.width - first
        return kwargs

    def mask(self, decoder: nn.Module, depth: int, hidden: Tensor) -> Tensor | None:
        """What the layers from a site on may attend to."""
        (valid, padded), (whole, _) = self.prefill.left[depth], self.prefill.left[-1]
        count = whole.shape[1]
        if self.news is not None:
            valid, padded, count = torch.cat([valid, self.news], dim=1), padded or self.gaps, count + self.news.shape[1]
        return causal_mask(decoder, depth, hidden, valid, padded, count)
