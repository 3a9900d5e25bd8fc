"""Trains the demo models from nothing to checkpoint folders, in rounds and through every interruption."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import transformers as hf

from demo.training import features, first, second, students
from demo.training.card import write as write_card
from demo.training.exam import Report, load, sit
from demo.training.schedule import Clock
from demo.training.students import ANSWER, QUESTION
from demo.training.subject import Motion, Shapes, Subject
from pipelines.benchmarks.synthetic import motion, shapes

_log = logging.getLogger(__name__)
BENCHMARKS = {"demo-llava": shapes, "demo-video-llava": motion}
SUBJECTS: dict[str, Subject] = {"demo-llava": Shapes(), "demo-video-llava": Motion()}
_INTERVAL = ("accuracy_ci_low", "accuracy_ci_high")
_WORDS_FROM = 3_000  # pictures whose questions the tokenizer is made from


class Round(NamedTuple):
    """How far each stage is when a round ends: both stages go on from the round before."""

    tower_steps: int
    pictures: int
    steps: int


# Several, because an early checkpoint is worth having. The committed demo-video-llava has ended the first of them and
# demo-llava the second; the third is what would make them better.
ROUNDS = (Round(2_000, 1_500, 1_500), Round(4_500, 2_000, 3_750), Round(10_000, 4_000, 12_000))


def train(
    name: str,
    this: Round,
    questions: int | None,
    work: Path,
    out: Path,
    device: str,
    report: Callable[[dict[str, float], int], None],
) -> None:
    """One round of `name`, with its state below `work`; then test it and write it to `out`/name.

    A round that is over is not done again.
    """
    subject, home, clock = SUBJECTS[name], work / name, Clock(report)
    finished = home / "finished.json"
    over = json.loads(finished.read_text()) if finished.exists() else []
    if list(this) in over:
        return
    _log.info("%s: %s", name, this)
    torch.manual_seed(0)
    words = students.tokenizer(_texts(subject))
    model = students.model(name, words).to(device)
    twin = getattr(model.model, "image_tower", None)
    tower = model.model.vision_tower if twin is None else model.model.video_tower
    elder = None if name == "demo-llava" else work / "demo-llava" / "tower.pt"
    first.run(subject, tower, home / "tower.pt", clock, this.tower_steps, elder)
    if twin is not None:
        twin.load_state_dict(tower.state_dict())
    seen = features.cache(subject, tower, home, this.pictures, this.tower_steps)
    second.run(subject, model, words, seen, home / "reader.pt", clock, this.steps)
    export(model, students.processor(name, words), home / "checkpoint")
    result = publish(name, this, questions, work, out, device)
    numbers = {
        "accuracy": result.total.accuracy,
        **dict(zip(_INTERVAL, result.total.interval, strict=True)),
    }
    report(
        {**numbers, **{f"accuracy_{kind}": mark.accuracy for kind, mark in result.types.items()}},
        this.steps,
    )
    finished.write_text(json.dumps([*over, list(this)]))


def publish(
    name: str, this: Round, questions: int | None, work: Path, out: Path, device: str
) -> Report:
    """Test the checkpoint that training has written last and put it, with its card, to `out`/name."""
    made, folder = work / name / "checkpoint", out / name
    manifest = BENCHMARKS[name].make(work / "data", "test", questions)
    result = sit(*load(made, device), manifest)
    for kind, mark in result.types.items():
        _log.info("%-10s %s", kind, mark)
    _log.info("%-10s %s", "all", result.total)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    write_card(folder / "README.md", name, BENCHMARKS[name], this, result)
    return result


def export(model: hf.PreTrainedModel, processor: hf.ProcessorMixin, folder: Path) -> None:
    """An ordinary checkpoint: weights in float16 to halve the file, loaded as float32 unless one asks otherwise."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(part)
    config = json.loads((part / "config.json").read_text())
    for each in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in each:
            each["dtype"] = "float32"
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    processor.save_pretrained(part)
    for file in part.iterdir():
        file.chmod(0o644)
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
            texts += [
                f"{QUESTION}\n{question.text}{ANSWER} {answer}" for answer in question.options
            ]
    return texts
