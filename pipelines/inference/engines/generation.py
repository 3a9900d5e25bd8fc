"""Companions of `generate`: a timer, sampling that is independent for each row, answer lengths."""

import hashlib
import time
from collections.abc import Collection, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    ProcessorMixin,
    StoppingCriteria,
)

OFFICIAL = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1}
"""Settings that change greedy answers, with the values of LLaVA's scripts and of VLMEvalKit."""


@cache  # for all runs of a model: the hub is asked each time
def checkpoint_settings(model: str, revision: str | None) -> dict[str, Any]:
    """The settings of OFFICIAL to which the checkpoint's generation config gives other values."""
    try:
        config = GenerationConfig.from_pretrained(model, revision=revision or "main")
    except OSError:  # the checkpoint has none
        return {}
    own = {name: getattr(config, name, None) for name in OFFICIAL}
    return {name: value for name, value in own.items() if value not in (None, OFFICIAL[name])}


def apply_generation(model: PreTrainedModel, generation: str) -> None:
    """Let `generate` leave out the checkpoint's penalties and beams if they are not wanted."""
    if generation == "official":
        model.generation_config.update(**OFFICIAL)


def row_seed(seed: int, row_id: str) -> int:
    """A seed of the row's own, so that its samples depend on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{row_id}".encode()).digest()[:6])


class GenerationTimer(StoppingCriteria):
    """Never stops: it marks times, the first token's among them, without making a GPU wait."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: dict[str, Any] = {}

    def mark(self, name: str) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks[name] = event
        else:
            self._marks[name] = time.perf_counter()

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        if "first token" not in self._marks:
            self.mark("first token")
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def read(self) -> dict[str, float]:
        """Milliseconds from each mark to the one before it; the last is `end`, now."""
        self.mark("end")
        if self._cuda:
            self._marks["end"].synchronize()
        return {
            name: earlier.elapsed_time(later) if self._cuda else 1000 * (later - earlier)
            for (_, earlier), (name, later) in pairwise(self._marks.items())
        }


class Sampler(LogitsProcessor):
    """Sampling at a temperature, done as a greedy choice among logits with added noise.

    With Gumbel noise, the argmax of logits / temperature + noise is a sample of the softmax. Each
    row has its own generator, so its answer is the same in every batch.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self._temperature = temperature
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        vocabulary = scores.shape[1]
        noise = torch.stack(
            [
                torch.empty(vocabulary).exponential_(generator=generator).log().neg()
                for generator in self._generators
            ]
        )
        return scores / self._temperature + noise.to(scores.device)


def eos_token_ids(model: PreTrainedModel, processor: ProcessorMixin) -> set[int]:
    """The tokens that `generate` stops at. Qwen has two, and its tokenizer names only one."""
    ids = model.generation_config.eos_token_id
    if ids is None:
        ids = processor.tokenizer.eos_token_id
    return {ids} if isinstance(ids, int) else set(ids or ())


def clean_answer(text: str, model_type: str) -> str:
    """A decoded answer without the space around it.

    Converted checkpoints of Video-LLaVA often end an answer with a letter that is no part of it.
    """
    text = text.strip()
    return text.removesuffix("Ъ").rstrip() if model_type == "video_llava" else text


def answer_length(answer: Sequence[int], ends: Collection[int]) -> int:
    """Tokens of an answer up to and including the first end token; padding follows it."""
    return next((at + 1 for at, token in enumerate(answer) if token in ends), len(answer))
