"""VisionZip: keep the tokens that the vision tower attends to, and a few that represent the rest.

Keeps dominant tokens, to which the tower's CLS token attends most in the layer whose output the
model uses (attention summed over the heads), and contextual ones. These are sampled evenly from the
rest, and every other token joins the sample whose key, averaged over the heads, is most similar. A
contextual token is the sample plus the mean of those that joined it (not an average: as in the
authors' code). All of it once, at the encoder's output.

Of the 64 tokens of LLaVA's smallest budget the authors keep 54 dominant, one of them CLS itself,
and 10 contextual; 108 + 20 and 162 + 30 for 128 and 192. `contextual` is that share, 5/32. CLS
takes the first kept place, then come the dominant tokens and then the contextual ones, as in the
authors' code; LLaVA renumbers positions anyway. Without CLS (Qwen) the attention that a token
receives from all others counts, as in the authors' code, and every token stays at its own place.

Needs attention weights of one layer of the tower, computed beside the model's own kernel.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from apet.core.gram import first_argmax, gather, stable_topk
from apet.methods.base import Kept, Method, ModelLayout
from apet.schedule import Schedule
from apet.view import View

NOISE = 1e-6  # attention and cosines in float32 that differ by a smaller share are ties


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    name: ClassVar[str] = "visionzip"
    needs_tower: ClassVar[bool] = True
    encoder_only: ClassVar[bool] = True

    contextual: float = 5 / 32  # of the kept tokens, the share that represents others

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.contextual < 1:
            raise ValueError(
                f"contextual is {self.contextual}; it is a share of the tokens kept, from 0 to"
                " below 1"
            )

    def plan(self, visual_tokens: int, model: ModelLayout) -> Schedule:
        schedule = super().plan(visual_tokens, model)
        if any(site.stage != "encoder" for site in schedule.sites):
            raise ValueError(
                f"visionzip has '{schedule}'; it reads the tower's attention, and acts at 'encoder'"
                " alone"
            )
        return schedule

    def select(self, view: View) -> Kept:
        assert view.tower is not None
        received, keys, cls = view.tower
        contextual = min(round(view.keep * self.contextual), view.keep - 1)
        if view.keep <= contextual + 1:
            cls = None
        return zip_tokens(view.tokens, received, keys, view.keep, contextual, cls)


def zip_tokens(
    tokens: Tensor, received: Tensor, keys: Tensor, keep: int, contextual: int, cls: Tensor | None
) -> Kept:
    """Keep `keep` tokens of (G, N, D), `contextual` of which represent others.

    received: (G, N) attention; keys: (G, N, d); cls: (G, D)
    """
    groups, count, width = tokens.shape
    dominant = keep - contextual - (cls is not None)
    chosen = stable_topk(received, dominant, NOISE * received.amax(dim=1, keepdim=True))
    is_rest = torch.ones(groups, count, dtype=torch.bool, device=tokens.device)
    is_rest = is_rest.scatter(1, chosen, False)
    rest = _true_columns(is_rest, count - dominant)
    step = max(1, (count - dominant) // max(contextual, 1))
    target = rest[:, : step * contextual : step]  # evenly among the rest
    indices, values = torch.cat([chosen, target], dim=1), [gather(tokens, chosen)]
    if contextual:
        is_rest = is_rest.scatter(1, target, False)
        joining = _true_columns(is_rest, count - dominant - contextual)
        unit = keys / vector_norm(keys, dim=-1, keepdim=True).clamp(min=1e-12)
        slot = first_argmax(gather(unit, joining) @ gather(unit, target).mT, NOISE)  # (G, J, 1)
        total = tokens.new_zeros(groups, contextual, width, dtype=torch.float64)
        total.scatter_add_(1, slot.expand(-1, -1, width), gather(tokens, joining).double())
        members = total.new_zeros(groups, contextual, 1)
        members.scatter_add_(1, slot, torch.ones_like(slot, dtype=total.dtype))
        means = total / members.clamp(min=1)
        values.append((gather(tokens, target) + means).to(tokens.dtype))
    if cls is None:
        order = indices.sort(dim=1)
        return Kept(gather(torch.cat(values, dim=1), order.indices), order.values)
    # CLS is not one of the N tokens, so it takes the place of one that is dropped.
    taken = torch.zeros_like(is_rest, dtype=torch.int64).scatter(1, indices, 1)
    free = taken.argmin(dim=1, keepdim=True)
    return Kept(
        torch.cat([cls[:, None], *values], dim=1),
        torch.cat([free, indices], dim=1).sort(dim=1).values,
    )


def _true_columns(mask: Tensor, count: int) -> Tensor:
    """Ascending columns (G, count) of the true values of `mask` (G, N), `count` in each group."""
    return mask.byte().sort(dim=1, descending=True, stable=True).indices[:, :count]
