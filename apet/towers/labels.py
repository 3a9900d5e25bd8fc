"""Numbers written into feature vectors, so that a model's own code can carry them to where the features belong.

Packing crops, cutting padding away and filling placeholders are then the model's business, and reading the numbers
from the decoder's input says which feature each column of the prompt would have held.
"""

from __future__ import annotations

import torch
from torch import Tensor

DIGITS, BASE = 4, 128  # integers up to 256 are exact in bfloat16
LENGTH = DIGITS + 1  # the last says whether the feature is lost


def write_labels(labels: Tensor, like: Tensor, lost: Tensor | None = None) -> Tensor:
    """(N,) numbers from 0 as vectors (N, D): their digits, then zeros; in the dtype of `like` (..., D).

    lost: (N,) bool, features that were dropped on the way
    """
    if like.shape[-1] < LENGTH:
        raise ValueError(
            f"vectors of {like.shape[-1]} numbers are too short for a label; {LENGTH} are enough"
        )
    vectors = like.new_zeros(len(labels), like.shape[-1])
    for digit in range(DIGITS):
        vectors[:, digit] = (labels // BASE**digit % BASE).to(like.dtype)
    if lost is not None:
        vectors[:, DIGITS] = lost.to(like.dtype)
    return vectors


def read_labels(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(..., D) to (...) on the host: the numbers, -1 for vectors that hold none, and which are lost."""
    digits, rest = vectors[..., :LENGTH].float(), vectors[..., LENGTH:]
    real = (
        (rest == 0).all(-1)
        & (digits == digits.round()).all(-1)
        & ((digits >= 0) & (digits < BASE)).all(-1)
    )
    weights = torch.tensor([BASE**digit for digit in range(DIGITS)], device=vectors.device)
    numbers = torch.where(real, (digits[..., :DIGITS].long() * weights).sum(-1), -1)
    return numbers.cpu(), (real & (digits[..., DIGITS] == 1)).cpu()
