"""What goes along with `generate`: a stopwatch, sampling in which a row's luck is its own, and where answers end."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, ProcessorMixin, StoppingCriteria


def row_seed(seed: int, row_id: str) -> int:
    """A row's own: what it draws depends on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{row_id}".encode()).digest()[:6])


class GenerationTimer(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing: it notes when the first token is there, without making a GPU wait."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        if len(self._marks) == 1:
            self.mark()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def read(self) -> tuple[float, float]:
        """Milliseconds from the first mark to the first token, and from there to now."""
        self.mark()
        start, first, end = self._marks
        if self._cuda:
            end.synchronize()
            return start.elapsed_time(first), first.elapsed_time(end)
        return 1000 * (first - start), 1000 * (end - first)


class Sampler(LogitsProcessor):  # type: ignore[misc]
    """Sampling at a temperature, as greedy choice among logits with noise that each row draws for itself.

    With Gumbel noise the largest of logits / temperature + noise is a sample of the softmax. A row's draws are
    seeded by the row, so that its answer is the same in every batch.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self._temperature = temperature
        self._draws = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        width = scores.shape[1]
        noise = torch.stack(
            [torch.empty(width).exponential_(generator=draw).log().neg() for draw in self._draws]
        )
        return scores / self._temperature + noise.to(scores.device)


def eos_token_ids(model: PreTrainedModel, processor: ProcessorMixin) -> set[int]:
    """The tokens that `generate` stops at: Qwen has two, of which its tokenizer names one."""
    known = model.generation_config.eos_token_id
    if known is None:
        known = processor.tokenizer.eos_token_id
    return {known} if isinstance(known, int) else set(known or ())


def answer_length(answer: Sequence[int], ends: Collection[int]) -> int:
    """Tokens of an answer: all up to the first end and with it; what follows is padding."""
    return next((at + 1 for at, token in enumerate(answer) if token in ends), len(answer))
