"""The encoder's site: between the vision side and the decoder, before or after the projector."""

from dataclasses import dataclass

import torch
from torch import Tensor

from apet.attach.prefill import Prefill
from apet.attach.token_groups import GroupBatch, Selection
from apet.attach.vision_hooks import VisionHooks
from apet.methods.base import Method
from apet.towers.vision_record import VisionRecord
from apet.view import TowerView, View

EmbedWrite = tuple[Tensor, Tensor, Tensor]  # rows, columns, and the vectors to write there


@dataclass(frozen=True)
class EncoderSite:
    """The encoder's site of one prompt. `record`: what the vision side did for its media."""

    method: Method
    vision: VisionHooks
    prefill: Prefill
    record: VisionRecord

    def select(self, embeds: Tensor) -> tuple[Tensor, list[Selection], list[EmbedWrite]]:
        """The decoder's input, from `embeds` (B, S, D); selected tokens; and vectors to write."""
        if self.record.features and not self.method.after_projector:
            return embeds, *self._select_before_projector()
        if self.record.features:
            embeds = embeds.clone()
            row, column, vectors = self._project(self.record.labels)
            embeds[row, column] = vectors.to(embeds)
        selections = self.prefill.select(
            self.prefill.encoder_targets(), lambda batch: self._view(batch, embeds=embeds)
        )
        return embeds, selections, [(s.batch.rows, s.columns, s.tokens) for s in selections]

    def _select_before_projector(self) -> tuple[list[Selection], list[EmbedWrite]]:
        """Select among withheld features; only selected ones go through the projector."""
        prefill, features = self.prefill, self.record.features
        flat = torch.cat([tiles.flatten(0, 1) for tiles in features]).to(prefill.device)
        targets = prefill.encoder_targets()
        # Features that no group drops: complete groups, and CLS where a model keeps it.
        unchanged = self.record.labels.clone()
        if prefill.marked is not None:
            unchanged[prefill.marked] = -1
        for group, keep in targets:
            if keep < len(group.columns) and group.vision_group:
                unchanged[group.row, group.vision_group.columns] = -1
        selections = prefill.select(targets, lambda batch: self._view(batch, flat=flat))
        if not selections and prefill.marked is None:
            return [], [self._project(unchanged)]
        feature, row, column = self._labelled(unchanged)
        with self.vision.projector() as project:
            values = [selection.tokens.flatten(0, 1).to(flat.dtype) for selection in selections]
            projected = project(torch.cat([*values, flat[feature]])[None])[0]
        *selected, rest = torch.split(projected, [*map(len, values), len(feature)])
        writes = [
            (batch.rows, columns, vectors.view(*columns.shape, -1))
            for (batch, _, columns), vectors in zip(selections, selected, strict=True)
        ]
        return selections, [*writes, (row, column, rest)]

    def _project(self, labels: Tensor) -> EmbedWrite:
        """The features of `labels` (B, S), projected tile by tile as in the unmodified model."""
        with self.vision.projector() as project:
            tiles = [project(features).flatten(0, 1) for features in self.record.features]
        feature, row, column = self._labelled(labels)
        return row, column, torch.cat(tiles).to(self.prefill.device)[feature]

    def _labelled(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The feature numbers in `labels` (B, S), and their rows and columns, on the device."""
        row, column = (labels >= 0).nonzero(as_tuple=True)
        feature, row, column = self.prefill.to_device(
            torch.stack([labels[row, column], row, column])
        )
        return feature, row, column

    def _view(
        self, batch: GroupBatch, flat: Tensor | None = None, embeds: Tensor | None = None
    ) -> View:
        """The method's view of a batch: of features `flat` (P, D), or of the decoder's input."""
        record = self.record
        known = [group.cells for group in batch.groups if group.cells is not None]
        cells = self.prefill.to_device(torch.stack(known)) if known else None
        if flat is not None and cells is not None:
            tokens = flat[cells]
        else:
            assert embeds is not None
            tokens = embeds[batch.rows, batch.columns]
        if cells is None or not record.calls:
            return batch.view("encoder", 0, tokens)
        tower = None
        if self.method.needs_tower:
            received, metric = record.patches("received", cells), record.patches("metric", cells)
            # After the projector, CLS has a column of its own in the decoder's input.
            cls = record.patches("cls", cells[:, 0]) if flat is not None else None
            if received is not None and metric is not None:
                tower = TowerView(received, metric, cls)
        keys = record.patches("keys", cells) if self.method.inside_tower else None
        # State that the method left at its last site in the tower, e.g. sizes of merged tokens.
        memory = {name: record.patches(name, cells) for name in record.calls[0].memory}
        return batch.view("encoder", 0, tokens, tower=tower, keys=keys, memory=memory)
