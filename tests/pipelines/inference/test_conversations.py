"""Prompts of real checkpoints: token ids written by hand, and what a model cannot take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.eval_config import EvalConfig
from pipelines.config.model_defaults import with_model_defaults
from pipelines.data.media import videos
from pipelines.data.rows import Kind
from pipelines.inference.benchmark_job import BenchmarkJob
from pipelines.inference.conversations import render_prompt
from pipelines.inference.preprocess import check_inputs, encode, job_processor
from tests.support import checkpoints, tiny

QUESTION = "What is this?"
# "A chat between a curious ... and an artificial intelligence assistant. The assistant gives
# helpful, detailed, and polite answers to the ...'s questions. USER: "; 1404 user, 5199 human
VICUNA_USER = [
    *(1, 319, 13563, 1546, 263, 12758, 1404, 322, 385, 23116, 21082, 20255, 29889, 450, 20255),
    *(4076, 8444, 29892, 13173, 29892, 322, 1248, 568, 6089, 304, 278, 1404, 29915, 29879, 5155),
    *(29889, 3148, 1001, 29901, 29871),
]
VICUNA_HUMAN = [5199 if token == 1404 else token for token in VICUNA_USER]
# "\nWhat is this? ASSISTANT:", after a medium
VICUNA_QUESTION = [29871, 13, 5618, 338, 445, 29973, 319, 1799, 9047, 13566, 29901]
QWEN_SYSTEM = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]
QWEN_USER = [151644, 872, 198]
# "What is this?<|im_end|>\n<|im_start|>assistant\n"
QWEN_QUESTION = [3838, 374, 419, 30, 151645, 198, 151644, 77091, 198]
START, END, IMAGE, VIDEO = 151652, 151653, 151655, 151656


def seconds(whole: int, tenth: int) -> list[int]:
    """<0.5 seconds>"""
    return [27, 15 + whole, 13, 15 + tenth, 6486, 29]


# Pictures of tiny models: 36 tokens of CLIP, 37 with CLS in a frame; 4 of Qwen for 16 x 16 pixels.
# A clip has four frames, one a second: two steps for Qwen.
GOLDEN: dict[tuple[str, Kind], list[int]] = {
    ("llava-1.5-7b-hf", "image"): [*VICUNA_USER, *[32000] * 36, *VICUNA_QUESTION],
    ("Video-LLaVA-7B-hf", "image"): [*VICUNA_HUMAN, *[32000] * 36, *VICUNA_QUESTION],
    ("Video-LLaVA-7B-hf", "video"): [*VICUNA_HUMAN, *[32001] * 4 * 37, *VICUNA_QUESTION],
    ("Qwen2.5-VL-7B-Instruct", "image"): [
        *(*QWEN_SYSTEM, *QWEN_USER, START, *[IMAGE] * 4, END, *QWEN_QUESTION)
    ],
    ("Qwen2.5-VL-7B-Instruct", "video"): [
        *(*QWEN_SYSTEM, *QWEN_USER, START, *[VIDEO] * 2 * 4, END, *QWEN_QUESTION)
    ],
    ("Qwen3-VL-2B-Instruct", "image"): [*QWEN_USER, START, *[IMAGE] * 4, END, *QWEN_QUESTION],
    ("Qwen3-VL-2B-Instruct", "video"): [
        *QWEN_USER,
        *(*seconds(0, 5), START, *[VIDEO] * 4, END),
        *(*seconds(2, 5), START, *[VIDEO] * 4, END),
        *QWEN_QUESTION,
    ],
}


def config_of(folder: Path, kind: Kind, **options: Any) -> EvalConfig:
    return with_model_defaults(EvalConfig.of(kind, model=str(folder), frames=4, **options))


@pytest.mark.parametrize(("name", "kind"), GOLDEN, ids=lambda part: part)
def test_prompt_has_the_ids_of_the_official_evaluation(
    name: str, kind: Kind, tmp_path: Path
) -> None:
    config = config_of(checkpoints.save(name, tmp_path), kind)
    processor: Any = job_processor(config)
    prompt = render_prompt(processor, config.conversation, [kind], QUESTION)
    frames = tiny.video(4, 16, 16)
    clip = videos.Clip(frames, [0, 1, 2, 3], 4, 1.0)
    pictures, clips = ([frames[0]], []) if kind == "image" else ([], [clip])
    inputs = encode(processor, prompt, pictures, clips)
    assert inputs["input_ids"][0].tolist() == GOLDEN[name, kind]


def test_llava_with_its_own_template_has_no_system_prompt(tmp_path: Path) -> None:
    folder = checkpoints.save("llava-1.5-7b-hf", tmp_path)
    processor: Any = job_processor(config_of(folder, "image", conversation="model"))
    ids = processor.tokenizer(render_prompt(processor, "model", ["image"], QUESTION))["input_ids"]
    assert ids == [1, 3148, 1001, 29901, 29871, 32000, *VICUNA_QUESTION]


@pytest.mark.parametrize(
    ("name", "kind", "options", "error"),
    [
        (
            *("Video-LLaVA-7B-hf", "video", {"conversation": "model"}),
            "has no chat template: choose another format, e.g. --conversation llava_v1",
        ),
        (
            *("Qwen3-VL-2B-Instruct", "video", {"conversation": "llava_v1"}),
            "marks a video by <|video_pad|>, but --conversation llava_v1 marks it by <video>: leave"
            " the flag out",
        ),
        (
            *("Qwen2.5-VL-7B-Instruct", "image", {"image_fit": "pad"}),
            "--image-fit pad: Qwen2VLImageProcessor cannot pad",
        ),
        ("llava-1.5-7b-hf", "video", {}, "does not take videos"),
        ("llava-1.5-7b-hf", "image", {"max_pixels": 9}, "leave out --min-pixels and --max-pixels"),
    ],
)
def test_inputs_that_a_model_cannot_take_are_refused_in_one_line(
    name: str, kind: Kind, options: dict[str, Any], error: str, tmp_path: Path
) -> None:
    config = config_of(checkpoints.save(name, tmp_path), kind, **options)
    with pytest.raises(ValueError, match=re.escape(error)) as caught:
        check_inputs(config)
    assert str(caught.value).startswith(config.model)
    assert "\n" not in str(caught.value)


def test_job_refuses_what_the_model_cannot_take_before_it_starts(tmp_path: Path) -> None:
    folder = checkpoints.save("Video-LLaVA-7B-hf", tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "a", "media": "none.mp4", "question": "What?"}))
    options = {"model": str(folder), "data": str(rows), "output": str(tmp_path / "out")}
    BenchmarkJob.of(EvalConfig.of("video", **options)).check()
    with pytest.raises(ValueError, match="has no chat template"):
        BenchmarkJob.of(EvalConfig.of("video", **options, conversation="model")).check()


def test_broken_chat_template_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = checkpoints.save("llava-1.5-7b-hf", tmp_path)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('only\ntext') }}")
    with pytest.raises(ValueError, match=r"cannot be asked about images .* only text") as caught:
        check_inputs(config_of(folder, "image", conversation="model"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", checkpoints.NAMES)
def test_real_checkpoints_pass_with_default_flags(name: str, tmp_path: Path) -> None:
    folder = checkpoints.save(name, tmp_path)
    check_inputs(config_of(folder, "image"))
    if name != "llava-1.5-7b-hf":
        check_inputs(config_of(folder, "video"))


def test_unreadable_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps([]))
    with pytest.raises(ValueError, match="try again, or give --conversation"):
        check_inputs(config_of(tmp_path, "image"))
