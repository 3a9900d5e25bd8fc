"""What a compression method is, and what it is shown.

A method is a frozen dataclass of its options. It says at which sites it acts (`plan`) and what is kept there
(`select`); everything about models, batches and caches is done for it. Its groups arrive in batches of one size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor

from apet.schedule import Schedule

if TYPE_CHECKING:
    from apet.view import View


class Kept(NamedTuple):
    """What is left of G groups."""

    tokens: Tensor  # (G, K, D), for the places in ascending order
    places: Tensor  # (G, K) int64, ascending: which of the group's N places they take


class Model(NamedTuple):
    """What a method may ask of a model when it plans."""

    layers: int  # of the decoder
    tower_layers: (
        int  # of the vision tower, as far as its output is used; 0: no site can be inside it
    )
    first_decoder_site: int  # the earliest layer at whose entry tokens may be dropped
    encoder_only: bool  # budgets are meant to be spent at the encoder


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Options that all methods share. Give a budget or a schedule."""

    name: ClassVar[str]
    needs_attention: ClassVar[bool] = False  # of the decoder: `view.decoder.before`
    needs_tower: ClassVar[bool] = False  # attention of the vision tower: `view.tower`
    inside_tower: ClassVar[bool] = False  # its own schedule has sites inside the vision tower
    encoder_only: ClassVar[bool] = False  # spends a budget at the encoder, whatever the family
    after_projector: ClassVar[bool] = (
        False  # at the encoder, look at what enters the decoder, whatever the family
    )

    budget: int | str | None = (
        None  # visual tokens, or a share such as "10%": the average over the decoder's layers
    )
    schedule: str | None = None  # instead of a budget: sites and counts, such as "encoder=96,16=32"

    def __post_init__(self) -> None:
        if (self.budget is None) == (self.schedule is None):
            raise ValueError(
                f"{self.name} has budget {self.budget!r} and schedule {self.schedule!r}; give one of the two,"
                " such as budget=64, budget='10%' or schedule='encoder=96,16=32'"
            )

    def plan(self, visual_tokens: int, model: Model) -> Schedule:
        """The sites for one image or video of so many tokens."""
        if self.schedule is not None:
            return Schedule.parse(self.schedule, visual_tokens=visual_tokens, layers=model.layers)
        assert self.budget is not None
        return self.spend(visual_tokens, model)

    def spend(self, visual_tokens: int, model: Model) -> Schedule:
        """The method's own way to spend `budget`; by default the paper's."""
        assert self.budget is not None
        return Schedule.from_budget(
            self.budget,
            visual_tokens=visual_tokens,
            layers=model.layers,
            encoder_only=self.encoder_only or model.encoder_only,
        )

    @abstractmethod
    def select(self, view: View) -> Kept:
        """What to keep of the groups in `view`."""

    def select_batches(self, views: Sequence[View]) -> list[Kept]:
        """Likewise in all batches of a site, whose groups differ in size; for methods that can do that in one go."""
        return [self.select(view) for view in views]
