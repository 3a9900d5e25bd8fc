"""Defaults that depend on the model, from its config.json alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.eval_config import EvalConfig
from pipelines.config.model_defaults import inputs_version, with_model_defaults
from pipelines.config.paths import DEMO, resolve_paths
from pipelines.data.rows import Kind
from tests.support import checkpoints

VICUNA = {"text_config": {"model_type": "llama", "vocab_size": 32064}, "image_token_index": 32000}
CLIP = {"vision_config": {"model_type": "clip_vision_model"}}
SIGLIP = {"vision_config": {"model_type": "siglip_vision_model"}}


def defaults(folder: Path, kind: Kind = "image") -> tuple[str | None, str | None, int]:
    config = with_model_defaults(EvalConfig.of(kind, model=str(folder)))
    return config.conversation, config.image_fit, inputs_version(config)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model_type": "llava", **VICUNA, **CLIP}, ("vicuna_v1", "pad", 1)),
        ({"model_type": "llava", **VICUNA, **SIGLIP}, ("model", "model", 1)),
        ({"model_type": "llava", **VICUNA, **CLIP, "image_token_index": 4}, ("model", "model", 1)),
        (  # BakLLaVA: Mistral has as many tokens as Llama
            {"model_type": "llava", **VICUNA, **CLIP, "text_config": {"model_type": "mistral"}},
            ("model", "model", 1),
        ),
        ({"model_type": "llava_next", **VICUNA, **CLIP}, ("model", "model", 1)),
        ({"model_type": "video_llava", **VICUNA, **CLIP}, ("llava_v1", "model", 2)),
        ({"model_type": "qwen2_5_vl"}, ("model", "model", 1)),
        ({"model_type": "qwen3_vl"}, ("model", "model", 1)),
    ],
)
def test_defaults_are_those_of_the_official_evaluation(
    values: dict[str, Any], expected: tuple[str, str, int], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert defaults(tmp_path) == expected


@pytest.mark.parametrize("name", checkpoints.NAMES)
def test_defaults_are_the_same_when_transformers_has_saved_the_config(
    name: str, tmp_path: Path
) -> None:
    expected = {
        "llava-1.5-7b-hf": ("vicuna_v1", "pad", 1),
        "Video-LLaVA-7B-hf": ("llava_v1", "model", 2),
    }
    folder = checkpoints.save(name, tmp_path)
    assert defaults(folder) == expected.get(name, ("model", "model", 1))


def test_inputs_of_qwen3_vl_videos_have_changed(tmp_path: Path) -> None:
    folder = checkpoints.save("Qwen3-VL-2B-Instruct", tmp_path)
    assert defaults(folder, "video") == ("model", None, 2)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_demo_models_keep_their_template_and_the_identity_of_0_1_0(kind: Kind) -> None:
    config = resolve_paths(EvalConfig.of(kind))
    assert Path(config.model).parent == DEMO
    resolved = with_model_defaults(config)
    identity = resolved.identity(config.method_specs[1], "m", "f", "1", inputs_version(resolved))
    assert {"image_fit", "inputs"}.isdisjoint(identity)
    assert identity["conversation"] == "model"


def test_flags_override_the_defaults(tmp_path: Path) -> None:
    folder = checkpoints.save("llava-1.5-7b-hf", tmp_path)
    old = EvalConfig.of("image", model=str(folder), image_fit="model", conversation="model")
    assert with_model_defaults(old) == old
    assert "image_fit" not in old.identity(old.method_specs[1], "m", "f", "1")
    new = with_model_defaults(replace(old, image_fit=None))
    assert new.identity(old.method_specs[1], "m", "f", "1")["image_fit"] == "pad"


def test_model_without_a_config_has_no_defaults(tmp_path: Path) -> None:
    config = EvalConfig.of("image", model=str(tmp_path))
    assert with_model_defaults(config) == config
