"""The vision side of an attachment: what is seen, withheld and dropped before the decoder's entry.

`generate` encodes the media before the prompt reaches the model, so nothing here knows the prompt. Features that a
family compresses before its projector are therefore withheld; numbers go through the projector's place instead, and
the model's own code carries them to where the features belong. What a site inside the tower drops is marked likewise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apet.methods.base import Method, Model
from apet.models.base import Family, VisionRecord
from apet.schedule import Budget
from apet.stopwatch import Stopwatch
from apet.towers.labels import write_labels
from apet.towers.tile_tower import TileRun, TileTower


class Vision:
    def __init__(self, family: Family, method: Method, model: Model) -> None:
        self.family, self.method, self.model = family, method, model
        self.inside = method.inside_tower or "vision." in (method.schedule or "")
        self.seen = VisionRecord()
        self.projecting = False
        towers, kind = family.towers.values(), family.model.config.model_type
        if method.needs_tower and (not towers or any(tower.resized for tower in towers)):
            raise ValueError(
                f"{method.name} reads the vision tower's attention, and the tokens of this model ({kind}) are not the"
                " tower's patches, one by one; choose another method"
            )
        if self.inside and not towers and not method.inside_tower:
            raise ValueError(
                f"schedule {method.schedule!r} has a site inside the vision tower, and this model ({kind}) lets all its"
                " tokens into the decoder, CLS among them; use the site 'encoder'"
            )

    def hooks(self) -> Iterator[RemovableHandle]:
        family = self.family
        yield family.tower.register_forward_pre_hook(self._grids, with_kwargs=True)
        for module, tower in (
            family.towers.items() if self.inside or self.method.needs_tower else ()
        ):
            yield from tower.hooks(module, self)
        if (
            family.before_projector
        ):  # also for methods that look behind it: the numbers say what is where
            yield family.projector.register_forward_pre_hook(self._withhold)
            yield family.projector.register_forward_hook(self._label)
        elif self.inside and all(isinstance(tower, TileTower) for tower in family.towers.values()):
            yield family.projector.register_forward_hook(self._mark)

    def begin(self, encoded: int) -> None:
        """A prompt begins, whose media the last `encoded` calls of the towers were for; 0: they are still to come.

        Earlier calls were for a prompt that failed.
        """
        self.seen = self.seen.latest(encoded) if encoded else VisionRecord()

    def take(self, keep: bool) -> VisionRecord:
        """What was seen of the prompt's media; `keep` it, since the prompt will come once more."""
        seen = self.seen
        self.seen = replace(seen) if keep else VisionRecord()
        return seen

    @contextmanager
    def projector(self) -> Iterator[nn.Module]:
        """The projector as it is, for the features that were withheld from it."""
        self.projecting = True
        try:
            yield self.family.projector
        finally:
            self.projecting = False

    def _grids(self, tower: nn.Module, args: object, kwargs: dict[str, Any]) -> None:
        if (grid := kwargs.get("grid_thw")) is not None:
            self.seen.grids.append(grid.tolist())

    # ---- inside a tower

    def sites(self, visual_tokens: int, layers: int) -> dict[int, int]:
        """What the method keeps of so many tokens inside a tower of so many layers, by the layer at whose entry."""
        schedule = self.method.plan(visual_tokens, self.model)
        sites = {site.layer: site.keep for site in schedule.sites if site.stage == "vision"}
        for layer, keep in sites.items():
            if layer >= layers:
                raise ValueError(
                    f"'vision.{layer}={keep}' is beyond the vision tower, whose layers, as far as they are used, are"
                    f" 0 to {layers - 1}"
                )
        return sites

    @property
    def asks_for_shares(self) -> bool:
        if self.method.schedule is None:
            return Budget.parse(self.method.budget or 0).is_share
        return all("%" in site for site in self.method.schedule.split(",") if "vision." in site)

    @contextmanager
    def timed(self, hidden: Tensor) -> Iterator[None]:
        if self.seen.stopwatch is None:
            self.seen.stopwatch = Stopwatch(hidden.device)
        with self.seen.stopwatch.running():
            yield

    # ---- at the projector

    def _withhold(self, projector: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        if self.projecting:
            return None
        run = self._run()
        self.seen.features.append(args[0] if run is None else run.expand(args[0]))  # (tiles, T, D)
        return (args[0][:, :0],)

    def _label(self, projector: nn.Module, args: object, output: Tensor) -> Tensor | None:
        if self.projecting:
            return None
        *earlier, (tiles, size) = (features.shape[:2] for features in self.seen.features)
        first = self.seen.first + sum(before[0] * before[1] for before in earlier)
        numbers = torch.arange(first, first + tiles * size, device=output.device)
        run = self._run()
        return write_labels(numbers, output, run.lost(size) if run else None).view(tiles, size, -1)

    def _mark(self, projector: nn.Module, args: object, output: Tensor) -> Tensor | None:
        """A family that compresses after its projector: the features, and marks where some were dropped."""
        run = self._run()
        return run.mark(output) if run else None

    def _run(self) -> TileRun | None:
        """The tower's call that the projector now works on: the latest, since the two take turns."""
        run = self.seen.runs[-1] if self.seen.runs else None
        assert run is None or isinstance(run, TileRun)
        return run
