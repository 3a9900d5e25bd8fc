"""Trains the demo models from nothing to checkpoint folders, in rounds that can be interrupted."""

import copy
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf

from demo.training import decoder_stage, feature_cache, small_models, tower_stage
from demo.training.evaluation import Evaluation, evaluate, load
from demo.training.model_card import write as write_card
from demo.training.rounds import Round
from demo.training.small_models import BEFORE_ANSWER, BEFORE_QUESTION
from demo.training.step_loop import StepLoop
from demo.training.tasks import MotionTask, ShapesTask, Task
from pipelines.benchmarks.synthetic import motion, shapes

_log = logging.getLogger(__name__)
BENCHMARKS = {"demo-llava": shapes, "demo-video-llava": motion}
TASKS: dict[str, Task] = {"demo-llava": ShapesTask(), "demo-video-llava": MotionTask()}
_INTERVAL = ("accuracy_ci_low", "accuracy_ci_high")
_TOKENIZER_PICTURES = 3_000  # whose questions train the tokenizer


def train(
    name: str,
    round_: Round,
    questions: int | None,
    work: Path,
    out: Path,
    device: str,
    report: Callable[[dict[str, float], int], None],
) -> None:
    """Train one round of a model, with its state below `work`; test it and write it to `out`/name.

    A finished round is not repeated.
    """
    task, home, loop = TASKS[name], work / name, StepLoop(report)
    finished = home / "finished.json"
    over = json.loads(finished.read_text()) if finished.exists() else []
    if list(round_) in over:
        return
    _log.info("%s: %s", name, round_)
    torch.manual_seed(0)
    words = small_models.tokenizer(_texts(task))
    model = small_models.model(name, words).to(device)
    twin = getattr(model.model, "image_tower", None)
    tower = model.model.vision_tower if twin is None else model.model.video_tower
    elder = None if name == "demo-llava" else work / "demo-llava" / "tower.pt"
    tower_stage.run(task, tower, home / "tower.pt", loop, round_.tower_steps, elder)
    if twin is not None:
        twin.load_state_dict(tower.state_dict())
    seen = feature_cache.cached_features(task, tower, home, round_.pictures, round_.tower_steps)
    decoder_stage.run(task, model, words, seen, home / "reader.pt", loop, round_.steps)
    export(model, small_models.processor(name, words), home / "checkpoint")
    result = publish(name, round_, questions, work, out, device)
    numbers = {
        "accuracy": result.total.accuracy,
        **dict(zip(_INTERVAL, result.total.interval, strict=True)),
    }
    report(
        {**numbers, **{f"accuracy_{kind}": mark.accuracy for kind, mark in result.types.items()}},
        round_.steps,
    )
    finished.write_text(json.dumps([*over, list(round_)]))


def publish(
    name: str, round_: Round, questions: int | None, work: Path, out: Path, device: str
) -> Evaluation:
    """Test the latest checkpoint, and copy it with its model card to `out`/name."""
    made, folder = work / name / "checkpoint", out / name
    manifest = BENCHMARKS[name].make(work / "data", "test", questions)
    result = evaluate(*load(made, device), manifest)
    for kind, mark in result.types.items():
        _log.info("%-10s %s", kind, mark)
    _log.info("%-10s %s", "all", result.total)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    write_card(folder / "README.md", name, BENCHMARKS[name], round_, result)
    return result


def export(model: hf.PreTrainedModel, processor: hf.ProcessorMixin, folder: Path) -> None:
    """Write a checkpoint whose weights are float16, to halve the file, and load as float32."""
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


def _texts(task: Task) -> list[str]:
    """Texts for the tokenizer, with every word often enough to become one token."""
    texts = []
    for number in range(_TOKENIZER_PICTURES):
        rng = tower_stage.state.dice(4, number)
        for question in task.ask(task.show(number), rng, 4):
            texts += [
                f"{BEFORE_QUESTION}\n{question.text}{BEFORE_ANSWER} {answer}"
                for answer in question.options
            ]
    return texts
