"""Muon for a network's matrices and AdamW for the rest: half the steps are half the hours on a CPU.

Muon (Jordan et al., 2024) turns each matrix's momentum into the nearest orthogonal one, so that all
directions of the matrix learn equally fast. torch's own version computes that in bfloat16, which
many CPUs can only emulate.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon:
    """An optimiser with the state dict of both parts."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], rest: Iterable[nn.Parameter], rate: float
    ) -> None:
        """`rate` is AdamW's. Matrices learn at eight times that: their steps have another norm."""
        self.matrices, self.rest = list(matrices), list(rest)
        self.rate = rate
        self.adam = torch.optim.AdamW(self.rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.momentum = [torch.zeros_like(matrix) for matrix in self.matrices]

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self.adam.state_dict(), "momentum": self.momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        self.momentum = [
            one.to(matrix.device)
            for one, matrix in zip(state["momentum"], self.matrices, strict=True)
        ]

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Take one step at `share` of the rate, and clear the gradients."""
        for group in self.adam.param_groups:
            group["lr"] = self.rate * share
        nn.utils.clip_grad_norm_(self.rest, 1.0)
        self.adam.step()
        shapes: dict[tuple[int, ...], list[int]] = {}
        for number, matrix in enumerate(self.matrices):
            if matrix.grad is not None:
                self.momentum[number].lerp_(matrix.grad, 1 - _MOMENTUM)
                shapes.setdefault(tuple(matrix.shape), []).append(number)
        for (rows, columns), numbers in shapes.items():
            ahead = [
                torch.lerp(self.matrices[n].grad, self.momentum[n], _MOMENTUM) for n in numbers
            ]
            rate = 8 * self.rate * share * max(1.0, rows / columns) ** 0.5
            for number, update in zip(numbers, _orthogonal(torch.stack(ahead)), strict=True):
                self.matrices[number].mul_(1 - 0.1 * rate).sub_(rate * update)
        for parameter in (*self.matrices, *self.rest):
            parameter.grad = None


def _orthogonal(stack: Tensor) -> Tensor:
    """Approximate the orthogonal factor of each matrix's polar decomposition (Newton-Schulz)."""
    tall = stack.shape[-2] > stack.shape[-1]
    turned = stack.mT if tall else stack
    turned = turned / (turned.norm(dim=(-2, -1), keepdim=True) + 1e-8)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(5):
        square = turned @ turned.mT
        turned = a * turned + (b * square + c * square @ square) @ turned
    return turned.mT if tall else turned


def muon(trained: nn.Module, matrices: Iterable[nn.Module], rate: float) -> Muon:
    """Give the two-dimensional weights of some modules to Muon, and all others to AdamW."""
    first = {id(one): one for module in matrices for one in module.parameters() if one.dim() == 2}
    rest = [one for one in trained.parameters() if one.requires_grad and id(one) not in first]
    return Muon(first.values(), rest, rate)
