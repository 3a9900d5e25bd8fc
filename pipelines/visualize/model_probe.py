"""Runs a loaded model on single rows and records which visual tokens each method keeps.

The model is loaded once and every method is attached to it in turn, as in the job that wrote the
answers.
"""

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
from pipelines.inference.engines.generation import (
    Sampler,
    apply_generation,
    clean_answer,
    row_seed,
)
from pipelines.inference.preprocess import PIXELS, Collator, Preprocessor


class TokenGroup(NamedTuple):
    """Visual tokens of one picture: an image, a crop, or one or more frames."""

    name: str  # of the frame or crop; empty for a single picture
    pixels: Pixels  # (H, W, 3)
    grid: tuple[int, int]  # rows x columns of patches
    cells: NDArray[np.int64]  # (N,) patches that have a token, in the tokens' order
    columns: Tensor  # (N,) positions of the tokens in the prompt


@dataclass(frozen=True)
class Prompt:
    """A row as model inputs, with its visual tokens group by group."""

    row_id: str
    inputs: dict[str, Tensor]
    groups: list[TokenGroup]

    @property
    def visual_tokens(self) -> int:
        return sum(len(group.cells) for group in self.groups)

    def by_group(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Split values of all visual tokens, (visual_tokens,), into one array per group."""
        return np.split(values, np.cumsum([len(group.cells) for group in self.groups])[:-1])


@dataclass(frozen=True)
class Generation:
    """An answer, and the sites that dropped visual tokens on the way to it."""

    answer: str
    sites: list[tuple[str, int]]  # sites that dropped tokens, and how many tokens each kept
    sites_passed: NDArray[np.int64]  # (visual_tokens,) number of these sites that kept the token


class ModelProbe:
    """A model, loaded and prompted as a job's config says."""

    def __init__(self, config: EvalConfig) -> None:
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.preprocess = Preprocessor(config)
        self.processor: Any = self.preprocess.processor
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
        apply_generation(self.model, config.generation)
        self.family = family_of(self.model)

    @torch.inference_mode()
    def read(self, row: Row, manifest: Manifest) -> Prompt:
        """The row's inputs, and its pictures as the model sees them."""
        _, raw = self.preprocess(row, manifest)
        batch = self.collate.normalise(self.collate([raw]))
        inputs = {name: value.to(self.device) for name, value in batch.items()}
        with attach(self.model, build("vanilla")) as attached:
            self.model(**inputs)
            media = attached.stats[0].media
        if not media:
            raise ValueError(f"row {row.row_id!r} shows the model no picture; choose another")
        tiles, patch = _tiles(raw), self.model.config.vision_config.patch_size
        groups: list[TokenGroup] = []
        for number, (tokens, medium) in enumerate(zip(media, row.media, strict=True), 1):
            image = f"image {number}" if len(media) > 1 else ""
            if tiles is not None and all(group.cells is not None for group in tokens.groups):
                groups += _groups_of_tiles(tokens.groups, medium, image, tiles, patch)
            else:
                content = manifest.fetch(medium)
                if medium.kind == "image":
                    pictures = images.decode(content)[None]
                else:
                    pictures = videos.decode(content, self.config.frames).frames
                groups += _groups_of_pictures(tokens.groups, medium, image, pictures)
        return Prompt(row.row_id, inputs, groups)

    @torch.inference_mode()
    def generate(self, prompt: Prompt, method: Method) -> Generation:
        """The answer under a method, prompted as in the job but in a batch of its own."""
        seeds = [row_seed(self.config.seed, prompt.row_id)]
        samplers = [Sampler(self.config.temperature, seeds)] if self.config.temperature else []
        with attach(self.model, method, keep_index=True) as attached:
            attached.seeds = seeds
            output = self.model.generate(
                **prompt.inputs,
                do_sample=False,
                max_new_tokens=self.config.max_new_tokens,
                logits_processor=LogitsProcessorList(samplers),
            )
            stats = attached.stats[0]
        new = output[:, prompt.inputs["input_ids"].shape[1] :]
        text: str = self.processor.batch_decode(new, skip_special_tokens=True)[0]
        answer = clean_answer(text, self.model.config.model_type)
        assert stats.index is not None
        sites: list[tuple[str, int]] = []
        passed = np.zeros(stats.visual_tokens, np.int64)
        for site, index in stats.index.items():
            if len(index) < (sites[-1][1] if sites else stats.visual_tokens):
                sites.append((site, len(index)))
                passed[index.numpy()] += 1
        return Generation(answer, sites, passed)


def _tiles(raw: dict[str, Tensor]) -> Pixels | None:
    """The equally sized crops that the tower reads, (tiles, H, W, 3), in the order of its calls.

    None for processors that make patches of pictures of any size (Qwen's).
    """
    pixels = [raw[name] for name in sorted(PIXELS & raw.keys())]  # images before videos
    if any(values.ndim < 4 for values in pixels):
        return None
    return torch.cat([v.flatten(0, -4) for v in pixels]).permute(0, 2, 3, 1).byte().numpy()


def _groups_of_tiles(
    groups: Sequence[Group], medium: Medium, image: str, tiles: Pixels, patch: int
) -> Iterator[TokenGroup]:
    """Groups that cover one tile each, entirely or without its padding."""
    side = tiles.shape[1] // patch
    for number, group in enumerate(groups):
        assert group.cells is not None
        tile = int(group.cells[0]) // side**2
        is_complete = len(group.cells) == side**2
        cells = np.arange(side**2) if is_complete else group.cells.numpy() % side**2
        name = _name(medium, image, number, len(groups), 1)
        yield TokenGroup(name, tiles[tile], (side, side), cells, group.columns)


def _groups_of_pictures(
    groups: Sequence[Group], medium: Medium, image: str, pictures: Pixels
) -> Iterator[TokenGroup]:
    """Groups that cover an entire image, or one or more frames of a video."""
    frames = ceil(len(pictures) / len(groups))  # per group; the first of them is drawn
    for number, group in enumerate(groups):
        pixels = pictures[min(number * frames, len(pictures) - 1)]
        name = _name(medium, image, number, len(groups), frames)
        yield TokenGroup(name, pixels, group.grid, np.arange(len(group.columns)), group.columns)


def _name(medium: Medium, image: str, number: int, groups: int, frames: int) -> str:
    if medium.kind == "video":
        first = number * frames + 1
        name = f"frame {first}" if frames == 1 else f"frames {first} to {first + frames - 1}"
    elif groups == 1:
        return image
    else:
        name = f"crop {number}" if number else "whole image"
    return f"{image}, {name}" if image else name
