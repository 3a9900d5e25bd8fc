"""The committed demo models load like any checkpoint and reach the accuracy of their cards."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from apet import ApET, attach
from demo.training.evaluation import evaluate, load
from pipelines.benchmarks.synthetic import motion, shapes
from tests.support import ROOT

DEMO = ROOT / "demo"

# A little below what the committed checkpoints reach on the first questions of the test split.
QUESTIONS = {"demo-llava": 96, "demo-video-llava": 32}
MIN_ACCURACY = {
    ("demo-llava", "vanilla"): 0.90,
    ("demo-llava", "apet"): 0.90,
    ("demo-video-llava", "vanilla"): 0.90,
    ("demo-video-llava", "apet"): 0.65,
}
BUDGETS: dict[str, int | str] = {"demo-llava": 192, "demo-video-llava": "12.5%"}


def test_loading_and_one_answer_take_seconds(tmp_path: Path) -> None:
    manifest = shapes.make(tmp_path, "test", 1)
    began = time.process_time()  # without the time of other processes
    model, processor = load(DEMO / "demo-llava")
    evaluate(model, processor, manifest, questions=1)
    assert time.process_time() - began < 5
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert model.dtype == torch.float32


@pytest.mark.parametrize("name", QUESTIONS)
def test_checkpoint_is_small_and_complete(name: str) -> None:
    folder = DEMO / name
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= 8_000_000
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    processor = hf.AutoProcessor.from_pretrained(folder)
    assert processor.chat_template
    tokenizer = processor.tokenizer
    # The tokenizer keeps any text, not only that of the questions.
    for text in ("red", "What colour is the large red circle?", "Grüße, 漢字!"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert "95 % interval" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("name", "method"), MIN_ACCURACY)
def test_checkpoint_reaches_its_accuracy(
    name: str, method: str, demo_model: Callable[[str], tuple[Any, Any]], tmp_path: Path
) -> None:
    model, processor = demo_model(name)
    benchmark = shapes if name == "demo-llava" else motion
    manifest = benchmark.make(tmp_path, "test", QUESTIONS[name])

    def context() -> AbstractContextManager[Any]:
        return attach(model, ApET(budget=BUDGETS[name])) if method == "apet" else nullcontext()

    result = evaluate(model, processor, manifest, method=context)
    assert result.total.asked == QUESTIONS[name]
    assert result.total.accuracy >= MIN_ACCURACY[name, method], "\n".join(
        f"{kind}: {accuracy}" for kind, accuracy in result.types.items()
    )
