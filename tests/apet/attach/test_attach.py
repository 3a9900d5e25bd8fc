"""Attaching a method to a model: what it must not change, and what it must, for every family and method.

Further guarantees: `tests/apet/attach/tests/pipelines/inference/test_batching.py`, `tests/apet/attach/test_attention_kernels.py`, `tests/apet/attach/test_sites.py` and
`tests/apet/attach/test_generate.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from apet import ApET, attach
from apet.methods.base import Kept
from apet.schedule import Schedule, share
from apet.view import View
from tests.support import tiny
from tests.support.attached import (
    CLOSE,
    EITHER,
    EVERY,
    FEW,
    REFUSED,
    SIZES,
    STEPS,
    VISUAL,
    alone,
    batch,
    compressed,
    generate,
    index,
    last_logits,
    make,
    model,
    plain,
    prompt,
    repeatable,
    repeated,
    rows,
)

# ---- a full budget changes nothing


@EVERY
def test_full_budget_is_the_unmodified_model(family: str, name: str) -> None:
    call = generate if name in FEW else prompt
    with attach(model(family), make(name, family, "100%")) as run:
        answer = call(model(family), batch(family))
    assert torch.equal(answer.logits, plain(family, call).logits)
    assert torch.equal(answer.ids, plain(family, call).ids)
    assert [stats.visual_tokens for stats in run.stats] == VISUAL[family]
    assert [stats.budget for stats in run.stats] == VISUAL[family]
    assert all(set(stats.kept.values()) <= {stats.visual_tokens} for stats in run.stats)


@EITHER
def test_full_budget_and_sampling(family: str) -> None:
    sample = {"do_sample": True, "temperature": 1.5, "num_return_sequences": 2}
    inputs, answers = repeated(family), []
    for method in (make("vanilla", family), make("apet", family, "100%")):
        with attach(model(family), method):
            torch.manual_seed(0)
            answers.append(generate(model(family), inputs, **sample).ids)
    torch.manual_seed(0)
    want = generate(model(family), inputs, **sample).ids
    assert torch.equal(answers[0], want)
    assert torch.equal(answers[1], want)
    assert len(set(map(tuple, want.tolist()))) > len(repeatable(family))  # it did sample


@EITHER
def test_full_budget_in_bfloat16(family: str) -> None:
    half, inputs = model(family, dtype=torch.bfloat16), alone(family, len(rows(family)) - 1)
    want = generate(half, inputs)
    with attach(half, make("apet", family, "100%")):
        answer = generate(half, inputs)
    assert torch.equal(answer.logits, want.logits)
    assert torch.equal(answer.ids, want.ids)


# ---- the cache is as short as the schedule says


@EVERY
def test_cache_lengths(family: str, name: str) -> None:
    for row in range(len(rows(family))):
        answer, (stats,) = compressed(family, name, row)
        text = alone(family, row)["input_ids"].shape[1] - VISUAL[family][row]
        there, seen = stats.visual_tokens, []
        there = stats.kept.get("encoder", there)
        for layer, keys in enumerate(answer.cache):
            there = stats.kept.get(str(layer), there)
            assert keys.shape[2] == text + there + answer.ids.shape[1] - 1
            seen.append(there)
        assert stats.budget == pytest.approx(sum(seen) / len(seen))
        assert list(stats.kept.values()) == sorted(stats.kept.values(), reverse=True)
    answer, stats = compressed(family, name)
    for layer, keys in enumerate(answer.cache):
        alone_ = [compressed(family, name, row)[0] for row in range(len(stats))]
        assert keys.shape[2] == max(
            one.cache[layer].shape[2] + STEPS - one.ids.shape[1] for one in alone_
        )
    assert stats[0].cache_bytes == 2 * sum(keys.nbytes for keys in answer.cache) // len(stats)


@EITHER
@pytest.mark.parametrize("budget", [6, "40%"])
def test_apet_keeps_what_the_paper_says(family: str, budget: int | str) -> None:
    if budget == 6 and family in ("llava_next", "video_llava", "llava_onevision"):
        budget = 16  # more crops or frames than that
    only = family == "video_llava"
    with attach(model(family), make("apet", family, budget), keep_index=True) as run:
        last_logits(model(family), batch(family))
    for stats, media in zip(run.stats, SIZES[family], strict=True):
        schedules = [
            Schedule.from_budget(budget, visual_tokens=sum(sizes), layers=6, encoder_only=only)
            for sizes in media
        ]
        assert stats.kept.get("encoder", 0) == sum(
            schedule.tokens_at(0, "encoder") for schedule in schedules
        )
        assert stats.kept.get("3", stats.kept.get("encoder", 0)) == sum(
            one.tokens_at(3) for one in schedules
        )
        assert stats.index is not None
        starts = [0]
        for sizes, schedule in zip(media, schedules, strict=True):
            parts = share(schedule.tokens_at(0, "encoder"), sizes)
            for size, part in zip(sizes, parts, strict=True):
                inside = (stats.index["encoder"] >= starts[-1]) & (
                    stats.index["encoder"] < starts[-1] + size
                )
                assert int(inside.sum()) == part
                starts.append(starts[-1] + size)


# ---- nothing is left behind


def hooks(model: nn.Module) -> list[Any]:
    """All modules, what they hold, and their hooks of every kind."""
    found = []
    for name, module in model.named_modules():
        held = [
            (key, list(value.items()))
            for key, value in vars(module).items()
            if "hook" in key and isinstance(value, dict)
        ]
        found.append((name, type(module), sorted(vars(module)), held))
    return found


class Broken(ApET):
    def select(self, view: View) -> Kept:
        raise RuntimeError("broken method")


def failing(*args: object) -> None:
    raise RuntimeError("broken module")


@EITHER
def test_detached_and_the_same_as_before(family: str) -> None:
    want = plain(family)
    before = hooks(model(family))
    with attach(model(family), make("apet", family)):
        assert hooks(model(family)) != before
        generate(model(family), batch(family))
    assert hooks(model(family)) == before
    with (
        pytest.raises(RuntimeError, match="broken method"),
        attach(model(family), Broken(budget="40%")),
    ):
        generate(model(family), batch(family))
    assert hooks(model(family)) == before
    answer = generate(model(family), batch(family))
    assert torch.equal(answer.logits, want.logits)
    assert torch.equal(answer.ids, want.ids)


@EITHER
@pytest.mark.parametrize("place", ["tower", "core", "layer"])
def test_goes_on_after_an_error(family: str, place: str) -> None:
    want, _ = compressed(family, "apet")
    core = model(family).model
    tower = {"video_llava": "image_tower", "qwen2_5_vl": "visual", "qwen3_vl": "visual"}.get(
        family, "vision_tower"
    )
    module = {"tower": getattr(core, tower), "core": core, "layer": core.language_model.layers[4]}[
        place
    ]
    with attach(model(family), make("apet", family), keep_index=True) as run:
        hook = module.register_forward_hook(failing)
        try:
            for call, inputs in (
                (prompt, alone(family, 1)),
                (generate, alone(family, 0)),
                (generate, batch(family)),
            ):
                with pytest.raises(RuntimeError, match="broken module"):
                    call(model(family), inputs)
        finally:
            hook.remove()
        answer = generate(model(family), batch(family))
        assert [stats.visual_tokens for stats in run.stats] == VISUAL[family]
    assert torch.equal(answer.logits, want.logits)


@EITHER
def test_methods_take_turns(family: str) -> None:
    for name in ("fastv", "tome", "uniform", "sparsevlm", "apet", "vanilla", "apet"):
        want, _ = compressed(family, name)
        with attach(model(family), make(name, family)):
            torch.testing.assert_close(
                last_logits(model(family), batch(family)), want.logits[:, 0], **CLOSE
            )


@pytest.mark.parametrize(("family", "name"), sorted(REFUSED))
def test_what_a_family_cannot_serve_is_refused(family: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} reads.*{family}.*choose another method"):
        attach(model(family), make(name, family))


SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import attached, tiny
for family in tiny.FAMILIES:
    for name in sys.argv[2:]:
        answer, stats = attached.compressed(family, name)
        print(json.dumps([[attached.index(row) for row in stats], answer.ids.tolist(), answer.logits.tolist()]))
"""


def test_a_second_process() -> None:
    """Another interpreter, with another seed for the hashes of strings, answers the same."""
    call = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[3]), *FEW]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[[{")]
    pairs = [(family, name) for family in tiny.FAMILIES for name in FEW]
    for (family, name), line in zip(pairs, lines, strict=True):
        answer, stats = compressed(family, name)
        kept, ids, logits = json.loads(line)
        assert kept == [index(row) for row in stats]
        assert ids == answer.ids.tolist()
        torch.testing.assert_close(torch.tensor(logits), answer.logits, rtol=0, atol=1e-6)


# ---- misuse


def test_unknown_model() -> None:
    other = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    with pytest.raises(
        ValueError, match="'bert' are not supported; these are: llava, llava_next, llava_onevision"
    ):
        attach(other, ApET(budget=64))


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        (
            "llava",
            {"schedule": "encoder=8,6=4"},
            "'6=4' is outside the decoder; its layers are 0 to 5",
        ),
        ("llava", {"schedule": "encoder 8"}, "cannot read 'encoder 8'"),
        (
            "llava",
            {"budget": "0.5%"},
            "leaves a site none of the row's 36 visual tokens; the smallest possible is 2",
        ),
        ("llava_next", {"schedule": "encoder=2"}, "without a token; 4 are enough for every group"),
        ("video_llava", {"budget": 7}, "without a token; 8 are enough for every group"),
        (
            "qwen3_vl",
            {"schedule": "encoder=4,2=2"},
            "'2=2' is too early: this decoder adds visual features in its",
        ),
    ],
)
def test_misuse_is_explained(family: str, options: dict[str, Any], says: str) -> None:
    row = -1 if family == "video_llava" else 0
    inputs = alone(family, row % len(rows(family)))
    with pytest.raises(ValueError, match=says), attach(model(family), ApET(**options)):
        last_logits(model(family), inputs)


@EITHER
@torch.no_grad()
def test_a_prompt_must_be_whole(family: str) -> None:
    inputs, core = alone(family, 0), model(family)
    with attach(core, make("apet", family)):
        cache = core(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="compression starts with the prompt"):
            core(**inputs, past_key_values=cache)
        embeds = core.get_input_embeddings()(inputs["input_ids"])
        others = {
            key: value
            for key, value in inputs.items()
            if key not in ("input_ids", "mm_token_type_ids")
        }
        with pytest.raises(ValueError, match="compression starts with the prompt"):
            core(**others, inputs_embeds=embeds)
        with pytest.raises(
            ValueError,
            match=r"do not match|are not those of|whole number|not what this model makes",
        ):
            core(**{**inputs, "input_ids": inputs["input_ids"][:, :8]})
        assert torch.isfinite(last_logits(core, inputs)).all()  # and it goes on


def test_one_method_at_a_time() -> None:
    with attach(model("llava"), make("apet", "llava")):
        with (
            pytest.raises(ValueError, match="attached already"),
            attach(model("llava"), make("uniform", "llava")),
        ):
            pass
        generate(model("llava"), alone("llava", 0))
