"""Generation settings: the checkpoint's or the official evaluations', in answers and in the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from pipelines.config.eval_config import EvalConfig
from pipelines.data.media import images
from pipelines.inference.benchmark_job import BenchmarkJob
from pipelines.inference.conversations import render_prompt
from pipelines.inference.engines.generation import checkpoint_settings, clean_answer
from pipelines.inference.preprocess import Collator, encode, job_processor
from pipelines.results.run_record import RunRecord
from tests.pipelines.inference.test_worker import make_config, run_job

Checkpoint = Callable[[str], Path]


@pytest.fixture
def penalised(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A checkpoint that asks for a penalty, sampling and other things, as Qwen's do."""
    folder = tmp_path / "penalised"
    shutil.copytree(checkpoint("qwen2_5_vl"), folder)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "do_sample": True, "repetition_penalty": 5.0}))
    return folder


def transformers_answers(config: EvalConfig, **settings: Any) -> dict[str, str]:
    """The answers of `generate` alone, row by row."""
    model = AutoModelForImageTextToText.from_pretrained(config.model).eval()
    processor = job_processor(config)
    collate = Collator(processor)
    wanted = {}
    for file in sorted(Path(str(config.data)).parent.glob("*.png")):
        prompt = render_prompt(processor, "model", ["image"], "What is this?")
        raw = encode(processor, prompt, [images.decode(file.read_bytes())], [])
        inputs = collate.normalise(collate([raw]))
        with torch.inference_mode():
            out = model.generate(
                **inputs, do_sample=False, max_new_tokens=config.max_new_tokens, **settings
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        wanted[file.stem] = processor.batch_decode(new, skip_special_tokens=True)[0].strip()
    return wanted


def test_official_generation_leaves_out_the_penalty(penalised: Path, tmp_path: Path) -> None:
    config = replace(make_config(penalised, tmp_path, "abc", ("vanilla",)), max_new_tokens=12)
    tables = {
        generation: run_job(replace(config, generation=generation))[0]["vanilla"]
        for generation in ("model", "official")
    }
    got = {
        generation: dict(
            zip(table["row_id"].to_pylist(), table["prediction"].to_pylist(), strict=True)
        )
        for generation, table in tables.items()
    }
    assert got["model"] == transformers_answers(config)
    assert got["official"] == transformers_answers(config, repetition_penalty=1.0)
    assert got["official"] != got["model"]


def test_run_names_what_the_checkpoint_asks_for(penalised: Path, tmp_path: Path) -> None:
    config = make_config(penalised, tmp_path, "a", ("vanilla",))
    for generation, penalty in (("model", 5.0), ("official", None)):
        job = BenchmarkJob.of(replace(config, generation=generation))
        job.begin(RunRecord("job"))
        [run] = job.runs
        assert run.record is not None
        assert run.record.config["generation"] == generation
        assert run.record.config.get("repetition_penalty") == penalty
        assert run.identity.get("generation") == (None if penalty else "official")


def test_checkpoints_without_settings_have_none(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert checkpoint_settings(str(checkpoint("llava")), None) == {}
    assert checkpoint_settings(str(tmp_path), None) == {}


@pytest.mark.parametrize(
    ("text", "model_type", "cleaned"),
    [
        (" a dog.Ъ", "video_llava", "a dog."),
        ("a dog. Ъ\n", "video_llava", "a dog."),
        ("Ъ is a letter", "video_llava", "Ъ is a letter"),
        (" the letter Ъ", "qwen2_5_vl", "the letter Ъ"),
    ],
)
def test_stray_letter_of_video_llava_is_removed(text: str, model_type: str, cleaned: str) -> None:
    assert clean_answer(text, model_type) == cleaned
