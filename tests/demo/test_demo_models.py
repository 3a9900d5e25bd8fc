"""The committed demo models: they load like any checkpoint, and they know what their cards say."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
import transformers as hf

from apet import ApET, attach
from demo.training.exam import Report, load, sit
from pipelines.benchmarks.synthetic import motion, shapes

DEMO = Path(__file__).parents[2] / "demo"
ASKED, ASKED_OF_VIDEOS = 200, 60
# A little below what the committed checkpoints score on these questions.
FLOOR = {"vanilla": 0.88, "apet": 0.88, "vanilla, videos": 0.86, "apet, videos": 0.66}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.make(tmp_path_factory.mktemp("data"), "test", ASKED)


@pytest.fixture(scope="module")
def student() -> tuple[hf.PreTrainedModel, hf.ProcessorMixin]:
    return load(DEMO / "demo-llava")


def test_loading_and_one_answer_take_seconds(manifest: Path) -> None:
    began = time.process_time()  # not the time that other processes take
    model, processor = load(DEMO / "demo-llava")
    sit(model, processor, manifest, questions=1)
    assert time.process_time() - began < 5
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert model.dtype == torch.float32


@pytest.mark.parametrize("folder", sorted(DEMO.glob("demo-*")), ids=lambda folder: folder.name)
def test_a_checkpoint_is_small_and_complete(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= 8_000_000
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    processor = hf.AutoProcessor.from_pretrained(folder)
    assert processor.chat_template
    for word in (
        "red",
        "What colour is the large red circle?",
        "Grüße, 漢字!",
    ):  # any text survives the tokenizer
        assert (
            processor.tokenizer.decode(
                processor.tokenizer(word, add_special_tokens=False).input_ids
            )
            == word
        )
    assert "95 % interval" in (folder / "README.md").read_text()


def test_accuracy_of_all_tokens(
    student: tuple[hf.PreTrainedModel, hf.ProcessorMixin], manifest: Path
) -> None:
    _check(sit(*student, manifest), "vanilla")


def test_accuracy_of_apet(
    student: tuple[hf.PreTrainedModel, hf.ProcessorMixin], manifest: Path
) -> None:
    model, processor = student
    _check(sit(model, processor, manifest, method=lambda: attach(model, ApET(budget=192))), "apet")


def test_accuracy_on_videos(tmp_path: Path) -> None:
    model, processor = load(DEMO / "demo-video-llava")
    manifest = motion.make(tmp_path, "test", ASKED_OF_VIDEOS)
    _check(sit(model, processor, manifest), "vanilla, videos", ASKED_OF_VIDEOS)
    apet = sit(model, processor, manifest, method=lambda: attach(model, ApET(budget="12.5%")))
    _check(apet, "apet, videos", ASKED_OF_VIDEOS)


def _check(report: Report, name: str, asked: int = ASKED) -> None:
    assert report.total.asked == asked
    assert report.total.accuracy >= FLOOR[name], "\n".join(
        f"{kind}: {mark}" for kind, mark in report.types.items()
    )
