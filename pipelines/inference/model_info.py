"""Properties of a model that do not need its weights: which budgets are possible, prefill cost."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForImageTextToText

from apet.attach.attachment import attach
from apet.flops import ModelShape, prefill_flops, shape_of
from apet.methods.base import ModelLayout
from apet.models import family_of, load_config
from apet.schedule import Schedule
from pipelines.config.method_spec import MethodSpec

MAX_SAMPLED_ROWS = 500  # rows that a mean is taken over, evenly spaced


@dataclass(frozen=True)
class ModelInfo:
    """A model's shape, as compression methods need it."""

    model: ModelLayout
    visual_tokens: int | None  # of an image or a video; None if sizes vary
    shell: Any  # the model without weights

    def check(self, method: MethodSpec) -> None:
        """Raise a ValueError for a wrong option, an impossible budget, or an unsupported family."""
        attach(self.shell, method.build(self.model, self.visual_tokens))


@cache
def model_info(
    name: str, revision: str | None = None, trust_remote_code: bool = False, frames: int = 1
) -> ModelInfo:
    """The model's layers, and the visual tokens of an image, or of a video of that many frames.

    Builds the model without memory for its weights, so that the family describes itself.
    """
    config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        shell = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    return ModelInfo(ModelLayout.of(family_of(shell)), _visual_tokens(config, frames), shell)


def _visual_tokens(config: Any, frames: int) -> int | None:
    if config.model_type not in ("llava", "video_llava"):
        return None  # depends on crops or pixels
    vision = config.vision_config
    return int(frames * (vision.image_size // vision.patch_size) ** 2)


@cache  # for all runs of a model: load_config asks the hub each time
def _shape(name: str, revision: str | None, trust_remote_code: bool) -> ModelShape:
    return shape_of(load_config(name, revision=revision, trust_remote_code=trust_remote_code))


def prefill_tflops(
    name: str, revision: str | None, trust_remote_code: bool, answers: pa.Table
) -> float | None:
    """Mean prefill of answered rows in teraflops, from what each site kept; None without rows."""
    if not len(answers):
        return None
    shape = _shape(name, revision, trust_remote_code)
    sample = np.unique(np.linspace(0, len(answers) - 1, MAX_SAMPLED_ROWS).astype(int))
    columns = answers.select(["schedule", "visual_tokens_in", "prompt_tokens"])
    rows = columns.take(pa.array(sample)).to_pylist()
    total = 0.0
    for row in rows:
        visual, layers = row["visual_tokens_in"], shape.decoder.layers
        plan = Schedule.parse(row["schedule"] or "full", visual_tokens=visual, layers=layers)
        total += prefill_flops(shape, plan, row["prompt_tokens"] - visual).total
    return total / len(rows) / 1e12
