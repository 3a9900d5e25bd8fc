"""Positions and media worked out on the host are those that the model would find."""

from __future__ import annotations

import pytest
import torch

from apet import Decode, attach
from apet.methods.apet import ApET
from apet.models import family_of
from apet.models.llava import Llava
from apet.schedule import Schedule
from apet.transformers_api import VERSION
from tests.support import tiny
from tests.support.attached import (
    batch_inputs,
    build_method,
    compressed,
    generate,
    kept_indices,
    model,
)

TOKENS = 4


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_positions_are_those_that_generate_computes(family: str) -> None:
    core, inputs = model(family), dict(batch_inputs(family))
    positions = family_of(core).positions(inputs)
    want = core._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
    assert positions is not None
    assert torch.equal(positions, want), f"mend rotary_positions for transformers {VERSION}"
    with attach(core, build_method("apet", family)):
        answers = Decode(core).answer({**inputs, "position_ids": positions}, TOKENS)
        assert torch.equal(answers, Decode(core).answer(inputs, TOKENS))


def test_families_without_positions_of_their_own_leave_them_to_the_model() -> None:
    text = {"input_ids": torch.zeros(1, 3), "attention_mask": torch.ones(1, 3)}
    assert family_of(model("llava")).positions(dict(batch_inputs("llava"))) is None
    assert family_of(model("qwen2_5_vl")).positions(text) is None


def test_labels_of_llava_from_ids_are_those_that_features_carry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    want, want_stats = compressed("llava", "apet")
    asked: list[int] = []

    def unknown(self: Llava, ids: torch.Tensor, count: int) -> None:
        asked.append(count)

    monkeypatch.setattr(Llava, "labels", unknown)
    with attach(model("llava"), build_method("apet", "llava"), keep_index=True) as run:
        answer = generate(model("llava"), batch_inputs("llava"))
        stats = run.stats
    assert asked == [3 * 36]
    assert torch.equal(answer.ids, want.ids)
    assert list(map(kept_indices, stats)) == list(map(kept_indices, want_stats))


def test_plan_is_computed_once_for_media_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plan = ApET.plan

    def counting(self: ApET, visual_tokens: int, layout: object) -> Schedule:
        sizes.append(visual_tokens)
        return plan(self, visual_tokens, layout)

    monkeypatch.setattr(ApET, "plan", counting)
    rows = [{"text": "x", "images": [tiny.image(30, 20, seed)]} for seed in range(3)]
    with torch.no_grad(), attach(model("llava"), ApET(budget=17, basis=3)):
        model("llava")(**tiny.inputs("llava", rows))
        model("llava")(**tiny.inputs("llava", rows))
    assert sizes == [36]
