"""Methods that act after a vision tower share its outputs, and answer as they would alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from apet import Towers, attach
from apet.models import family_of
from apet.towers.shared_outputs import transformer_blocks
from tests.support import tiny
from tests.support.attached import (
    EVERY_FAMILY,
    Answer,
    batch_inputs,
    build_method,
    compressed,
    generate,
    model,
    uncompressed,
)

# They act after a tower, read its attention, or act in the decoder.
SHARING = ("vanilla", "apet", "visionzip", "fastv", "downsample")


def towers_of(family: str) -> list[nn.Module]:
    description = family_of(model(family))
    return [*(description.towers or [description.tower])]


def unremembered(family: str, name: str) -> Answer:
    """The answer with each medium of the batch encoded once, as with shared towers."""
    with attach(model(family), build_method(name, family), towers=Towers(remember=0)):
        return generate(model(family), batch_inputs(family))


@contextmanager
def count_block_calls(family: str) -> Iterator[Counter[int]]:
    """How often the attention of each tower's blocks is computed."""
    calls: Counter[int] = Counter()
    hooks = []
    for number, tower in enumerate(towers_of(family)):
        inner = next(transformer_blocks(tower)[0].children())
        hooks.append(inner.register_forward_hook(lambda *_, number=number: calls.update([number])))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@EVERY_FAMILY
def test_towers_run_once_and_answers_stay_the_same(family: str) -> None:
    names = [name for name in SHARING if (family, name) != ("llava_onevision", "visionzip")]
    want = {
        name: compressed(family, name)[0] if name != "vanilla" else uncompressed(family)
        for name in names
    }
    # Equal tiles of OneVision's batch are encoded once here, too, which changes the last bits.
    exact = {name: unremembered(family, name) for name in names}
    towers = Towers()
    with count_block_calls(family) as calls:
        with attach(model(family), build_method("vanilla", family)):
            generate(model(family), batch_inputs(family))
        once = Counter(calls)
        calls.clear()
        for name in names:
            with attach(model(family), build_method(name, family), towers=towers):
                answer = generate(model(family), batch_inputs(family))
            assert torch.equal(answer.ids, want[name].ids)
            assert torch.equal(answer.logits, exact[name].logits)
        assert once
        assert calls == once
    assert towers.spared_ms() > 0
    assert towers.spared_ms() == 0
    for tower in towers_of(family):
        assert all("forward" not in part.__dict__ for part in (tower, *transformer_blocks(tower)))


@EVERY_FAMILY
def test_other_media_are_encoded_again(family: str) -> None:
    towers = Towers()
    rows = [{"text": "What?", "images": [tiny.image(30, 20, seed)]} for seed in (1, 2)]
    for row in (rows[0], rows[1], rows[0]):
        with attach(model(family), build_method("vanilla", family), towers=towers):
            answer = generate(model(family), tiny.inputs(family, [row]))
        assert torch.equal(
            answer.logits, generate(model(family), tiny.inputs(family, [row])).logits
        )


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_method_inside_tower_does_not_share(family: str) -> None:
    want, _ = compressed(family, "tome")
    towers = Towers()
    for name in ("vanilla", "tome", "vanilla"):
        with attach(model(family), build_method(name, family), towers=towers):
            answer = generate(model(family), batch_inputs(family))
        assert torch.equal(
            answer.logits, want.logits if name == "tome" else uncompressed(family).logits
        )


@EVERY_FAMILY
def test_failed_call_is_not_stored(family: str) -> None:
    towers = Towers()

    def failing(*_: object) -> None:
        raise RuntimeError("broken")

    hooks = [
        transformer_blocks(tower)[-1].register_forward_pre_hook(failing)
        for tower in towers_of(family)
    ]
    with attach(model(family), build_method("vanilla", family), towers=towers):
        with pytest.raises(RuntimeError, match="broken"):
            generate(model(family), batch_inputs(family))
        for hook in hooks:
            hook.remove()
        answer = generate(model(family), batch_inputs(family))
    assert torch.equal(answer.logits, unremembered(family, "vanilla").logits)
