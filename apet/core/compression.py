"""ApET: keep the tokens that a small basis cannot explain, and fold the others into them.

For one group of N visual tokens V (an image, a crop, a frame), a number to keep K and a basis of M:

1. basis:  M tokens far apart from each other                                  -> apet.core.basis
2. error:  xi_j = min_a ||v_j - B a||, what the basis cannot say of token j     -> apet.core.error
3. keep:   the basis and the K - M tokens with the largest error, in their original order
4. merge:  each other token joins the kept token it is most like; a kept token becomes the mean
           of itself and those that joined it                                  -> apet.core.merge

No attention weights, no model, no randomness: what a group becomes depends on its tokens alone.

    from apet import compress
    out = compress(features, keep=64)  # (B, 576, 1024) -> out.tokens (B, 64, 1024)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from operator import index as whole
from typing import Literal, overload

import torch
from torch import Tensor

from apet.core.basis import SAMPLING
from apet.core.error import UNSURE, squared_error
from apet.core.fused import compress_together, usable
from apet.core.gram import Gram, gather, largest
from apet.core.merge import averages, most_similar
from apet.core.release import released_order

Sampling = Literal["fps", "dpc", "random"]
Variant = Literal["paper", "release"]

CHUNK = {"cpu": 1 << 21}  # elements worked on at a time: what stays in a CPU's cache,
CHUNK_DEVICE = 1 << 26  # or half a gigabyte of an accelerator's memory


@dataclass(frozen=True)
class Compressed:
    """What is left of a group (or of B equally large ones: each field then has a leading dimension B)."""

    tokens: Tensor  # (K, D), the input's dtype
    index: Tensor  # (K,) int64, ascending: where the kept tokens stood among the N
    error: Tensor  # (N,) float32: the approximation error of every token
    slot: Tensor  # (N,) int64: which of the K each token went into; -1 for a token that was dropped


@overload
def compress(
    tokens: Tensor,
    keep: int,
    basis: int = ...,
    sampling: Sampling = ...,
    merge: bool = ...,
    seed: int = ...,
    *,
    variant: Variant = ...,
    lengths: None = ...,
    check: bool = ...,
    kernels: bool = ...,
) -> Compressed: ...
@overload
def compress(
    tokens: Sequence[Tensor],
    keep: int | Sequence[int],
    basis: int = ...,
    sampling: Sampling = ...,
    merge: bool = ...,
    seed: int = ...,
    *,
    variant: Variant = ...,
    lengths: None = ...,
    check: bool = ...,
    kernels: bool = ...,
) -> list[Compressed]: ...
@overload
def compress(
    tokens: Tensor,
    keep: int | Sequence[int],
    basis: int = ...,
    sampling: Sampling = ...,
    merge: bool = ...,
    seed: int = ...,
    *,
    variant: Variant = ...,
    lengths: Sequence[int] | Tensor,
    check: bool = ...,
    kernels: bool = ...,
) -> list[Compressed]: ...
def compress(
    tokens: Tensor | Sequence[Tensor],
    keep: int | Sequence[int],
    basis: int = 10,
    sampling: Sampling = "fps",
    merge: bool = True,
    seed: int = 0,
    *,
    variant: Variant = "paper",
    lengths: Sequence[int] | Tensor | None = None,
    check: bool = True,
    kernels: bool = True,
) -> Compressed | list[Compressed]:
    """Compress a group of tokens (N, D), or many: (B, N, D), a list of (N_i, D), or (sum N_i, D) with `lengths`.

    tokens:   float32, bfloat16 or float16, on any device
    keep:     K, how many tokens each group keeps; a list may give each group its own. K >= N changes nothing
    basis:    M <= K, how many tokens the others are approximated from
    sampling: how the basis is chosen: "fps", "dpc" or "random" (seeded by `seed`; the others ignore it)
    merge:    fold the dropped tokens into the kept ones; False forgets them
    variant:  "paper", or "release": the order of operations of the authors' code (apet.core.release)
    check:    refuse NaN and Inf, for which a GPU has to be waited for
    kernels:  use Triton's where they can be (apet.core.fused: on a GPU, "fps" and "paper"); False: torch's alone

    Groups of a list may differ in size and in K. Each gives what it would give alone.
    """
    if sampling not in SAMPLING:
        raise ValueError(f"sampling is {sampling!r}; it is one of {', '.join(map(repr, SAMPLING))}")
    if variant not in ("paper", "release"):
        raise ValueError(f"variant is {variant!r}; it is 'paper' or 'release'")
    if isinstance(tokens, Tensor) and lengths is None:
        if tokens.ndim not in (2, 3):
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}; they are (N, D) or (B, N, D)"
            )
        if isinstance(keep, Sequence):
            raise ValueError(
                "keep is one number for groups of one size; a list of groups may have a list"
            )
        batch = tokens.reshape(-1, *tokens.shape[-2:])
        (out,) = compress_batches(
            [batch],
            [_whole(keep)],
            [basis],
            sampling,
            merge,
            seed,
            variant=variant,
            check=check,
            kernels=kernels,
        )
        return out if tokens.ndim == 3 else _row(out, 0)
    groups = _split(tokens, lengths)
    keeps = (
        [_whole(one) for one in keep]
        if isinstance(keep, Sequence)
        else [_whole(keep)] * len(groups)
    )
    if len(keeps) != len(groups):
        raise ValueError(
            f"keep has {len(keeps)} numbers for {len(groups)} groups; give one each, or one for all"
        )
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, (group, count) in enumerate(zip(groups, keeps, strict=True)):
        if group.ndim != 2:
            raise ValueError(
                f"group {place} has shape {tuple(group.shape)}; a group of a list is (N, D)"
            )
        alike.setdefault((group.shape, group.dtype, group.device, count), []).append(place)
    kinds = list(alike.values())
    outs = compress_batches(
        [
            torch.stack([groups[place] for place in places])
            if places[1:]
            else groups[places[0]][None]
            for places in kinds
        ],
        [keeps[places[0]] for places in kinds],
        [basis] * len(kinds),
        sampling,
        merge,
        seed,
        variant=variant,
        check=check,
        kernels=kernels,
        names=kinds,
    )
    found = {
        place: _row(out, row)
        for places, out in zip(kinds, outs, strict=True)
        for row, place in enumerate(places)
    }
    return [found[place] for place in range(len(groups))]


def compress_batches(
    batches: Sequence[Tensor],
    keeps: Sequence[int],
    bases: Sequence[int],
    sampling: Sampling = "fps",
    merge: bool = True,
    seed: int = 0,
    *,
    variant: Variant = "paper",
    check: bool = True,
    kernels: bool = True,
    names: Sequence[Sequence[int]] | None = None,
) -> list[Compressed]:
    """`compress` for each of many batches of equal groups, (B_i, N_i, D): together where the kernels can, else in turn.

    names: what each batch's groups are called in errors, if not by their places in it
    """
    found: dict[int, Compressed] = {}
    fused: dict[tuple[object, ...], list[int]] = {}
    for place, (tokens, keep, basis) in enumerate(zip(batches, keeps, bases, strict=True)):
        _check_numbers(tokens, keep, basis, variant)
        its_names = names[place] if names else None
        if keep >= tokens.shape[1]:
            found[place] = _untouched(tokens, its_names, check)
        elif kernels and sampling == "fps" and variant == "paper" and usable(tokens):
            fused.setdefault((tokens.device, tokens.dtype, tokens.shape[2]), []).append(place)
        else:
            found[place] = _equal(
                tokens, keep, basis, sampling, merge, seed, variant, its_names, check
            )
    for places in fused.values():
        outs = compress_together(
            [batches[place] for place in places],
            [keeps[place] for place in places],
            [bases[place] for place in places],
            merge,
        )
        if check and not bool(torch.cat([out.squares.flatten() for out in outs]).isfinite().all()):
            for place, out in zip(places, outs, strict=True):
                _check_finite(out.squares.isfinite(), names[place] if names else None)
        for place, (kept, index, error, slot, _) in zip(places, outs, strict=True):
            found[place] = Compressed(
                kept.to(batches[place].dtype), index, error.sqrt().float(), slot
            )
    return [found[place] for place in range(len(batches))]


def _check_numbers(tokens: Tensor, keep: int, basis: int, variant: Variant) -> None:
    if not tokens.dtype.is_floating_point:
        raise ValueError(f"tokens are {tokens.dtype}; they are float32, bfloat16 or float16")
    if keep < 1 or basis < 1:
        raise ValueError(f"keep is {keep} and basis is {basis}; both are at least 1")
    count, smallest = tokens.shape[1], basis + (variant == "release")
    if smallest > keep < count:
        raise ValueError(
            f"keep is {keep} of {count} tokens with a basis of {basis}; keep at least {smallest} or choose "
            f"a smaller basis"
            + (
                " (the release has no slot to merge into when keep = basis)"
                * (variant == "release")
            )
        )


def _untouched(tokens: Tensor, names: Sequence[int] | None, check: bool) -> Compressed:
    """Groups (B, N, D) that keep all they have."""
    batch, count, _ = tokens.shape
    if check:
        _check_finite(tokens.isfinite().all(-1), names)
    index = torch.arange(count, device=tokens.device).expand(batch, count)
    return Compressed(tokens, index, tokens.new_zeros(batch, count, dtype=torch.float32), index)


def _equal(
    tokens: Tensor,
    keep: int,
    basis: int,
    sampling: Sampling,
    merge: bool,
    seed: int,
    variant: Variant,
    names: Sequence[int] | None,
    check: bool,
) -> Compressed:
    """Groups of one size (B, N, D), in plain torch; `names` are their places in the caller's list, for errors."""
    if tokens.device.type == "mps":  # which has no float64
        out = _equal(tokens.cpu(), keep, basis, sampling, merge, seed, variant, names, check)
        return Compressed(*(getattr(out, field.name).to(tokens.device) for field in fields(out)))
    parts, start = [], 0
    for chunk in chunks(tokens):
        gram = Gram(chunk)
        if check:
            _check_finite(gram.norms.isfinite(), names, start)
        chosen = SAMPLING[sampling](gram, basis, seed)
        parts.append(
            _paper(gram, chosen, keep, merge)
            if variant == "paper"
            else released_order(gram, chosen, keep, merge)
        )
        start += len(chunk)
    kept, index, error, slot = (torch.cat(column) for column in zip(*parts, strict=True))
    return Compressed(kept.to(tokens.dtype), index, error.sqrt().float(), slot)


def chunks(tokens: Tensor) -> Sequence[Tensor]:
    """Groups (B, N, D), as many at a time as suit their device."""
    size = CHUNK.get(tokens.device.type, CHUNK_DEVICE)
    return torch.split(tokens, max(1, size // max(1, tokens.shape[1] * tokens.shape[2])))


def _whole(keep: object) -> int:
    try:
        return whole(keep)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"keep is {keep!r}; it is a whole number of tokens") from None


def _paper(
    gram: Gram, basis: Tensor, keep: int, merge: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Steps 2 to 4 of the module's docstring."""
    error = squared_error(gram, basis)
    index = largest(error.scatter(1, basis, torch.inf), keep, UNSURE * gram.squares)
    if merge:
        slot = most_similar(gram, index)
        return averages(gram.tokens, slot, keep), index, error, slot
    own = torch.arange(keep, device=index.device).expand_as(index)
    return (
        gather(gram.tokens, index),
        index,
        error,
        index.new_full(error.shape, -1).scatter(1, index, own),
    )


def _split(
    tokens: Tensor | Sequence[Tensor], lengths: Sequence[int] | Tensor | None
) -> list[Tensor]:
    if not isinstance(tokens, Tensor):
        if lengths is not None:
            raise ValueError(
                "lengths divide one flat tensor (sum of lengths, D); a list of groups needs none"
            )
        return list(tokens)
    sizes = [int(size) for size in lengths] if lengths is not None else []
    if tokens.ndim != 2 or sum(sizes) != len(tokens) or min(sizes, default=0) < 0:
        raise ValueError(
            f"tokens of shape {tuple(tokens.shape)} do not divide into lengths that sum to {sum(sizes)}"
        )
    return [tokens[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _row(out: Compressed, row: int) -> Compressed:
    return Compressed(*(getattr(out, field.name)[row] for field in fields(out)))


def _check_finite(finite: Tensor, names: Sequence[int] | None, start: int = 0) -> None:
    bad = (~finite.all(dim=1)).nonzero()
    if len(bad):
        row = int(bad[0, 0]) + start
        raise ValueError(
            f"tokens of group {names[row] if names else row} hold NaN or Inf; a group must be finite"
        )
