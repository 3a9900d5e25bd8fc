"""What methods share that act between the decoder's layers, and how they spend a budget there.

A paper names layers of a decoder of 32, and what is kept at each follows a pattern with one free number. That number
is solved for, so that the average over the layers is the budget; counts are then rounded, each by at most half a token.
Layer l becomes round(l D / 32) of D layers, at least one and at least the first at which the model allows a site, each
after the one before. Where even one token a layer would be too many, since all layers up to the first site see every
token, the sites move earlier: all layers are halved (of 32), again and again; at the earliest place each site keeps at
least one token, if the average is then still within half a token of the budget.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from operator import mul
from typing import ClassVar

from apet.methods.base import Method, Model
from apet.schedule import Budget, Schedule, Site

STEPS = 64  # halvings of an interval: to the last bit


@dataclass(frozen=True, kw_only=True)
class DecoderMethod(Method):
    needs_attention: ClassVar[bool] = True
    layers: ClassVar[tuple[tuple[int, ...], ...]]  # of 32, those preferred first
    earliest: ClassVar[int] = 1  # layer with a site: what is needed comes from the layer before

    @abstractmethod
    def shares(self, free: float, budget: float) -> Sequence[float]:
        """The shares of the visual tokens kept at the sites, none more than the one before.

        free:   from 0, where nothing is kept, to 1, where all is: with it every share grows
        budget: the average that is asked for, as a share
        """

    def plan(self, visual_tokens: int, model: Model) -> Schedule:
        schedule = super().plan(visual_tokens, model)
        for site in schedule.sites:
            if site.stage != "decoder" or site.layer < self.earliest:
                raise ValueError(
                    f"'{site}': {self.name} ranks tokens by what a decoder layer makes of them;"
                    f" it can act at layers {self.earliest} to {model.layers - 1}"
                )
        return schedule

    def spend(self, visual_tokens: int, model: Model) -> Schedule:
        assert self.budget is not None
        asked = Budget.parse(self.budget)
        sites = self._sites(
            min(asked.of(visual_tokens), Fraction(visual_tokens)), visual_tokens, model
        )
        if sites is None:
            every = range(1, visual_tokens + 1)
            least = bisect_left(
                every,
                True,
                key=lambda n: self._sites(Fraction(n), visual_tokens, model) is not None,
            )
            raise ValueError(
                f"a budget of {asked} leaves {self.name} none of the row's {visual_tokens} visual tokens after the"
                f" layers that must see them all; the smallest possible is {every[least]}"
            )
        return Schedule(visual_tokens, model.layers, sites)

    def _sites(self, average: Fraction, tokens: int, model: Model) -> tuple[Site, ...] | None:
        """As above; nothing if the budget is out of reach."""
        if not tokens:
            return ()
        trials = self._layers(model)
        for place, layers in enumerate(trials, 1):
            spans = [after - before for before, after in pairwise([*layers, model.layers])]
            share = float(average / tokens)
            low, high = 0.0, 1.0
            for _ in range(STEPS):
                middle = (low + high) / 2
                spent = layers[0] + sum(map(mul, spans, self.shares(middle, share)))
                low, high = (low, middle) if spent > share * model.layers else (middle, high)
            keeps = [round(tokens * part) for part in self.shares(high, share)[: len(layers)]]
            if place == len(
                trials
            ):  # the last resort: a share of less than half a token is still one
                keeps = [max(1, keep) for keep in keeps]
                spent = layers[0] * tokens + sum(map(mul, spans, keeps))
                if abs(spent - average * model.layers) > model.layers / 2:
                    break
            if keeps[-1]:
                return tuple(
                    Site("decoder", layer, keep) for layer, keep in zip(layers, keeps, strict=True)
                )
        return () if average == tokens else None

    def _layers(self, model: Model) -> list[list[int]]:
        """The model's layers for sites, the best first."""
        found = []
        trials = list(self.layers)
        while trials[-1][-1]:
            trials.append(tuple(layer // 2 for layer in trials[-1]))
        for trial in trials:
            layers: list[int] = []
            for layer in trial:
                after = layers[-1] + 1 if layers else max(1, model.first_decoder_site)
                layers.append(max(after, round(layer * model.layers / 32)))
            if layers := [layer for layer in layers if layer < model.layers]:
                found.append(layers)
        return found
