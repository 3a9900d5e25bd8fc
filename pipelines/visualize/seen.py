"""What a model sees of a row: its pictures in patches, and how far the tokens of these come under a method.

The model is loaded once and every method is attached to it in turn, as in the job that made the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.utils import logging as transformers_logging

from apet import attach
from apet.methods import build
from apet.methods.base import Method
from apet.models import family_of, load
from apet.models.base import Group
from pipelines.config.eval_config import EvalConfig
from pipelines.data.manifest import Manifest
from pipelines.data.media import images, videos
from pipelines.data.media.content import Pixels
from pipelines.data.rows import Medium, Row
from pipelines.inference.engines.generation import Sampler, row_seed
from pipelines.inference.job_spec import recipe_of
from pipelines.inference.preprocess import PIXELS, Collator, Preprocessor


class Shown(NamedTuple):
    """A group of visual tokens, and the picture that they are of."""

    name: str  # of a frame or a tile; nothing if the picture is the only one
    pixels: Pixels  # (H, W, 3)
    grid: tuple[int, int]  # rows x columns of patches over it
    cells: NDArray[np.int64]  # (N,) the patches that have a token, in its order
    columns: Tensor  # (N,) where the tokens stand in the prompt


@dataclass(frozen=True)
class Prompt:
    """A row, ready to be asked."""

    row_id: str
    inputs: dict[str, Tensor]
    shown: list[Shown]

    @property
    def tokens(self) -> int:
        return sum(len(each.cells) for each in self.shown)

    def by_group(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """What there is of all visual tokens, (tokens,), group by group."""
        return np.split(values, np.cumsum([len(each.cells) for each in self.shown])[:-1])


@dataclass(frozen=True)
class Came:
    """What was answered, and how far the visual tokens came until then."""

    answer: str
    sites: list[tuple[str, int]]  # the sites that dropped some, and how many each left
    passed: NDArray[np.int64]  # (tokens,) how many of these sites each token passed


class Eye:
    """A model, loaded as a job's config says."""

    def __init__(self, config: EvalConfig) -> None:
        self.config = config
        self.recipe = recipe_of(config)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.prepare = Preprocessor(self.recipe)
        self.processor: Any = self.prepare.processor
        self.collate = Collator(self.processor)
        transformers_logging.disable_progress_bar()
        self.model: Any = load(
            config.model,
            revision=config.revision,
            dtype=config.dtype,
            attn=config.attn,
            device=self.device,
            trust_remote_code=config.trust_remote_code,
        )[0]
        self.family = family_of(self.model)

    @torch.inference_mode()
    def read(self, row: Row, manifest: Manifest) -> Prompt:
        """The row's inputs, and its pictures as the model sees them."""
        _, raw = self.prepare(row, manifest)
        ready = self.collate.normalised(self.collate([raw]))
        inputs = {name: value.to(self.device) for name, value in ready.items()}
        with attach(self.model, build("vanilla")) as attached:
            self.model(**inputs)
            found = attached.stats[0].media
        if not found:
            raise ValueError(f"row {row.row_id!r} shows the model no picture; choose another")
        tiles, patch = _tiles(raw), self.model.config.vision_config.patch_size
        shown: list[Shown] = []
        for number, (medium, of) in enumerate(zip(found, row.media, strict=True)):
            image = f"image {number + 1}" if len(found) > 1 else ""
            if tiles is not None and all(group.cells is not None for group in medium.groups):
                shown += _in_tiles(medium.groups, of, image, tiles, patch)
            else:
                shown += _whole(medium.groups, of, image, manifest.fetch(of), self.recipe.frames)
        return Prompt(row.row_id, inputs, shown)

    @torch.inference_mode()
    def ask(self, prompt: Prompt, method: Method) -> Came:
        """The answer under a method, asked as in the job, but alone."""
        seeds = [row_seed(self.config.seed, prompt.row_id)]
        luck = [Sampler(self.config.temperature, seeds)] if self.config.temperature else []
        with attach(self.model, method, keep_index=True) as attached:
            attached.seeds = seeds
            out = self.model.generate(
                **prompt.inputs,
                do_sample=False,
                max_new_tokens=self.config.max_new_tokens,
                logits_processor=LogitsProcessorList(luck),
            )
            stats = attached.stats[0]
        new = out[:, prompt.inputs["input_ids"].shape[1] :]
        answer: str = self.processor.batch_decode(new, skip_special_tokens=True)[0].strip()
        assert stats.index is not None
        sites: list[tuple[str, int]] = []
        passed = np.zeros(stats.visual_tokens, np.int64)
        for site, index in stats.index.items():
            if len(index) < (sites[-1][1] if sites else stats.visual_tokens):
                sites.append((site, len(index)))
                passed[index.numpy()] += 1
        return Came(answer, sites, passed)


def _tiles(raw: dict[str, Tensor]) -> Pixels | None:
    """Pictures of one size that were cut for the tower, (tiles, H, W, 3), in the order of its calls, if there are."""
    parts = [raw[name] for name in sorted(PIXELS & raw.keys())]  # images, then videos
    if any(part.ndim < 4 for part in parts):  # Qwen's patches
        return None
    return torch.cat([part.flatten(0, -4) for part in parts]).permute(0, 2, 3, 1).byte().numpy()


def _in_tiles(
    groups: Sequence[Group], of: Medium, image: str, tiles: Pixels, patch: int
) -> Iterator[Shown]:
    """Groups that are of a tile each, whole or without its padding."""
    side = tiles.shape[1] // patch
    for place, group in enumerate(groups):
        assert group.cells is not None
        tile = int(group.cells[0]) // side**2
        whole = len(group.cells) == side**2
        cells = np.arange(side**2) if whole else group.cells.numpy() % side**2
        yield Shown(
            _name(of, image, place, len(groups), 1), tiles[tile], (side, side), cells, group.columns
        )


def _whole(
    groups: Sequence[Group], of: Medium, image: str, data: Any, frames: int
) -> Iterator[Shown]:
    """Groups that are of the whole image, or of one frame or some of a video."""
    pictures = (
        images.decode(data)[None] if of.kind == "image" else videos.decode(data, frames).frames
    )
    each = ceil(len(pictures) / len(groups))
    for place, group in enumerate(groups):
        pixels = pictures[min(place * each, len(pictures) - 1)]
        cells = np.arange(len(group.columns))
        yield Shown(
            _name(of, image, place, len(groups), each), pixels, group.grid, cells, group.columns
        )


def _name(of: Medium, image: str, place: int, groups: int, frames: int) -> str:
    if of.kind == "video":
        first = place * frames + 1
        part = f"frame {first}" if frames == 1 else f"frames {first} to {first + frames - 1}"
    elif groups == 1:
        return image
    else:
        part = f"crop {place}" if place else "whole"
    return f"{image}, {part}" if image else part
