"""The encoder's site: where vision meets the decoder, before the model's projector or behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apet.attach.prefill import Batch, Chosen, Prefill
from apet.attach.vision import Vision
from apet.methods.base import Method
from apet.models.base import VisionRecord
from apet.view import TowerView, View

Write = tuple[Tensor, Tensor, Tensor]  # rows, columns, and the vectors that go there


@dataclass(frozen=True)
class EncoderSite:
    """A prompt's groups at the encoder's output. `seen` is what the vision side showed of them."""

    method: Method
    vision: Vision
    prefill: Prefill
    seen: VisionRecord

    def choose(self, embeds: Tensor) -> tuple[Tensor, list[Chosen], list[Write]]:
        """What enters the decoder, `embeds` (B, S, D), what is chosen of it, and what is then to be written there."""
        if self.seen.features and not self.method.after_projector:
            return embeds, *self._before_projector()
        if self.seen.features:
            embeds = embeds.clone()
            row, column, vectors = self._project(self.seen.labels)
            embeds[row, column] = vectors.to(embeds)
        chosen = self.prefill.choose(
            self.prefill.encoder_work(), lambda batch: self._view(batch, embeds=embeds)
        )
        return embeds, chosen, [(one.batch.rows, one.columns, one.tokens) for one in chosen]

    def _before_projector(self) -> tuple[list[Chosen], list[Write]]:
        """The projector then sees only what is kept."""
        prefill, seen = self.prefill, self.seen
        flat = torch.cat([features.flatten(0, 1) for features in seen.features]).to(prefill.device)
        work = prefill.encoder_work()
        rest = (
            seen.labels.clone()
        )  # what no group loses: whole groups, and CLS where a model keeps it
        if prefill.lost is not None:
            rest[prefill.lost] = -1
        for part, keep in work:
            if keep < len(part.columns) and part.group:
                rest[part.row, part.group.columns] = -1
        chosen = prefill.choose(work, lambda batch: self._view(batch, flat=flat))
        if not chosen and prefill.lost is None:
            return [], [self._project(rest)]
        row, column = (rest >= 0).nonzero(as_tuple=True)
        stay, row, column = (prefill.to_device(part) for part in (rest[row, column], row, column))
        with self.vision.projector() as project:
            values = [one.tokens.flatten(0, 1).to(flat.dtype) for one in chosen]
            projected = project(torch.cat([*values, flat[stay]])[None])[0]
        *kept, others = torch.split(projected, [*map(len, values), len(stay)])
        writes = [
            (one.batch.rows, one.columns, vectors.view(*one.columns.shape, -1))
            for one, vectors in zip(chosen, kept, strict=True)
        ]
        return chosen, [*writes, (row, column, others)]

    def _project(self, labels: Tensor) -> Write:
        """What `labels` (B, S) say, exactly as the unmodified model would: tile by tile."""
        with self.vision.projector() as project:
            projected = torch.cat(
                [project(features).flatten(0, 1) for features in self.seen.features]
            )
        row, column = (labels >= 0).nonzero(as_tuple=True)
        which, row, column = (
            self.prefill.to_device(part) for part in (labels[row, column], row, column)
        )
        return row, column, projected.to(self.prefill.device)[which]

    def _view(self, batch: Batch, flat: Tensor | None = None, embeds: Tensor | None = None) -> View:
        """What a method sees of alike groups: features `flat` (P, D), or vectors that enter the decoder."""
        seen = self.seen
        known = [part.cells for part in batch.parts if part.cells is not None]
        cells = self.prefill.to_device(torch.stack(known)) if known else None
        if flat is not None and cells is not None:
            tokens = flat[cells]
        else:
            assert embeds is not None
            tokens = embeds[batch.rows, batch.columns]
        if cells is None or not seen.runs:
            return batch.view("encoder", 0, tokens)
        attention = None
        if self.method.needs_tower:
            received, metric = seen.patches("received", cells), seen.patches("metric", cells)
            cls = (
                seen.patches("cls", cells[:, 0]) if flat is not None else None
            )  # else it has a place of its own
            attention = (
                None if received is None or metric is None else TowerView(received, metric, cls)
            )
        keys = seen.patches("keys", cells) if self.method.inside_tower else None
        memory = {
            name: seen.patches(name, cells) for name in seen.runs[0].memory
        }  # sizes of merged tokens, say
        return batch.view("encoder", 0, tokens, tower=attention, keys=keys, memory=memory)
