"""A model spread over devices by accelerate: its deeper layers are on disk until they run.

Accelerate does the same for several GPUs: a hook on every module moves its inputs and its weights
to its device, and outside of the module's call its weights are not there.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apet import Towers, attach, models
from apet.models import load
from tests.support import tiny
from tests.support.attached import batch_inputs, build_method, generate, model


def device_map(family: str) -> dict[str, str]:
    """The device of each module: the disk for the second half of the decoder."""
    core = model(family).model
    parts = {
        f"model.{name}": "cpu" for name, _ in core.named_children() if name != "language_model"
    }
    parts |= {
        f"model.language_model.{name}": "cpu" for name, _ in core.language_model.named_children()
    }
    del parts["model.language_model.layers"]
    deep = len(core.language_model.layers) // 2
    layers = {
        f"model.language_model.layers.{at}": "disk" if at >= deep else "cpu"
        for at in range(2 * deep)
    }
    return {**parts, **layers, "lm_head": "cpu"}


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_answers_equal_those_on_one_device(family: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    spread = tiny.model(family)
    accelerate.dispatch_model(
        spread, device_map(family), main_device="cpu", offload_dir=str(tmp_path)
    )
    assert any(weight.is_meta for weight in spread.parameters())
    towers = Towers()
    for name in ("vanilla", "apet", "fastv", "sparsevlm"):
        with attach(model(family), build_method(name, family)) as run:
            want, stats = generate(model(family), batch_inputs(family)), run.stats
        with attach(spread, build_method(name, family), towers=towers) as run:
            found = generate(spread, batch_inputs(family))
        assert torch.equal(found.logits, want.logits)
        assert [row.kept for row in run.stats] == [row.kept for row in stats]
        assert [keys.shape for keys in found.cache] == [keys.shape for keys in want.cache]


def test_load_spreads_model(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    found, _ = load(tiny.save("llava", tmp_path), device="auto")
    assert torch.equal(
        generate(found, batch_inputs("llava")).logits,
        generate(model("llava"), batch_inputs("llava")).logits,
    )


def test_missing_accelerate_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"several GPUs needs the package accelerate.*`pip install accelerate`"
    ):
        load(tmp_path, device="auto")
