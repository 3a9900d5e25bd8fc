"""Loading a model from a folder or the hub; errors come before weights are read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from apet import ApET, attach
from apet.models import load
from tests.support import tiny


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
