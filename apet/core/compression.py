"""ApET: keep the tokens that a small basis cannot approximate, and merge the others into them.

For a group of N visual tokens V (an image, a crop, a frame), a number to keep K and a basis of M:

1. basis:  M tokens far apart from each other               -> apet.core.basis
2. error:  xi_j = min_a ||v_j - B a||, the distance of token j from the span of the basis
                                                            -> apet.core.approximation_error
3. keep:   the basis and the K - M tokens with the largest error, in their original order
4. merge:  each other token joins the kept token it is most similar to; a kept token
           becomes the mean of itself and those that joined -> apet.core.merge

There are no attention weights, no model and no randomness: the result for a group depends on its
tokens alone.

    from apet import compress
    out = compress(features, keep=64)  # (B, 576, 1024) -> out.tokens (B, 64, 1024)
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import accumulate
from operator import index as to_integer
from typing import Literal, get_args, overload

import torch
from torch import Tensor

from apet.core.approximation_error import ERROR_TOLERANCE, squared_error
from apet.core.basis import SAMPLING
from apet.core.gram import Gram, gather, stable_topk
from apet.core.merge import most_similar, slot_means
from apet.core.release_variant import compress_as_released
from apet.core.triton_launch import kernels_usable, launch_batches

Sampling = Literal["fps", "dpc", "random"]
Variant = Literal["paper", "release"]

# Elements processed at a time: as many as stay in a CPU's cache, or half a gigabyte of an
# accelerator's memory.
MAX_CHUNK = {"cpu": 1 << 21}
MAX_CHUNK_ACCELERATOR = 1 << 26


@dataclass(frozen=True)
class Compressed:
    """The result for a group (or for B equally large ones: each field then leads with B)."""

    tokens: Tensor  # (K, D), the input's dtype
    index: Tensor  # (K,) int64, ascending: the positions of the kept tokens among the N
    error: Tensor  # (N,) float32: the approximation error of every token
    slot: Tensor  # (N,) int64: which of the K each token was merged into; -1 for a dropped token


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
    """Compress a group of tokens (N, D), or many.

    tokens:   (N, D), (B, N, D), a list of (N_i, D), or (sum N_i, D) with `lengths`, in float32,
              bfloat16 or float16, on any device
    keep:     K, how many tokens each group keeps; a list may give each group its own number.
              K >= N changes nothing
    basis:    M <= K, how many tokens the others are approximated from
    sampling: how the basis is chosen: "fps", "dpc" or "random" (with `seed`; the others ignore it)
    merge:    merge the dropped tokens into the kept ones; False discards them
    variant:  "paper", or "release": the order of operations of the authors' code
              (apet.core.release_variant)
    check:    refuse NaN and Inf; on a GPU this waits for the device
    kernels:  use Triton kernels where possible (on a GPU, with "fps" and "paper"); False: torch
              alone

    Groups of a list may differ in size and in K. Each gets the result that it would get alone.
    """
    for name, value, valid in (
        ("sampling", sampling, get_args(Sampling)),
        ("variant", variant, get_args(Variant)),
    ):
        if value not in valid:
            raise ValueError(
                f"not a valid {name}: {value!r}; expected one of {', '.join(map(repr, valid))}"
            )
    run = partial(
        compress_batches,
        sampling=sampling,
        merge=merge,
        seed=seed,
        variant=variant,
        check=check,
        kernels=kernels,
    )
    if isinstance(tokens, Tensor) and lengths is None:
        if tokens.ndim not in (2, 3):
            raise ValueError(
                f"not a valid shape of tokens: {tuple(tokens.shape)}; expected (N, D) or (B, N, D)"
            )
        if isinstance(keep, Sequence):
            raise ValueError(
                f"not a valid keep: {keep!r}; expected one number for groups of one size, only a"
                " list of groups may have a list"
            )
        (out,) = run([tokens.reshape(-1, *tokens.shape[-2:])], [_integer(keep)], [basis])
        return out if tokens.ndim == 3 else _row(out, 0)
    groups = _split(tokens, lengths)
    keeps = list(keep) if isinstance(keep, Sequence) else [keep] * len(groups)
    if len(keeps) != len(groups):
        raise ValueError(
            f"keep has {len(keeps)} numbers for {len(groups)} groups; expected one for each group,"
            " or one for all"
        )
    alike: dict[tuple[object, ...], list[int]] = {}
    for number, (group, count) in enumerate(zip(groups, map(_integer, keeps), strict=True)):
        if group.ndim != 2:
            raise ValueError(
                f"not a valid shape of group {number}: {tuple(group.shape)}; expected (N, D)"
            )
        alike.setdefault((group.shape, group.dtype, group.device, count), []).append(number)
    numbers = list(alike.values())
    batches = [
        torch.stack([groups[number] for number in batch]) if batch[1:] else groups[batch[0]][None]
        for batch in numbers
    ]
    first_keeps = [_integer(keeps[batch[0]]) for batch in numbers]
    outs = run(batches, first_keeps, [basis] * len(numbers), names=numbers)
    rows = {
        number: _row(out, row)
        for batch, out in zip(numbers, outs, strict=True)
        for row, number in enumerate(batch)
    }
    return [rows[number] for number in range(len(groups))]


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
    """`compress` for batches of equal groups, (B_i, N_i, D).

    Batches that the kernels can take are compressed together, the others one after another.

    names: the numbers of each batch's groups in errors, if other than their row in the batch
    """
    results: dict[int, Compressed] = {}
    launches: dict[tuple[object, ...], list[int]] = {}
    for number, (tokens, keep, basis) in enumerate(zip(batches, keeps, bases, strict=True)):
        _check_numbers(tokens, keep, basis, variant)
        group_names = names[number] if names else None
        if keep >= tokens.shape[1]:
            results[number] = _keep_all(tokens, group_names, check)
        elif kernels and sampling == "fps" and variant == "paper" and kernels_usable(tokens):
            key = tokens.device, tokens.dtype, tokens.shape[2]
            launches.setdefault(key, []).append(number)
        elif tokens.device.type == "mps":  # which has no float64
            options = sampling, merge, seed, variant, group_names, check
            on_host = _compress_in_torch(tokens.cpu(), keep, basis, *options)
            columns = (getattr(on_host, field.name).to(tokens.device) for field in fields(on_host))
            results[number] = Compressed(*columns)
        else:
            results[number] = _compress_in_torch(
                tokens, keep, basis, sampling, merge, seed, variant, group_names, check
            )
    for numbers in launches.values():
        launched = launch_batches(
            [batches[number] for number in numbers],
            [keeps[number] for number in numbers],
            [bases[number] for number in numbers],
            merge,
        )
        # A single look at all batches first: each look waits for the device.
        squares = torch.cat([out.squares.flatten() for out in launched])
        if check and not bool(squares.isfinite().all()):
            for number, out in zip(numbers, launched, strict=True):
                _check_finite(out.squares.isfinite(), names[number] if names else None)
        for number, (kept, index, error, slot, _) in zip(numbers, launched, strict=True):
            dtype = batches[number].dtype
            results[number] = Compressed(kept.to(dtype), index, error.sqrt().float(), slot)
    return [results[number] for number in range(len(batches))]


def split_into_chunks(tokens: Tensor) -> Sequence[Tensor]:
    """Split groups (B, N, D) into batches that suit the memory of their device."""
    size = MAX_CHUNK.get(tokens.device.type, MAX_CHUNK_ACCELERATOR)
    return torch.split(tokens, max(1, size // max(1, tokens.shape[1] * tokens.shape[2])))


def _check_numbers(tokens: Tensor, keep: int, basis: int, variant: Variant) -> None:
    if not tokens.dtype.is_floating_point:
        raise ValueError(
            f"not a valid dtype of tokens: {tokens.dtype}; expected float32, bfloat16 or float16"
        )
    if keep < 1 or basis < 1:
        raise ValueError(f"keep is {keep} and basis is {basis}; both must be at least 1")
    count, smallest = tokens.shape[1], basis + (variant == "release")
    if smallest > keep < count:
        reason = " (the release has no slot to merge into when keep = basis)"
        raise ValueError(
            f"keep is {keep} of {count} tokens with a basis of {basis}; keep at least {smallest} or"
            f" choose a smaller basis{reason if variant == 'release' else ''}"
        )


def _keep_all(tokens: Tensor, names: Sequence[int] | None, check: bool) -> Compressed:
    """Groups (B, N, D) that keep all tokens."""
    batch, count, _ = tokens.shape
    if check:
        _check_finite(tokens.isfinite().all(-1), names)
    index = torch.arange(count, device=tokens.device).expand(batch, count)
    return Compressed(tokens, index, tokens.new_zeros(batch, count, dtype=torch.float32), index)


def _compress_in_torch(
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
    """Groups of one size (B, N, D), in plain torch."""
    parts, start = [], 0
    order = _compress_as_published if variant == "paper" else compress_as_released
    for chunk in split_into_chunks(tokens):
        gram = Gram(chunk)
        if check:
            _check_finite(gram.norms.isfinite(), names, start)
        parts.append(order(gram, SAMPLING[sampling](gram, basis, seed), keep, merge))
        start += len(chunk)
    kept, index, error, slot = (torch.cat(column) for column in zip(*parts, strict=True))
    return Compressed(kept.to(tokens.dtype), index, error.sqrt().float(), slot)


def _compress_as_published(
    gram: Gram, basis: Tensor, keep: int, merge: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Steps 2 to 4 of the module's docstring."""
    error = squared_error(gram, basis)
    score = error.scatter(1, basis, torch.inf)
    index = stable_topk(score, keep, ERROR_TOLERANCE * gram.squares)
    if merge:
        slot = most_similar(gram, index)
        return slot_means(gram.tokens, slot, keep), index, error, slot
    own = torch.arange(keep, device=index.device).expand_as(index)
    slot = index.new_full(error.shape, -1).scatter(1, index, own)
    return gather(gram.tokens, index), index, error, slot


def _integer(keep: object) -> int:
    try:
        return to_integer(keep)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"not a valid keep: {keep!r}; expected a whole number of tokens") from None


def _split(
    tokens: Tensor | Sequence[Tensor], lengths: Sequence[int] | Tensor | None
) -> list[Tensor]:
    if not isinstance(tokens, Tensor):
        if lengths is not None:
            raise ValueError(
                "lengths divide one flat tensor (sum of lengths, D); a list of groups needs none"
            )
        return list(tokens)
    if isinstance(lengths, Tensor):
        lengths = lengths.tolist()  # waits for its device once
    sizes = [int(size) for size in lengths or ()]
    if tokens.ndim != 2 or sum(sizes) != len(tokens) or min(sizes, default=0) < 0:
        raise ValueError(
            f"tokens of shape {tuple(tokens.shape)} do not divide into lengths that sum to"
            f" {sum(sizes)}; expected (sum of lengths, D)"
        )
    return [tokens[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _row(out: Compressed, row: int) -> Compressed:
    return Compressed(*(getattr(out, field.name)[row] for field in fields(out)))


def _check_finite(finite: Tensor, names: Sequence[int] | None, start: int = 0) -> None:
    rows = (~finite.all(dim=1)).nonzero()
    if len(rows):
        row = int(rows[0, 0]) + start
        raise ValueError(
            f"tokens of group {names[row] if names else row} hold NaN or Inf; expected finite"
            " numbers"
        )
