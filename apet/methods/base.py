"""The interface of a compression method.

A method is a frozen dataclass of its options. It decides at which sites it acts (`plan`) and which
tokens are kept there (`select`). Models, batches and caches are handled for it. Groups of tokens
arrive in batches of equal size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from torch import Tensor

from apet.schedule import Schedule

if TYPE_CHECKING:
    from apet.models.base import Family
    from apet.view import View


MAX_PLANS = 4096  # schedules in memory, over all methods, sizes and models


class Kept(NamedTuple):
    """The tokens that G groups keep."""

    tokens: Tensor  # (G, K, D), in the order of `indices`
    indices: Tensor  # (G, K) int64, ascending: the places among the group's N that they take


class ModelLayout(NamedTuple):
    """The facts about a model that a method may use when it plans its sites."""

    layers: int  # of the decoder
    tower_layers: int  # of the vision tower, up to the output used; 0: no site can be inside it
    first_decoder_site: int  # the earliest layer at whose entry tokens may be dropped
    encoder_only: bool  # budgets are meant to be spent at the encoder

    @classmethod
    def of(cls, family: Family) -> Self:
        first = family.first_decoder_site
        return cls(len(family.layers), family.tower_layers, first, family.encoder_only)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Options that all methods share. Give a budget or a schedule."""

    name: ClassVar[str]
    # Whether the tokens it keeps of a picture depend on text behind it. If not, all questions about
    # a picture can share its prefill.
    reads_question: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = False  # of the decoder: `view.decoder.previous_layer`
    needs_tower: ClassVar[bool] = False  # attention of the vision tower: `view.tower`
    inside_tower: ClassVar[bool] = False  # its own schedule has sites inside the vision tower
    encoder_only: ClassVar[bool] = False  # spends a budget at the encoder in every family
    after_projector: ClassVar[bool] = False  # sees the decoder's input in every family

    budget: int | str | None = None  # tokens, or a share such as "10%", averaged over the layers
    schedule: str | None = None  # instead of a budget: sites and counts, e.g. "encoder=96,16=32"

    def __post_init__(self) -> None:
        if (self.budget is None) == (self.schedule is None):
            raise ValueError(
                f"{self.name} has budget {self.budget!r} and schedule {self.schedule!r}; give one"
                " of the two, such as budget=64, budget='10%' or schedule='encoder=96,16=32'"
            )

    def plan(self, visual_tokens: int, model: ModelLayout) -> Schedule:
        """The sites for an image or video of `visual_tokens` tokens."""
        if self.schedule is not None:
            return Schedule.parse(self.schedule, visual_tokens=visual_tokens, layers=model.layers)
        assert self.budget is not None
        return self.spend(visual_tokens, model)

    def spend(self, visual_tokens: int, model: ModelLayout) -> Schedule:
        """The sites on which the method spends `budget`; by default those of the ApET paper."""
        assert self.budget is not None
        return Schedule.from_budget(
            self.budget,
            visual_tokens=visual_tokens,
            layers=model.layers,
            encoder_only=self.encoder_only or model.encoder_only,
        )

    @lru_cache(maxsize=MAX_PLANS)  # noqa: B019 (methods are a few options each)
    def cached_plan(self, visual_tokens: int, model: ModelLayout) -> Schedule:
        """The same as `plan`, computed once for a size: a batch has many media of equal sizes."""
        return self.plan(visual_tokens, model)

    @abstractmethod
    def select(self, view: View) -> Kept:
        """Select the tokens to keep of the groups in `view`."""

    def select_batches(self, views: Sequence[View]) -> list[Kept]:
        """Select in all batches of a site, whose groups differ in size.

        Override this where all batches can be computed together.
        """
        return [self.select(view) for view in views]
