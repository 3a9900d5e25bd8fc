"""Methods that act after a vision tower share what it made of the same media, and answer as they would alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from apet import Towers, attach
from apet.models import family_of
from apet.towers.shared_outputs import blocks_of
from tests.support import tiny
from tests.support.attached import EITHER, batch, compressed, generate, make, model, plain

SHARING = (
    "vanilla",
    "apet",
    "visionzip",
    "fastv",
    "downsample",
)  # behind a tower, reading it, in the decoder


def towers_of(family: str) -> list[nn.Module]:
    known = family_of(model(family))
    return [*(known.towers or [known.tower])]


@contextmanager
def counted(family: str) -> Iterator[Counter[int]]:
    """How often the attention of each tower's blocks is computed."""
    calls: Counter[int] = Counter()
    hooks = []
    for number, tower in enumerate(towers_of(family)):
        inner = next(blocks_of(tower)[0].children())
        hooks.append(inner.register_forward_hook(lambda *_, number=number: calls.update([number])))
    yield calls
    for hook in hooks:
        hook.remove()


@EITHER
def test_towers_run_once_and_answers_are_what_they_were(family: str) -> None:
    names = [name for name in SHARING if (family, name) != ("llava_onevision", "visionzip")]
    want = {
        name: compressed(family, name)[0] if name != "vanilla" else plain(family) for name in names
    }
    towers = Towers()
    with counted(family) as calls:
        with attach(model(family), make("vanilla", family)):
            generate(model(family), batch(family))
        once = Counter(calls)
        calls.clear()
        for name in names:
            with attach(model(family), make(name, family), towers=towers):
                answer = generate(model(family), batch(family))
            assert torch.equal(answer.ids, want[name].ids)
            assert torch.equal(answer.logits, want[name].logits)
        assert once
        assert calls == once
    assert towers.spared_ms() > 0
    assert towers.spared_ms() == 0
    for tower in towers_of(family):
        assert all("forward" not in block.__dict__ for block in blocks_of(tower))


@EITHER
def test_other_media_are_not_taken_for_the_same(family: str) -> None:
    towers = Towers()
    rows = [{"text": "What?", "images": [tiny.image(30, 20, seed)]} for seed in (1, 2)]
    for row in (rows[0], rows[1], rows[0]):
        with attach(model(family), make("vanilla", family), towers=towers):
            answer = generate(model(family), tiny.inputs(family, [row]))
        assert torch.equal(
            answer.logits, generate(model(family), tiny.inputs(family, [row])).logits
        )


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_who_drops_tokens_inside_a_tower_takes_no_part(family: str) -> None:
    want, _ = compressed(family, "tome")
    towers = Towers()
    for name in ("vanilla", "tome", "vanilla"):
        with attach(model(family), make(name, family), towers=towers):
            answer = generate(model(family), batch(family))
        assert torch.equal(answer.logits, want.logits if name == "tome" else plain(family).logits)


@EITHER
def test_a_call_that_failed_is_not_remembered(family: str) -> None:
    towers = Towers()

    def failing(*_: object) -> None:
        raise RuntimeError("broken")

    hooks = [blocks_of(tower)[-1].register_forward_pre_hook(failing) for tower in towers_of(family)]
    with attach(model(family), make("vanilla", family), towers=towers):
        with pytest.raises(RuntimeError, match="broken"):
            generate(model(family), batch(family))
        for hook in hooks:
            hook.remove()
        answer = generate(model(family), batch(family))
    assert torch.equal(answer.logits, plain(family).logits)
