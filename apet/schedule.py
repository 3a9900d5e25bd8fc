"""Budgets of visual tokens, and schedules: how many tokens each part of a model sees.

The numbers in the paper's tables are averages over the decoder's layers: "64 tokens" are 96 in the
first half and 32 in the second. A `Budget` is that number as a user types it; a `Schedule` is its
meaning for one row.

    >>> schedule = Schedule.from_budget(64, visual_tokens=576, layers=32)
    >>> str(schedule), schedule.average
    ('encoder=96,16=32', 64.0)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Literal, Self

Stage = Literal["vision", "encoder", "decoder"]
STAGES: tuple[Stage, ...] = ("vision", "encoder", "decoder")  # in the order of the forward pass


@dataclass(frozen=True)
class Budget:
    """A number of visual tokens, or a share of a row's: `64`, `"64"`, `"10%"`."""

    amount: Fraction  # exact: only counting tokens rounds
    is_share: bool

    @classmethod
    def parse(cls, value: float | str) -> Self:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(%?)", str(value).strip())
        amount, is_share = (Fraction(match[1]), bool(match[2])) if match else (Fraction(0), False)
        if amount == 0 or (amount > 100 if is_share else amount.denominator > 1):
            hint = f": did you mean '{float(100 * amount):g}%'?" if 0 < amount < 1 else ""
            raise ValueError(
                f"'{value}' is not a valid budget; expected a whole number of tokens from 1,"
                f" e.g. 64, or a share up to 100%, e.g. '10%'{hint}"
            )
        return cls(amount / 100 if is_share else amount, is_share)

    def of(self, visual_tokens: int) -> Fraction:
        return self.amount * visual_tokens if self.is_share else self.amount

    def __str__(self) -> str:
        return f"{float(100 * self.amount):.12g}%" if self.is_share else str(self.amount)


@dataclass(frozen=True)
class Site:
    """A point of the forward pass where tokens are dropped, and how many of the row's it keeps.

    A layer's site is at its entry: with `16=32`, layers 16 and later see 32 visual tokens.
    """

    stage: Stage
    layer: int  # of the vision encoder or the decoder; 0 for the encoder's output
    keep: int

    @property
    def position(self) -> tuple[int, int]:
        return STAGES.index(self.stage), self.layer

    def __str__(self) -> str:
        names = {"vision": f"vision.{self.layer}", "encoder": "encoder", "decoder": str(self.layer)}
        return f"{names[self.stage]}={self.keep}"


@dataclass(frozen=True)
class Schedule:
    """The sites of one row that has `visual_tokens` tokens, in a decoder of `layers` layers.

    A site that would keep more than the row has keeps all: with dynamic resolution, a small image
    may have fewer tokens than a count that suits large ones. A row of text alone has no sites.
    Whether the vision encoder has such a layer is checked elsewhere, since its size is not known
    here.
    """

    visual_tokens: int
    layers: int
    sites: tuple[Site, ...] = ()  # in any order; stored in the order of the forward pass

    def __post_init__(self) -> None:
        total, last = self.visual_tokens, self.layers - 1
        if total < 0 or last < 0:
            raise ValueError(
                f"not a valid row: {total} visual tokens, {self.layers} layers; expected 0 or more"
                " tokens and 1 or more layers"
            )
        sites = sorted(self.sites, key=lambda site: site.position)
        for site in sites:
            if site.stage == "decoder" and not 0 <= site.layer <= last:
                raise ValueError(f"'{site}' is outside the decoder; its layers are 0 to {last}")
            if site.keep < min(1, total):
                raise ValueError(
                    f"'{site}' leaves none of the row's {total} visual tokens; keep at least 1"
                )
        for before, after in pairwise(sites):
            if before.position == after.position:
                raise ValueError(f"'{before}' and '{after}' are the same site; give each site once")
            if total and before.keep < after.keep:
                raise ValueError(
                    f"'{after}' follows '{before}'; keep {before.keep} or fewer, tokens only drop"
                )
        clipped = (replace(site, keep=min(site.keep, total)) for site in sites if total)
        object.__setattr__(self, "sites", tuple(clipped))

    @classmethod
    def full(cls, *, visual_tokens: int, layers: int) -> Self:
        """The unmodified model: no sites."""
        return cls(visual_tokens, layers)

    @classmethod
    def from_budget(
        cls,
        budget: Budget | float | str,
        *,
        visual_tokens: int,
        layers: int,
        encoder_only: bool = False,
    ) -> Self:
        """The sites whose layer average is the budget, or one site that keeps it at the encoder.

        With a budget of all the row's tokens or more, the sites drop nothing.
        """
        row = cls.full(visual_tokens=visual_tokens, layers=layers)
        budget = budget if isinstance(budget, Budget) else Budget.parse(budget)
        sites = _split(min(budget.of(visual_tokens), Fraction(visual_tokens)), row, encoder_only)
        if visual_tokens and not all(site.keep for site in sites):
            least = next(
                count
                for count in range(1, visual_tokens + 1)
                if all(site.keep for site in _split(Fraction(count), row, encoder_only))
            )
            raise ValueError(
                f"a budget of {budget} leaves a site none of the row's {visual_tokens} visual"
                f" tokens; the smallest possible is {least}"
            )
        return replace(row, sites=sites)

    @classmethod
    def parse(cls, text: str, *, visual_tokens: int, layers: int) -> Self:
        """Read `encoder=96,16=32`: sites `vision.<layer>`, `encoder` or a decoder layer.

        Each keeps a count, or a share of the row's visual tokens (`encoder=30%,14=10%`). Do not mix
        them: which of the two is larger depends on the row. `full` has no sites.
        """
        items = [] if text.strip() == "full" else text.split(",")
        return cls(
            visual_tokens, layers, tuple(_site(item.strip(), text, visual_tokens) for item in items)
        )

    def tokens_at(self, layer: int, stage: Stage = "decoder") -> int:
        """The number of visual tokens that a layer sees; at (0, "encoder"), those that leave it."""
        if layer < 0 or (stage == "decoder" and layer >= self.layers):
            raise ValueError(
                f"no {stage} layer {layer}; the decoder's layers are 0 to {self.layers - 1}"
            )
        passed = [site.keep for site in self.sites if site.position <= (STAGES.index(stage), layer)]
        return passed[-1] if passed else self.visual_tokens

    @property
    def average(self) -> float:
        """The actual budget of this schedule, after rounding to whole tokens."""
        return sum(self.tokens_at(layer) for layer in range(self.layers)) / self.layers

    def __str__(self) -> str:
        return ",".join(map(str, self.sites)) or "full"


def _split(budget: Fraction, row: Schedule, encoder_only: bool) -> tuple[Site, ...]:
    """3/2 of the budget up to the decoder's middle, then as many as make the average the budget."""
    if encoder_only:
        return (Site("encoder", 0, round(budget)),)
    middle = row.layers // 2
    first = min(row.visual_tokens, round(budget * 3 / 2))
    second = round((row.layers * budget - middle * first) / (row.layers - middle))
    return Site("encoder", 0, first), Site("decoder", middle, second)


def _site(item: str, text: str, visual_tokens: int) -> Site:
    name, _, amount = (part.strip() for part in item.partition("="))
    match = re.fullmatch(r"(encoder)|(vision\.)?([0-9]+)", name)
    if not match or not amount:
        number = re.search(r"[0-9]+", name)
        site = ("vision." if name.startswith("v") else "") + number[0] if number else "encoder"
        hint = f": did you mean '{site}={amount}'?" if amount else ""
        raise ValueError(
            f"cannot read '{item}' in the schedule '{text}'; expected sites such as 'encoder=96',"
            " 'vision.6=288' or, for decoder layer 16, '16=32', with commas between them, or 'full'"
            f" for none{hint}"
        )
    try:
        keep = round(Budget.parse(amount).of(visual_tokens))
    except ValueError as error:
        raise ValueError(f"'{item}' in the schedule '{text}': {error}") from None
    stage: Stage = "encoder" if match[1] else "vision" if match[2] else "decoder"
    return Site(stage, int(match[3] or 0), keep)


def share(total: int, sizes: Sequence[int], *, allow_empty: bool = False) -> list[int]:
    """Split a site's count among groups (crops, frames) in proportion to size.

    By largest remainder: the shares sum to `total`, or to all tokens if they are fewer, and none
    exceeds its group. Ties go to the earlier group. A group without a token is an error unless
    `allow_empty`.
    """
    tokens = sum(sizes)
    if min(total, *sizes, 0) < 0:
        raise ValueError(
            f"cannot split {total} among groups of {list(sizes)}; expected counts of 0 or more"
        )
    if total >= tokens:
        return list(sizes)
    shares = [total * size // tokens for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda group: -(total * sizes[group] % tokens))
    for group in by_remainder[: total - sum(shares)]:
        shares[group] += 1
    empty = [group for group, size in enumerate(sizes) if size and not shares[group]]
    if empty and not allow_empty:
        enough = -(-tokens // min(filter(None, sizes)))  # gives the smallest group a quota of one
        raise ValueError(
            f"{total} tokens leave group {empty[0]} (the groups have {list(sizes)}) without a"
            f" token; {enough} are enough for every group, or pass allow_empty=True"
        )
    return shares
