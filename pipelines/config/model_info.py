"""What is known of a model without its weights: which budgets a method cannot reach in it, what its prefill costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForImageTextToText

from apet.attach.session import attach
from apet.flops import ModelShape, prefill_flops, shape_of
from apet.methods.base import Model
from apet.models import family_of, load_config
from apet.schedule import Schedule
from pipelines.config.method_spec import MethodSpec

COUNTED = 500  # rows, evenly spread, that a mean is taken over


@dataclass(frozen=True)
class ModelInfo:
    """What a model can do."""

    model: Model
    visual_tokens: int | None  # of an image, or of a video; None if sizes vary
    shell: Any  # the model, without weights

    def refuse(self, point: MethodSpec) -> None:
        """A ValueError for a wrong option, a budget out of reach, or a method that the family cannot serve."""
        attach(self.shell, point.build(self.model, self.visual_tokens))


@cache
def model_info(
    name: str, revision: str | None = None, trust_remote_code: bool = False, frames: int = 1
) -> ModelInfo:
    """The model's depth, and the visual tokens of an image or of a video of so many frames.

    The model is built without memory for its weights, so that the family's own description answers.
    """
    config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        shell = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    family = family_of(shell)
    model = Model(
        len(family.layers), family.tower_layers, family.first_decoder_site, family.encoder_only
    )
    return ModelInfo(model, _tokens(config, frames), shell)


def _tokens(config: Any, frames: int) -> int | None:
    if config.model_type not in ("llava", "video_llava"):
        return None  # crops, or as many as the pixels
    vision = config.vision_config
    return int(frames * (vision.image_size // vision.patch_size) ** 2)


@cache
def _shape(name: str, revision: str | None, trust_remote_code: bool) -> ModelShape:
    """Once for all runs of a model: the hub is asked each time."""
    return shape_of(load_config(name, revision=revision, trust_remote_code=trust_remote_code))


def prefill_tflops(
    name: str, revision: str | None, trust_remote_code: bool, answers: pa.Table
) -> float | None:
    """The mean prefill of answered rows in teraflops, counted from what each site kept; None without any."""
    if not len(answers):
        return None
    shape = _shape(name, revision, trust_remote_code)
    some = np.unique(np.linspace(0, len(answers) - 1, COUNTED).astype(int))
    rows = (
        answers.select(["schedule", "visual_tokens_in", "prompt_tokens"])
        .take(pa.array(some))
        .to_pylist()
    )
    total = 0.0
    for row in rows:
        visual = row["visual_tokens_in"]
        plan = Schedule.parse(
            row["schedule"] or "full", visual_tokens=visual, layers=shape.decoder.layers
        )
        total += prefill_flops(shape, plan, row["prompt_tokens"] - visual).total
    return total / len(rows) / 1e12
