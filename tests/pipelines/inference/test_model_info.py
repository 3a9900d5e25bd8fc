"""Properties of a model without its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from apet import METHODS, attach
from apet.models import FAMILIES
from pipelines.inference.model_info import model_info
from tests.support import tiny


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_model_info_needs_no_weights(family: str, tmp_path: Path) -> None:
    model = tiny.model(family)
    model.config.save_pretrained(tmp_path)  # config.json alone
    info = model_info(str(tmp_path), frames=4)
    assert info.model == attach(model, METHODS["vanilla"]())._model
    assert info.visual_tokens == {"llava": 4 * 36, "video_llava": 4 * 36}.get(family)
