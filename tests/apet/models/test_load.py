"""Loading a model from a folder or the hub; errors come before weights are read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from apet import ApET, attach
from apet.models import load, load_config
from tests.support import tiny
from tests.support.checkpoints import change_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save("llava", tmp_path / "llava")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_load_returns_model_and_processor_of_every_family(family: str, tmp_path: Path) -> None:
    model, processor = load(tiny.save(family, tmp_path))
    assert type(model) is type(tiny.model(family))
    assert type(processor) is type(tiny.processor(family))
    row = {"text": "What is this?", "images": [tiny.image(30, 20)]}
    inputs = processor(text=tiny.prompt(processor, row), images=row["images"], return_tensors="pt")
    want = tiny.model(family)
    with torch.no_grad(), attach(model, ApET(budget="40%")), attach(want, ApET(budget="40%")):
        assert torch.equal(model(**inputs).logits, want(**tiny.inputs(family, [row])).logits)


def test_dtype_and_kernel_are_as_requested(folder: Path) -> None:
    model, _ = load(str(folder), dtype=torch.bfloat16, attn="eager", device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert load(folder)[0].dtype == torch.float32  # as it was saved
    assert load(folder)[0].model.language_model.config._attn_implementation == "packed"


def test_processor_pads_on_the_left_and_counts_placeholders(folder: Path) -> None:
    for name in ("tokenizer_config.json", "processor_config.json"):
        values = json.loads((folder / name).read_text())
        values["padding_side"] = "right"
        values.pop("pad_token", None)
        if name.startswith("processor"):  # as checkpoints were before processors counted tokens
            del (
                values["patch_size"],
                values["vision_feature_select_strategy"],
                values["num_additional_image_tokens"],
            )
        (folder / name).write_text(json.dumps(values))
    _, processor = load(folder)
    image = tiny.image(30, 20)
    inputs = processor(
        text=["<image> a", "<image> longer"],
        images=[image, image],
        padding=True,
        return_tensors="pt",
    )
    assert inputs["attention_mask"][0, 0] == 0
    assert (inputs["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [36, 36]


@pytest.mark.parametrize("kind", ["bert", "our_own"])
def test_unknown_model_type_is_refused(folder: Path, kind: str) -> None:
    (folder / "config.json").write_text(
        json.dumps({"model_type": kind, "auto_map": {"AutoConfig": "code.Config"}})
    )
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ValueError,
        match=f"'{kind}' are not supported; these are: llava, llava_next, llava_onevision",
    ):
        load(folder)


def test_missing_model_is_refused(tmp_path: Path) -> None:
    for name in ("nobody/nothing", tmp_path):
        with pytest.raises(
            FileNotFoundError,
            match=rf"^no model {name}: give a folder .* or a name on the hub such as",
        ):
            load(name)


def test_unsupported_vision_tower_is_refused_from_the_config(folder: Path) -> None:
    change_json(folder / "config.json", vision_config={"model_type": "pixtral"})
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    for read in (load, load_config):
        with pytest.raises(ValueError, match=r"^not a supported vision tower: 'pixtral'; expected"):
            read(folder)


@pytest.mark.parametrize(
    ("name", "values", "converted"),
    [
        ("llava-v1.5-7b", {"mm_vision_tower": "openai/clip"}, "llava-hf/llava-1.5-7b-hf"),
        ("llava-v1.6-34b", {"mm_vision_tower": "x"}, "llava-hf/llava-v1.6-34b-hf"),
        ("llava-onevision-x", {"mm_vision_tower": "x"}, "llava-hf/llava-onevision-x-hf"),
        ("Video", {"mm_video_tower": "x"}, "LanguageBind/Video-LLaVA-7B-hf"),
        ("my-model", {"mm_vision_tower": "x"}, "its converted form, such as llava-hf/"),
    ],
)
def test_original_format_is_refused_with_the_converted_name(
    name: str, values: dict[str, str], converted: str, tmp_path: Path
) -> None:
    """Their configs claim to be transformers' LLaVA."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llava", **values}))
    with pytest.raises(ValueError, match=f"{name} is in the format of LLaVA's own .* {converted}"):
        load_config(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "converted"),
    [
        ("liuhaotian/llava-v1.5-13b", "llava-hf/llava-1.5-13b-hf"),
        ("LanguageBind/Video-LLaVA-7B", "LanguageBind/Video-LLaVA-7B-hf"),
    ],
)
def test_original_name_is_refused_without_the_hub(name: str, converted: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is in the format .* give {converted}$"):
        load_config(name)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load(folder)


@pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed"
)
def test_missing_flash_attention_is_explained(tmp_path: Path) -> None:
    with pytest.raises(
        ImportError,
        match=r"flash-attn, which is not installed.*pip install -e '\.\[gpu\]'.*attn='packed'",
    ):
        load(tmp_path / "no weights are looked for", attn="flash_attention_2")
