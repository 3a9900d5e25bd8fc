"""Checkpoints as they lie on the hub, from their files to the answers of whole jobs.

`make test-versions` prints this table for the oldest and the newest versions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from apet import ApET, Decode, attach
from apet.models import load
from pipelines.config.eval_config import EvalConfig
from pipelines.data.rows import Kind
from pipelines.inference.conversations import render_prompt
from pipelines.inference.preprocess import Collator, encode
from pipelines.job import run
from pipelines.results import answers
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from tests.support import layouts, samples, tiny

pytestmark = [
    pytest.mark.filterwarnings("default"),  # Ray and MLflow warn about themselves
    pytest.mark.usefixtures("cluster"),
]
EVERY_LAYOUT = pytest.mark.parametrize("name", layouts.LAYOUTS)
IMAGE_ONLY = [name for name, layout in layouts.LAYOUTS.items() if not layout.videos]
VIDEOS = [name for name, layout in layouts.LAYOUTS.items() if layout.videos]
Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return cache(lambda name: layouts.save(name, tmp_path_factory.mktemp("hub")))


@EVERY_LAYOUT
def test_load_finds_every_weight(name: str, saved: Saved) -> None:
    _, info = AutoModelForImageTextToText.from_pretrained(saved(name), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    model, processor = load(saved(name))
    assert type(model).__name__ == layouts.LAYOUTS[name].config["architectures"][0]
    assert bool(processor.chat_template) is (name != "Video-LLaVA-7B-hf")


@EVERY_LAYOUT
def test_attached_model_answers_as_generate_does(name: str, saved: Saved) -> None:
    model, processor = load(saved(name), dtype=torch.float32)
    conversation = "model" if processor.chat_template else "llava_v1"
    collate = Collator(processor)
    rows = []
    for number, question in enumerate(["What?", "What is this about?"]):
        prompt = render_prompt(processor, conversation, ["image"], question)
        picture = tiny.image(200 + 90 * number, 180, seed=number)
        rows.append(encode(processor, prompt, [np.array(picture)], []))
    inputs = collate.normalise(collate(rows))
    decode = Decode(model)
    whole = decode.answer(inputs, 6)
    with attach(model, ApET(budget="25%")) as attached:
        want = model.generate(**inputs, do_sample=False, max_new_tokens=6)
        got = decode.answer(inputs, 6)
        stats = attached.stats
    assert torch.equal(got, want[:, inputs["input_ids"].shape[1] :])
    assert whole.shape == got.shape
    for row in stats:
        assert row.budget == pytest.approx(row.visual_tokens / 4, rel=0.02)


def config(kind: Kind, model: Path, folder: Path) -> EvalConfig:
    """The default command, about two files; short answers."""
    for number in range(2):
        if kind == "image":
            tiny.image(120 + 60 * number, 100, seed=number).save(folder / f"{number}.png")
        else:
            (folder / f"{number}.mp4").write_bytes(
                samples.clip("mp4", "mpeg4", 10 + number, (320, 240))
            )
    suffix = "png" if kind == "image" else "mp4"
    rows = [
        {"id": f"{number}", "media": f"{number}.{suffix}", "question": "What?"} for number in (0, 1)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {"data": str(folder / "rows.jsonl"), "output": str(folder / "out")}
    return EvalConfig.of(kind, model=str(model), max_new_tokens=4, **given)


def check_answers(job: EvalConfig) -> None:
    assert run(job) == 0
    folders = [Folder.of(str(path.parent)) for path in Path(job.output).glob("*/config.yaml")]
    tables = {RunRecord.load(folder).point["method"]: answers.read(folder) for folder in folders}
    assert set(tables) == {"vanilla", "apet"}
    for method, table in tables.items():
        assert table["status"].to_pylist() == ["ok", "ok"], table["error"].to_pylist()
        assert min(table["new_tokens"].to_pylist()) > 0
        for row in table.select(["visual_tokens_in", "budget"]).to_pylist():
            few = job.kind == "image" and row["visual_tokens_in"] <= 64  # the default budget
            whole = method == "vanilla" or few
            assert (row["budget"] == row["visual_tokens_in"]) is whole


@EVERY_LAYOUT
def test_image_job(name: str, saved: Saved, tmp_path: Path) -> None:
    check_answers(config("image", saved(name), tmp_path))


@pytest.mark.parametrize("name", VIDEOS)
def test_video_job(name: str, saved: Saved, tmp_path: Path) -> None:
    check_answers(config("video", saved(name), tmp_path))


@pytest.mark.parametrize("name", IMAGE_ONLY)
def test_video_job_of_a_model_for_images_is_refused(
    name: str, saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config("video", saved(name), tmp_path)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "does not take videos" in line
