"""The base of methods that act between the decoder's layers, and their spending of a budget.

A paper names layers of a decoder of 32, and the shares kept there follow a pattern with one free
number. That number is solved for, so that the average over the layers is the budget. Counts are
then rounded, each by at most half a token. Layer l becomes round(l D / 32) of D layers, at least 1,
at least the first at which the model allows a site, and after the site before it.

All layers up to the first site see every token, so a small budget may not even pay for one token in
the other layers. Then the sites move earlier: all layers (of 32) are halved, repeatedly. At the
earliest layers each site keeps at least one token, if the average is then still within half a token
of the budget.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from operator import mul
from typing import ClassVar

from apet.methods.base import Method, ModelLayout
from apet.schedule import Budget, Schedule, Site

# Halvings of the interval in which the free number is searched: to the last bit.
BISECTIONS = 64


@dataclass(frozen=True, kw_only=True)
class DecoderMethod(Method):
    reads_question: ClassVar[bool] = True
    needs_attention: ClassVar[bool] = True
    layers: ClassVar[tuple[tuple[int, ...], ...]]  # of 32, with a site; the preferred ones first
    earliest: ClassVar[int] = 1  # layer that can have a site; 1: reads the layer before

    def shares(self, free: float, budget: float) -> Sequence[float]:
        """The shares of the visual tokens kept at the sites, by default at one; none may grow.

        free:   from 0 (nothing is kept) to 1 (everything is); every share grows with it
        budget: the requested average, as a share
        """
        return (free,)

    def plan(self, visual_tokens: int, model: ModelLayout) -> Schedule:
        schedule = super().plan(visual_tokens, model)
        for site in schedule.sites:
            if site.stage != "decoder" or site.layer < self.earliest:
                raise ValueError(
                    f"'{site}': {self.name} ranks tokens by the attention or keys of a decoder"
                    f" layer; it can act at layers {self.earliest} to {model.layers - 1}"
                )
        return schedule

    def spend(self, visual_tokens: int, model: ModelLayout) -> Schedule:
        assert self.budget is not None
        budget = Budget.parse(self.budget)
        average = min(budget.of(visual_tokens), Fraction(visual_tokens))
        sites = self._sites(average, visual_tokens, model)
        if sites is None:
            counts = range(1, visual_tokens + 1)
            least = bisect_left(
                counts,
                True,
                key=lambda n: self._sites(Fraction(n), visual_tokens, model) is not None,
            )
            raise ValueError(
                f"a budget of {budget} leaves {self.name} none of the row's {visual_tokens} visual"
                " tokens after the layers that must see them all; the smallest possible is"
                f" {counts[least]}"
            )
        return Schedule(visual_tokens, model.layers, sites)

    def _sites(self, average: Fraction, tokens: int, model: ModelLayout) -> tuple[Site, ...] | None:
        """The sites as described above; None if the budget cannot be met."""
        if not tokens:
            return ()
        candidates = self._layers(model)
        share = float(average / tokens)
        for layers in candidates:
            spans = [after - before for before, after in pairwise([*layers, model.layers])]
            low, high = 0.0, 1.0
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                spent = layers[0] + sum(map(mul, spans, self.shares(middle, share)))
                low, high = (low, middle) if spent > share * model.layers else (middle, high)
            keeps = [round(tokens * part) for part in self.shares(high, share)[: len(layers)]]
            if layers is candidates[-1]:
                # The last resort: a share of less than half a token still keeps one.
                keeps = [max(1, keep) for keep in keeps]
                total = layers[0] * tokens + sum(map(mul, spans, keeps))
                if abs(total - average * model.layers) > model.layers / 2:
                    break
            if keeps[-1]:
                pairs = zip(layers, keeps, strict=True)
                return tuple(Site("decoder", layer, keep) for layer, keep in pairs)
        return () if average == tokens else None

    def _layers(self, model: ModelLayout) -> list[list[int]]:
        """Candidates for the layers of the sites in this model, the preferred ones first."""
        of_32 = list(self.layers)
        while of_32[-1][-1]:
            of_32.append(tuple(layer // 2 for layer in of_32[-1]))
        candidates = []
        for paper_layers in of_32:
            layers: list[int] = []
            for layer in paper_layers:
                earliest = layers[-1] + 1 if layers else max(1, model.first_decoder_site)
                layers.append(max(earliest, round(layer * model.layers / 32)))
            if layers := [layer for layer in layers if layer < model.layers]:
                candidates.append(layers)
        return candidates
