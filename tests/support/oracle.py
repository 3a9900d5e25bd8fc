"""ApET step by step from the paper, in float64 and plain numpy, sharing no code with ours.

Among values that are equal up to rounding the first wins (`first_best`). That is the paper's order
with our one addition that ties go to the lower index.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SAME = 1e-12  # values closer than this share of their scale are ties


@dataclass
class Answer:
    tokens: Array
    index: list[int]
    error: Array
    basis: list[int]


def first_best(values: Array, scale: float, among: list[int]) -> int:
    best = max(values[i] for i in among)
    return next(i for i in among if values[i] >= best - SAME * scale)


def farthest(tokens: Array, size: int) -> list[int]:
    far = ((tokens - tokens.mean(axis=0)) ** 2).sum(axis=1)
    nearest = np.full(len(tokens), np.inf)
    picks: list[int] = []
    for _ in range(size):
        free = [i for i in range(len(tokens)) if i not in picks]
        picks.append(first_best(far, max(far[i] for i in free), free))
        nearest = np.minimum(nearest, ((tokens - tokens[picks[-1]]) ** 2).sum(axis=1))
        far = nearest
    return picks


def errors(tokens: Array, basis: list[int]) -> Array:
    """Residual norms of the least-squares fit, by SVD, which also handles rank-deficient bases."""
    weights = np.linalg.lstsq(tokens[basis].T, tokens.T, rcond=1e-10)[0]
    return np.linalg.norm(tokens - weights.T @ tokens[basis], axis=1)


def apet(
    tokens: Array, keep: int, size: int = 10, merge: bool = True, basis: list[int] | None = None
) -> Answer:
    count = len(tokens)
    if keep >= count:
        return Answer(tokens, list(range(count)), np.zeros(count), [])
    basis = farthest(tokens, size) if basis is None else basis
    error = errors(tokens, basis)
    norms = np.linalg.norm(tokens, axis=1)
    kept = list(basis)
    while len(kept) < keep:
        kept.append(first_best(error, norms.max(), [i for i in range(count) if i not in kept]))
    index = sorted(kept)
    groups = {token: [token] for token in index}
    for other in range(count) if merge else []:
        if other not in groups:
            length = norms[other] * norms[index]
            cosine = np.divide(
                tokens[index] @ tokens[other], length, out=np.zeros(keep), where=length > 0
            )
            groups[index[first_best(cosine, 1.0, list(range(keep)))]].append(other)
    merged = np.stack([tokens[groups[token]].mean(axis=0) for token in index])
    return Answer(merged, index, error, basis)
