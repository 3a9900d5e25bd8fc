"""Trains one demo model from nothing to a checkpoint folder, through every interruption."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf

from pipelines.benchmarks import shapes
from pipelines.training import features, first, second, students
from pipelines.training.card import write as write_card
from pipelines.training.exam import Report, load, sit
from pipelines.training.schedule import Clock
from pipelines.training.students import ANSWER, QUESTION
from pipelines.training.subject import Shapes, Subject

_log = logging.getLogger(__name__)
BENCHMARKS = {"demo-llava": shapes}
SUBJECTS: dict[str, Subject] = {"demo-llava": Shapes()}
_WORDS_FROM = 3_000  # pictures whose questions the tokenizer is made from


@dataclass(frozen=True)
class Plan:
    """How much of each stage; the defaults are what the committed checkpoints were made with."""

    tower_steps: int = 6_000
    pictures: int = 6_000
    steps: int = 12_000
    test_questions: int | None = None
    every: int = 1_000  # steps of the decoder's stage between checkpoints that are written out


def train(name: str, plan: Plan, work: Path, out: Path, report: Callable[[dict[str, float], int], None]) -> Report:
    """Train `name` with its state below `work`, write the checkpoint to `out`/name and test it."""
    subject = SUBJECTS[name]
    home = work / name
    clock = Clock(report)
    torch.manual_seed(0)
    words = students.tokenizer(_texts(subject))
    model = students.model(name, words)
    tower = model.model.vision_tower if hasattr(model.model, "vision_tower") else model.model.video_tower
    first.run(subject, tower, home / "tower.pt", clock, plan.tower_steps)
    seen = features.cache(subject, tower, home, plan.pictures)
    if hasattr(model.model, "image_tower"):
        model.model.image_tower.load_state_dict(tower.state_dict())
    last = -1

    def kept(step: int) -> None:
        """Now and then the student so far is written out, so that others can begin with it."""
        nonlocal last
        if step // plan.every > last or step == plan.steps:
            last = step // plan.every
            export(model, students.processor(name, words), home / "checkpoint")

    second.run(subject, model, words, seen, home / "reader.pt", clock, plan.steps, kept)
    export(model, students.processor(name, words), home / "checkpoint")
    return publish(name, plan, work, out)


def publish(name: str, plan: Plan, work: Path, out: Path) -> Report:
    """Test the checkpoint that training has written last and put it, with its card, to `out`/name."""
    made, folder = work / name / "checkpoint", out / name
    manifest = BENCHMARKS[name].make(work / "data", "test", plan.test_questions)
    result = sit(*load(made), manifest)
    for kind, mark in result.types.items():
        _log.info("%-10s %s", kind, mark)
    _log.info("%-10s %s", "all", result.total)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    write_card(folder / "README.md", name, BENCHMARKS[name], plan, result)
    return result


def export(model: hf.PreTrainedModel, processor: hf.ProcessorMixin, folder: Path) -> None:
    """An ordinary checkpoint: weights in float16 to halve the file, loaded as float32 unless one asks otherwise."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    was = {key: value.clone() for key, value in model.state_dict().items()}
    model.half().save_pretrained(part)
    model.float().load_state_dict(was)
    config = json.loads((part / "config.json").read_text())
    for each in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in each:
            each["dtype"] = "float32"
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    processor.save_pretrained(part)
    old = folder.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def _texts(subject: Subject) -> list[str]:
    """What the student will read and say, each often enough for every word to become one token."""
    texts = []
    for number in range(_WORDS_FROM):
        rng = first.state.dice(4, number)
        for question in subject.ask(subject.show(number), rng, 4):
            texts += [f"{QUESTION}\n{question.text}{ANSWER} {answer}" for answer in question.options]
    return texts
