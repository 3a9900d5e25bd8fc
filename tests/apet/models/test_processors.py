"""Processors of loaded models: tokenizers of files, padding, fixed pixel limits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2VLVideoProcessor

from apet.models import load_processor
from apet.models.processors import configure_processor, pad_to_square
from tests.support import checkpoints, tiny


@pytest.mark.parametrize("family", sorted(set(tiny.FAMILIES) - {"llava"}))
def test_padding_of_other_families_is_refused(family: str) -> None:
    with pytest.raises(ValueError, match=r"ImageProcessor\w* cannot pad: padding is for LLaVA"):
        pad_to_square(tiny.processor(family))


def test_pixels_of_a_video_do_not_depend_on_the_default_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.save("qwen2_5_vl", tmp_path)
    file = folder / "processor_config.json"
    checkpoints.change_json(file, video_processor={"video_processor_type": "Qwen2VLVideoProcessor"})
    frames = tiny.video(40, 640, 480)

    def shape() -> list[int]:
        videos: Any = load_processor(folder).video_processor  # type: ignore[attr-defined]
        videos.max_video_tokens = 2000  # so that transformers' limit would apply to this clip
        return list(videos(frames, return_tensors="pt")["video_grid_thw"][0])

    with caplog.at_level(logging.WARNING, "transformers"):
        before = shape()
    assert "cap_pixels_per_frame" not in caplog.text
    monkeypatch.setattr(Qwen2VLVideoProcessor, "cap_pixels_per_frame", True)
    assert shape() == before


def test_placeholders_are_set_for_llava_alone(tmp_path: Path) -> None:
    for family, patch_size in (("llava", tiny.PATCH), ("qwen2_5_vl", 99)):
        processor: Any = tiny.processor(family)
        processor.patch_size = 99
        configure_processor(processor, tiny.config(family), tmp_path, None)
        assert processor.patch_size == patch_size


def test_tokenizer_of_video_llava_is_that_of_its_file(tmp_path: Path) -> None:
    folder = checkpoints.save("Video-LLaVA-7B-hf", tmp_path)
    processor: Any = load_processor(folder)
    ids = [1, 3148, 1001, 29901, 29871, 32001, 29871, 13, 5618, 29973]
    assert processor.tokenizer("USER: <video>\nWhat?")["input_ids"] == ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "USER:  \nWhat?"
    assert processor.tokenizer.padding_side == "left"
