"""Hooks on the vision side, before the decoder: features are recorded, withheld or dropped.

`generate` encodes the media before the prompt reaches the model, so nothing here knows the prompt.
Features that a family compresses before its projector are therefore withheld. Numbers (labels)
leave the projector in their place, and the model's own code carries these to the columns where the
features belong. Tokens that a site inside the tower drops are marked in the same way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apet.methods.base import Method, ModelLayout
from apet.models.base import Family
from apet.schedule import Budget
from apet.stopwatch import Stopwatch
from apet.towers.labels import write_labels
from apet.towers.tile_tower import TileTower, TileTowerCall
from apet.towers.vision_record import VisionRecord


class VisionHooks:
    def __init__(self, family: Family, method: Method, model: ModelLayout) -> None:
        self.family, self.method, self.model = family, method, model
        self.inside = method.inside_tower or "vision." in (method.schedule or "")
        self.record = VisionRecord()
        self.projecting = False
        towers, kind = family.towers.values(), family.model.config.model_type
        if method.needs_tower and (not towers or any(tower.resized for tower in towers)):
            raise ValueError(
                f"{method.name} reads the vision tower's attention, and the tokens of this model"
                f" ({kind}) are not the tower's patches, one by one; choose another method"
            )
        if self.inside and not towers and not method.inside_tower:
            raise ValueError(
                f"schedule {method.schedule!r} has a site inside the vision tower, and this model"
                f" ({kind}) lets all its tokens into the decoder, CLS among them; use the site"
                " 'encoder'"
            )

    def hooks(self) -> Iterator[RemovableHandle]:
        family, towers = self.family, self.family.towers
        yield family.tower.register_forward_pre_hook(self._record_grids, with_kwargs=True)
        if self.inside or self.method.needs_tower:
            for module, tower in towers.items():
                yield from tower.hooks(module, self)
        if family.before_projector:
            # Also for methods that look behind the projector: labels say which feature is where.
            yield family.projector.register_forward_pre_hook(self._withhold)
            yield family.projector.register_forward_hook(self._label)
        elif self.inside and all(isinstance(tower, TileTower) for tower in towers.values()):
            yield family.projector.register_forward_hook(self._mark)

    def start_prompt(self, encoded: int) -> None:
        """Start a prompt with media of the last `encoded` tower calls; earlier ones had failed."""
        self.record = self.record.latest(encoded) if encoded else VisionRecord()

    def take_record(self, keep: bool) -> VisionRecord:
        """The record of the prompt's media; `keep` it where the prompt will be repeated."""
        record = self.record
        self.record = replace(record) if keep else VisionRecord()
        return record

    @contextmanager
    def projector(self) -> Iterator[nn.Module]:
        """The projector without these hooks, for the features that were withheld from it."""
        self.projecting = True
        try:
            yield self.family.projector
        finally:
            self.projecting = False

    def _record_grids(self, tower: nn.Module, args: object, kwargs: dict[str, Any]) -> None:
        if (grid := kwargs.get("grid_thw")) is not None:
            self.record.grids.append(grid.tolist())

    # ---- inside a tower

    def sites(self, visual_tokens: int, layers: int) -> dict[int, int]:
        """Tokens of a medium to keep at the entry of each tower layer that has a site."""
        schedule = self.method.cached_plan(visual_tokens, self.model)
        sites = {site.layer: site.keep for site in schedule.sites if site.stage == "vision"}
        for layer, keep in sites.items():
            if layer >= layers:
                raise ValueError(
                    f"'vision.{layer}={keep}' is beyond the vision tower, whose layers, as far as"
                    f" they are used, are 0 to {layers - 1}"
                )
        return sites

    @property
    def asks_for_shares(self) -> bool:
        if self.method.schedule is None:
            return Budget.parse(self.method.budget or 0).is_share
        return all("%" in site for site in self.method.schedule.split(",") if "vision." in site)

    @contextmanager
    def timed(self, hidden: Tensor) -> Iterator[None]:
        if self.record.stopwatch is None:
            self.record.stopwatch = Stopwatch(hidden.device)
        with self.record.stopwatch.running():
            yield

    # ---- at the projector

    def _withhold(self, projector: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        if self.projecting:
            return None
        features, call = args[0], self._tower_call()  # (tiles, T, D)
        self.record.features.append(features if call is None else call.expand(features))
        return (features[:, :0],)

    def _label(self, projector: nn.Module, args: object, output: Tensor) -> Tensor | None:
        if self.projecting:
            return None
        *earlier, (tiles, size) = (features.shape[:2] for features in self.record.features)
        first = self.record.first + sum(before[0] * before[1] for before in earlier)
        labels = torch.arange(first, first + tiles * size, device=output.device)
        call = self._tower_call()
        dropped = call.dropped(size) if call else None
        return write_labels(labels, output, dropped).view(tiles, size, -1)

    def _mark(self, projector: nn.Module, args: object, output: Tensor) -> Tensor | None:
        """Features with marks for dropped ones, in a family that compresses after its projector."""
        call = self._tower_call()
        return call.mark(output) if call else None

    def _tower_call(self) -> TileTowerCall | None:
        """The tower call whose output the projector has now: the latest, since they alternate."""
        call = self.record.calls[-1] if self.record.calls else None
        assert call is None or isinstance(call, TileTowerCall)
        return call
