"""What is known of one call of the model while it lasts, from the decoder's entry through its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from apet.attach.prefill import Prefill
from apet.attention.masks import causal_mask
from apet.attention.unpadded import Unpadded
from apet.view import LayerInput
from apet.view import Sequence as Entered


@dataclass
class Call:
    """One call of the model: a prompt on its way through, or a step after it."""

    ids: Tensor | None = None  # (B, S) of a prompt; None: a step after it
    media: bool = False  # has the prompt any?
    returns: bool = False  # without a cache, a step brings the whole prompt again
    prefill: Prefill = None  # type: ignore[assignment]  # of a prompt from the decoder's entry on
    packs: bool = False  # may layers see it without padding?
    unpadded: Unpadded | None = None  # how they see it now, (1, T, D); None: as it is, (B, S, D)
    replaced: dict[str, Any] = field(
        default_factory=dict
    )  # what layers get instead of what the decoder gives them
    placed: bool = True  # the caller gave the positions of a later step
    news: Tensor | None = None  # (B, t) bool: tokens after the prompt
    gaps: bool = False  # is any of them padding?
    before: LayerInput | None = (
        None  # what entered the layer before a site, where a method reads its attention
    )
    entered: Entered | None = None  # likewise, what entered the decoder
    source: Tensor | None = None  # (B, S) int64: the column there that each token comes from

    # ---- a prompt: what layers get

    def enter(self, kwargs: dict[str, Any], per_token: Sequence[str]) -> None:
        """The decoder's entry, where layers may see the prompt without padding: its inputs, changed in place."""
        embeds, self.replaced = kwargs["inputs_embeds"], self._unmasked(-1)
        # One of four dimensions the decoder hands to its layers unread; they get none.
        kwargs["attention_mask"] = embeds.new_empty(1, 1, 1, 1)
        if self.unpadded is None:
            return
        if kwargs.get("position_ids") is None:
            kwargs["position_ids"] = torch.arange(embeds.shape[1], device=embeds.device)[None]
        for name in ("position_ids", *per_token):
            if kwargs.get(name) is not None:
                kwargs[name] = self.unpadded.pack_last(kwargs[name])
        kwargs["inputs_embeds"] = self.pack(embeds)

    def go_on(
        self, decoder: nn.Module, depth: int, hidden: Tensor, angles: Sequence[Tensor]
    ) -> Tensor:
        """A site has left `hidden` (B, S, D) and its rotary angles: what goes into this layer, and with what."""
        # No positions: a layer needs the angles alone, and to a flash kernel gaps look like packed rows.
        if self.packs:
            self.replaced = self._unmasked(depth)
        else:
            self.replaced = {
                "attention_mask": self.mask(decoder, depth, hidden),
                "position_ids": None,
            }
        self.replaced["position_embeddings"] = tuple(map(self.pack, angles))
        return self.pack(hidden)

    def _unmasked(self, depth: int) -> dict[str, Any]:
        """From this layer on, unequal rows are packed, and equal ones need no mask as they are."""
        padded = self.prefill.left[depth].padded
        self.unpadded = Unpadded(self.prefill.layout, self.prefill.device) if padded else None
        return {
            "attention_mask": None,
            "position_ids": None,
            **(self.unpadded.inputs if self.unpadded else {}),
        }

    def pack(self, padded: Tensor) -> Tensor:
        """(..., B, S, D) as layers see it now."""
        return padded if self.unpadded is None else self.unpadded.pack(padded)

    def pad(self, seen: Tensor) -> Tensor:
        """What layers see now as (..., B, S, D)."""
        return seen if self.unpadded is None else self.unpadded.pad(seen)

    # ---- a step after it

    def continued(self, kwargs: dict[str, Any], keeps_positions: bool) -> dict[str, Any]:
        """A step after the prompt: its new tokens follow the shorter prompt."""
        prefill, mask, positions = (
            self.prefill,
            kwargs.get("attention_mask"),
            kwargs.get("position_ids"),
        )
        entered = prefill.left[-1].valid
        first = prefill.left.get(0, prefill.left[-1]).valid.shape[
            1
        ]  # what the model counts as the prompt, by layer 0
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
        self.gaps = (
            mask is not None and len(prefill.left) > 1 and not bool(self.news.all())
        )  # waits, once a step
        if prefill.repacked:
            kwargs["attention_mask"] = torch.cat([entered, self.news], dim=1).long()
        if (
            positions is None and first < entered.shape[1]
        ):  # the decoder would count from the shorter cache
            kwargs["position_ids"] = (
                torch.arange(before, count, device=entered.device)[None] + entered.shape[1]
            )
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
            valid, padded, count = (
                torch.cat([valid, self.news], dim=1),
                padded or self.gaps,
                count + self.news.shape[1],
            )
        return causal_mask(decoder, depth, hidden, valid, padded, count)
