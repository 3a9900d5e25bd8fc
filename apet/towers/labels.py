"""Labels: numbers in feature vectors, which a model's own code carries to their places.

Arranging crops, cutting padding away and filling placeholders are then the model's business. The
labels in the decoder's input say which feature each column of the prompt would have held.
"""

import torch
from torch import Tensor

DIGITS, BASE = 4, 128  # integers up to 256 are exact in bfloat16
LENGTH = DIGITS + 1  # the last number says whether the feature was dropped


def write_labels(labels: Tensor, like: Tensor, dropped: Tensor | None = None) -> Tensor:
    """Labels (N,) from 0 as vectors (N, D), digits then zeros, in the dtype of `like` (..., D).

    dropped: (N,) bool, features that were dropped on the way
    """
    if like.shape[-1] < LENGTH:
        raise ValueError(
            f"vectors of {like.shape[-1]} numbers are too short for a label; expected {LENGTH} or"
            " more"
        )
    vectors = like.new_zeros(len(labels), like.shape[-1])
    for digit in range(DIGITS):
        vectors[:, digit] = (labels // BASE**digit % BASE).to(like.dtype)
    if dropped is not None:
        vectors[:, DIGITS] = dropped.to(like.dtype)
    return vectors


def read_labels(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Read (..., D): labels (...), -1 where there is none, and which are dropped; on the host."""
    digits, rest = vectors[..., :LENGTH].float(), vectors[..., LENGTH:]
    valid = (digits == digits.round()) & (digits >= 0) & (digits < BASE)
    labelled = (rest == 0).all(-1) & valid.all(-1)
    weights = BASE ** torch.arange(DIGITS, device=vectors.device)
    labels = torch.where(labelled, (digits[..., :DIGITS].long() * weights).sum(-1), -1)
    dropped = labelled & (digits[..., DIGITS] == 1)
    labels, marks = torch.stack([labels, dropped.long()]).cpu()  # one wait for both
    return labels, marks.bool()
