"""Rows preprocessed one by one and collated equal the processor's own batch of all of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from pipelines.config.eval_config import EvalConfig
from pipelines.data.manifest import Manifest
from pipelines.data.media import videos
from pipelines.data.rows import Kind, Medium, Row
from pipelines.inference.conversations import render_prompt
from pipelines.inference.encoded_prompt import EncodedPrompt
from pipelines.inference.engines.generation import Sampler, answer_length, eos_token_ids
from pipelines.inference.prepared_row import PreparedRow
from pipelines.inference.preprocess import (
    PIXELS,
    Collator,
    Preprocessor,
    encode,
    job_processor,
    warm_up_inputs,
)
from tests.support import tiny

CLIP = [{"fps": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}]
CASES = [(family, "images") for family in tiny.FAMILIES] + [
    (family, "videos") for family in tiny.VIDEO_FAMILIES
]

SIZES = [
    *((640, 427), (427, 640), (500, 500), (336, 336), (335, 336), (24, 24), (1, 1), (2, 1), (1, 9)),
    *((1024, 30), (30, 1024), (337, 336), (100, 101), (33, 200), (775, 580), (581, 320)),
    *((243, 417), (92, 226), (132, 157), (851, 851)),
]


def expand2square(picture: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """LLaVA's function of this name, in other words."""
    width, height = picture.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), color)
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


@pytest.fixture
def make_config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def config(family: str, kind: Kind = "image", **options: Any) -> EvalConfig:
        folder = tmp_path_factory.mktemp(family)
        tiny.save(family, folder)
        options = {"frames": 4, "max_new_tokens": 8, **options}
        return EvalConfig.of(kind, model=str(folder), data="rows.jsonl", **options)

    return config


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_padded_pixels_are_those_of_llavas_scripts(size: tuple[int, int], make_config: Any) -> None:
    """To the last bit; the official evaluation reads pictures as Pillow does."""
    processor: Any = job_processor(make_config("llava", image_fit="pad"))
    tile, mean = {"height": tiny.TILE, "width": tiny.TILE}, processor.image_processor.image_mean
    assert dict(processor.image_processor.crop_size) == tile
    picture = tiny.image(*size)
    raw = encode(processor, "<image>", [np.array(picture)], [])
    square = expand2square(picture, tuple(int(share * 255) for share in mean))
    resized = square.resize((tiny.TILE, tiny.TILE), Image.Resampling.BICUBIC)
    official = np.array(resized).transpose(2, 0, 1)
    assert raw["pixel_values"].dtype == torch.uint8
    np.testing.assert_array_equal(raw["pixel_values"][0].numpy(), official)
    normalised = Collator(processor).normalise(raw)["pixel_values"][0].numpy()
    deviation = np.reshape(processor.image_processor.image_std, (3, 1, 1))
    expected = (official / 255 - np.reshape(mean, (3, 1, 1))) / deviation
    np.testing.assert_allclose(normalised, expected, atol=1e-5)


@pytest.mark.parametrize("height", [1, 3])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_flat_picture_is_not_taken_for_channels(family: str, height: int) -> None:
    """Pictures one or three pixels high: as if their rows were twice as many, all alike."""
    processor: Any = tiny.processor(family)
    prompt = render_prompt(processor, "model", ["image"], "What?")
    color = np.array([200, 100, 0], np.uint8)
    flat = np.broadcast_to(color, (height, 40, 3)).copy()
    inputs = encode(processor, prompt, [flat], [])
    [name] = PIXELS & inputs.keys()
    pixels = inputs[name]
    means = (
        pixels.unflatten(-1, (3, -1)).float().mean(dim=(0, 2))
        if pixels.ndim == 2
        else pixels.float().transpose(-3, 0).flatten(1).amax(dim=1)
    )
    assert means.tolist() == color.tolist()


@pytest.mark.filterwarnings("ignore:.*legacy.*")
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_collated_rows_equal_the_processors_own_batch(family: str, kind: str) -> None:
    shown = (
        [tiny.image(37, 29), tiny.image(60, 20, 1)]
        if kind == "images"
        else [tiny.video(4, 30, 26), tiny.video(4, 40, 26, 1)]
    )
    rows: list[dict[str, Any]] = [
        {"text": "What?", kind: [shown[0]]},
        {"text": "Which one is it?", kind: [shown[1]]},
    ]
    rows.append({"text": "nothing to see, and more words than the others have"})
    build, parts = tiny.processor(family), []
    for row in rows:
        media = {kind: row[kind]} if kind in row else {}
        if kind == "videos" and media:
            media |= {"video_metadata": CLIP, "do_sample_frames": False}
        made = build(
            text=[tiny.prompt(build, row)],
            **media,
            return_tensors="pt",
            do_rescale=False,
            do_normalize=False,
        )
        assert all(
            value.dtype in (torch.uint8, torch.int64, torch.float32) for value in made.values()
        )
        parts.append(PreparedRow.of(0, Row("row"), (), EncodedPrompt.of("", made, ())).tensors())
    collate = Collator(build)
    raw = collate(parts)
    pixels = [name for name in raw if name.startswith("pixel_values")]
    assert all(raw[name].dtype == torch.uint8 for name in pixels)
    ours, theirs = collate.normalise(raw), tiny.inputs(family, rows)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if (
            name in pixels and value.ndim == 5 and kind == "images"
        ):  # padded crops are never looked at
            for row, part in enumerate(part for part in parts if name in part):
                used = part[name].shape[1]
                torch.testing.assert_close(
                    ours[name][row, :used], value[row, :used], rtol=0, atol=1e-6
                )
        else:
            torch.testing.assert_close(
                ours[name], value, rtol=0, atol=1e-6 if name in pixels else 0
            )


def folder_of(tmp_path: Path, *rows: dict[str, Any]) -> Manifest:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Manifest.of(str(tmp_path / "rows.jsonl"))


def test_preprocessor_reads_a_row_from_its_files(make_config: Any, tmp_path: Path) -> None:
    tiny.image(40, 30).save(tmp_path / "a.png")
    manifest = folder_of(
        tmp_path, {"id": "1", "media": "a.png", "question": "What?", "options": ["cat", "dog"]}
    )
    [row] = manifest.read(manifest.index(None))
    prepare = Preprocessor(make_config("llava"))
    prompt, inputs = prepare(row, manifest)
    assert prompt.count("<image>") == 1
    assert "A. cat\nB. dog" in prompt
    assert inputs["pixel_values"].dtype == torch.uint8
    vicuna = Preprocessor(make_config("llava", conversation="vicuna_v1"))
    assert vicuna.prompt(row).startswith("A chat between a curious user")
    assert vicuna.prompt(row).endswith("ASSISTANT:")


def test_conversation_with_foreign_placeholders_is_refused(make_config: Any) -> None:
    with pytest.raises(ValueError, match=r"image_pad.*: leave the flag out"):
        Preprocessor(make_config("qwen2_5_vl", conversation="vicuna_v1"))


@pytest.mark.parametrize(
    ("question", "max_new_tokens", "error"),
    [
        ("  ", 8, "the question is empty"),
        ("word " * 2000, 8, "the model reads at most 4096"),
        ("What?", 4096, "at most"),
    ],
)
def test_empty_and_too_long_rows_are_refused(
    make_config: Any, tmp_path: Path, question: str, max_new_tokens: int, error: str
) -> None:
    tiny.image(40, 30).save(tmp_path / "a.png")
    row = Row("1", (Medium("image", "a.png"),), question)
    with pytest.raises(ValueError, match=error):
        Preprocessor(make_config("llava", max_new_tokens=max_new_tokens))(
            row, folder_of(tmp_path, {"id": "1", "media": "a.png", "question": "?"})
        )


def test_pixel_limits_need_dynamic_resolution(make_config: Any, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(tmp_path / "a.png")
    manifest = folder_of(tmp_path, {"id": "1", "media": "a.png", "question": "?"})
    [row] = manifest.read(manifest.index(None))
    few = Preprocessor(make_config("qwen2_5_vl", max_pixels=3200))(row, manifest)[1]
    more = Preprocessor(make_config("qwen2_5_vl", max_pixels=12800))(row, manifest)[1]
    assert len(few["pixel_values"]) * 16 <= 3200 < len(more["pixel_values"]) * 16 <= 12800
    with pytest.raises(ValueError, match="leave out --min-pixels and --max-pixels"):
        Preprocessor(make_config("llava", max_pixels=100))


def test_preprocessor_samples_frames_of_a_video(make_config: Any, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=10, width=32, height=32)
        stream.pix_fmt = "yuv420p"
        for frame in tiny.video(20, 32, 32):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        out.mux(stream.encode(None))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "1", "media": "a.mp4", "question": "?"}))
    manifest = Manifest.of(str(tmp_path / "rows.jsonl"), kind="video")
    [row] = manifest.read(manifest.index(None))
    inputs = Preprocessor(make_config("video_llava"))(row, manifest)[1]
    assert inputs["pixel_values_videos"].shape[:2] == (1, 4)
    assert inputs["pixel_values_videos"].dtype == torch.uint8


@pytest.mark.parametrize("written", [False, True], ids=["", "template writes it"])
@pytest.mark.parametrize("added", [False, True], ids=["", "tokenizer adds it"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_prompt_has_one_bos_token(family: str, added: bool, written: bool) -> None:
    """The template (some checkpoints), the tokenizer (LLaVA-1.5) or both may write it."""
    processor = tiny.processor(family)
    processor.tokenizer = tokenizer = tiny.tokenizer(begin=added)
    processor.chat_template = (tokenizer.bos_token if written else "") + processor.chat_template
    picture = tiny.image(40, 30)
    inputs = encode(
        processor, render_prompt(processor, "model", ["image"], "What?"), [np.array(picture)], []
    )
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(tokenizer.bos_token_id) == (added or written)
    said = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}],
        }
    ]
    theirs = processor.apply_chat_template(
        said, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert ids == theirs["input_ids"][0].tolist()
    vicuna = encode(processor, render_prompt(processor, "vicuna_v1", [], "What?"), [], [])
    assert vicuna["input_ids"][0].tolist().count(tokenizer.bos_token_id) == added


@pytest.mark.parametrize("family", tiny.VIDEO_FAMILIES)
def test_single_frame_is_a_valid_video(family: str) -> None:
    processor, model = tiny.processor(family), tiny.model(family)
    prompt = render_prompt(processor, "model", ["video"], "What?")
    for fps in (2.0, 0.0):  # 0: not stated
        clip = videos.Clip(tiny.video(1, 40, 32), [0], 1, fps)
        inputs = encode(processor, prompt, [], [clip])
        with torch.inference_mode():
            assert len(model(**Collator(processor).normalise(inputs)).logits) == 1
    if family != "qwen3_vl":  # Qwen3-VL refuses it
        theirs = processor(
            text=[prompt],
            videos=[tiny.video(1, 40, 32)],
            video_metadata=[{"fps": 24.0, "total_num_frames": 1, "frames_indices": [0]}],
            do_sample_frames=False,
            return_tensors="pt",
            do_rescale=False,
            do_normalize=False,
        )
        assert theirs.keys() == inputs.keys()
        assert all(torch.equal(theirs[name], value) for name, value in inputs.items())


WARM = [(family, "image") for family in tiny.FAMILIES] + [
    (family, "video") for family in tiny.VIDEO_FAMILIES
]


@pytest.mark.parametrize(("family", "kind"), WARM)
def test_warm_up_inputs_fit_the_model(make_config: Any, family: str, kind: Kind) -> None:
    made = make_config(family, kind, frames=3)
    processor = job_processor(made)
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    transformers_logging.warning_once.cache_clear()
    logging.getLogger("transformers").addHandler(handler)
    try:
        inputs = warm_up_inputs(processor, made)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    if kind == "video":
        assert [record.getMessage() for record in records] == []
    assert any(name.startswith("pixel_values") for name in inputs)
    with torch.inference_mode():
        assert (
            len(tiny.model(family)(**Collator(tiny.processor(family)).normalise(inputs)).logits)
            == 1
        )


def test_answer_length_counts_up_to_any_eos_token() -> None:
    model, processor = tiny.model("qwen2_5_vl"), tiny.processor("qwen2_5_vl")
    words: PreTrainedTokenizerFast = processor.tokenizer
    end, other = words.eos_token_id, words.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.eos_token_id = [other, end]
    ends = eos_token_ids(model, processor)
    assert ends == {other, end}
    assert [
        answer_length(answer, ends)
        for answer in ([1, other, end, end], [1, 2, end], [other], [1, 2, 3], [])
    ] == [*(2, 3, 1, 3, 0)]
    assert answer_length([words.pad_token_id, end], ends) == 2  # part of the answer, not padding
    model.generation_config.eos_token_id = end
    assert eos_token_ids(model, processor) == {end}
    model.generation_config.eos_token_id = None
    assert eos_token_ids(model, processor) == {end}


def test_sampler_is_independent_of_the_batch_and_follows_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).log_softmax(0)
    alone = [
        int(Sampler(1.0, [seed])(torch.empty(1, 0), logits[None]).argmax()) for seed in range(4000)
    ]
    batch = (
        Sampler(1.0, list(range(4000)))(torch.empty(4000, 0), logits.expand(4000, 4))
        .argmax(1)
        .tolist()
    )
    assert alone == batch
    shares = torch.bincount(torch.tensor(alone), minlength=4) / 4000
    torch.testing.assert_close(shares, logits.exp(), rtol=0, atol=0.03)
    cold = Sampler(1e-6, [1])(torch.empty(1, 0), logits[None])
    assert int(cold.argmax()) == 0
