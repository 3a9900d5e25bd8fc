"""VisionZip: the tokens that the vision tower itself attends to, and a few that stand for the rest.

Keeps dominant tokens, those to which the tower's CLS token attends most in the layer whose output the model uses
(attention summed over the heads), and contextual ones: the rest is sampled evenly, and every other token joins the
sample whose key, the mean over the heads, is most similar; a contextual token is the sample plus the mean of those that
joined it (not an average: that is the authors' code). All of it once, at the encoder's output.

Of the 64 tokens of LLaVA's smallest budget the authors keep 54 dominant, one of which is CLS itself, and 10 contextual;
108 + 20 and 162 + 30 for 128 and 192. `contextual` is that share, 5/32. CLS takes the first place that is kept, with
the dominant tokens and then the contextual ones after it, as in the authors' code; LLaVA renumbers positions anyway.
Without CLS (Qwen) the attention that a token receives from all others counts, as the authors do there, and every
token stays at its own place.

Needs attention weights, of one layer of the tower; they are computed beside the model's own kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apet.core.gram import first_largest, gather, largest
from apet.methods.base import Kept, Method, Model
from apet.schedule import Schedule
from apet.view import View

NOISE = 1e-6  # of attention and cosines in float32, as a share of the largest


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    name: ClassVar[str] = "visionzip"
    needs_tower: ClassVar[bool] = True
    encoder_only: ClassVar[bool] = True

    contextual: float = 5 / 32  # of the tokens kept, how many stand for the others

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.contextual < 1:
            raise ValueError(
                f"contextual is {self.contextual}; it is a share of the tokens kept, from 0 to below 1"
            )

    def plan(self, visual_tokens: int, model: Model) -> Schedule:
        schedule = super().plan(visual_tokens, model)
        if any(site.stage != "encoder" for site in schedule.sites):
            raise ValueError(
                f"visionzip has '{schedule}'; it reads the tower's attention, and acts at 'encoder' alone"
            )
        return schedule

    def select(self, view: View) -> Kept:
        assert view.tower is not None
        received, keys, cls = view.tower
        contextual = min(round(view.keep * self.contextual), view.keep - 1)
        with_cls = cls is not None and view.keep > contextual + 1
        return zip_tokens(
            view.tokens, received, keys, view.keep, contextual, cls if with_cls else None
        )


def zip_tokens(
    tokens: Tensor, received: Tensor, keys: Tensor, keep: int, contextual: int, cls: Tensor | None
) -> Kept:
    """`keep` tokens of (G, N, D), `contextual` of them for the rest; received (G, N), keys (G, N, d), cls (G, D)."""
    groups, count, width = tokens.shape
    dominant = keep - contextual - (cls is not None)
    noise = NOISE * received.amax(dim=1, keepdim=True)
    chosen = largest(received, dominant, noise)
    is_rest = torch.ones(groups, count, dtype=torch.bool, device=tokens.device).scatter(
        1, chosen, False
    )
    rest = is_rest.byte().sort(dim=1, descending=True, stable=True).indices[:, : count - dominant]
    step = max(1, (count - dominant) // max(contextual, 1))
    target = rest[:, : step * contextual : step]  # evenly among the rest
    places, parts = [chosen, target], [gather(tokens, chosen)]
    if contextual:
        is_rest = is_rest.scatter(1, target, False)
        joining = (
            is_rest.byte()
            .sort(dim=1, descending=True, stable=True)
            .indices[:, : count - dominant - contextual]
        )
        unit = keys / torch.linalg.vector_norm(keys, dim=-1, keepdim=True).clamp(min=1e-12)
        slot = first_largest(gather(unit, joining) @ gather(unit, target).mT, NOISE)  # (G, J, 1)
        total = tokens.new_zeros(groups, contextual, width, dtype=torch.float64)
        total.scatter_add_(1, slot.expand(-1, -1, width), gather(tokens, joining).double())
        members = total.new_zeros(groups, contextual, 1).scatter_add_(
            1, slot, torch.ones_like(slot, dtype=total.dtype)
        )
        parts.append((gather(tokens, target) + total / members.clamp(min=1)).to(tokens.dtype))
    if cls is None:
        order = torch.cat(places, dim=1).sort(dim=1)
        return Kept(gather(torch.cat(parts, dim=1), order.indices), order.values)
    spare = (
        rest.new_zeros(groups, count)
        .scatter(1, torch.cat(places, dim=1), 1)
        .argmin(dim=1, keepdim=True)
    )
    return Kept(
        torch.cat([cls[:, None], *parts], dim=1),
        torch.cat([spare, *places], dim=1).sort(dim=1).values,
    )
