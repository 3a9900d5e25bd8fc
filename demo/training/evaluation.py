"""Accuracy of a checkpoint on a manifest, by type of question, with plain transformers."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from PIL import Image

from demo.training.small_models import FRAMES
from pipelines.data.media import videos
from pipelines.metrics.intervals import wilson


@dataclass(frozen=True)
class Accuracy:
    """Right answers among questions, with Wilson's 95 % interval."""

    right: int
    asked: int

    @property
    def accuracy(self) -> float:
        return self.right / self.asked if self.asked else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.asked:
            return 0.0, 1.0
        _, low, high = wilson(self.right, self.asked)
        return low, high

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{100 * self.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f}, n = {self.asked})"
        )


@dataclass(frozen=True)
class Evaluation:
    """Accuracy by type of question and in total; `answers` are (id, answer, is right)."""

    types: dict[str, Accuracy]
    total: Accuracy
    answers: list[tuple[str, str, bool]]
    seconds: float


def load(folder: Path, device: str = "cpu") -> tuple[hf.PreTrainedModel, hf.ProcessorMixin]:
    model = hf.AutoModelForImageTextToText.from_pretrained(folder).eval().to(device)
    return model, hf.AutoProcessor.from_pretrained(folder)


def evaluate(
    model: hf.PreTrainedModel,
    processor: hf.ProcessorMixin,
    manifest: Path,
    questions: int | None = None,
    batch: int = 16,
    method: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Evaluation:
    """Answer the first `questions` rows greedily; `method` opens a context for the model to run in.

    sit(model, processor, manifest, method=lambda: attach(model, ApET(budget=64)))
    """
    lines = manifest.read_text(encoding="utf-8").splitlines()[:questions]
    rows = [json.loads(line) for line in lines]
    start, answers = time.monotonic(), []
    tally: dict[str, list[bool]] = {}
    with torch.inference_mode(), method():
        for row, said in _answers(model, processor, manifest.parent, rows, batch):
            right = said.strip().lower() in {answer.lower() for answer in row["answers"]}
            tally.setdefault(row["type"], []).append(right)
            answers.append((row["id"], said.strip(), right))
    types = {kind: Accuracy(sum(marks), len(marks)) for kind, marks in sorted(tally.items())}
    total = Accuracy(sum(right for *_, right in answers), len(answers))
    return Evaluation(types, total, answers, time.monotonic() - start)


def _answers(
    model: hf.PreTrainedModel,
    processor: hf.ProcessorMixin,
    home: Path,
    rows: list[dict[str, Any]],
    batch: int,
) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows with their answers. Questions of one length share a batch, to avoid padding."""
    rows = sorted(rows, key=lambda row: len(row["question"].split()))
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        inputs = _inputs(processor, home, part).to(model.device)
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        yield from zip(part, processor.batch_decode(new, skip_special_tokens=True), strict=True)


def _inputs(
    processor: hf.ProcessorMixin, home: Path, rows: list[dict[str, Any]]
) -> hf.BatchFeature:
    clip = rows[0]["media"].endswith(".mp4")
    kind = "video" if clip else "image"
    texts = [
        processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": kind}, {"type": "text", "text": row["question"]}],
                }
            ],
            add_generation_prompt=True,
        )
        for row in rows
    ]
    if clip:
        media: dict[str, Any] = {
            "videos": [videos.decode(home / row["media"], FRAMES).frames for row in rows]
        }
    else:
        media = {"images": [Image.open(home / row["media"]).convert("RGB") for row in rows]}
    return processor(text=texts, **media, padding=True, return_tensors="pt")
