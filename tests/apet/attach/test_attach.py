"""Attaching a method: what it must not change and what it must, for every family and method.

`test_batches.py`, `test_attention_kernels.py`, `test_sites.py` and `test_generate.py` have further
guarantees. The pairs of family and method are in `tests/support/attached.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from apet import ApET, attach
from apet.methods import METHODS
from apet.methods.base import Kept
from apet.schedule import Schedule, share
from apet.transformers_api import cache_input, cache_of
from apet.view import View
from tests.support import ROOT
from tests.support.attached import (
    CLOSE,
    EVERY_FAMILY,
    EVERY_PAIR,
    GROUP_SIZES,
    PAIRS,
    SITE_KINDS,
    STEPS,
    VISUAL_TOKENS,
    batch_inputs,
    build_method,
    compressed,
    example_rows,
    expandable_inputs,
    expandable_rows,
    first_token,
    generate,
    kept_indices,
    last_logits,
    model,
    row_inputs,
    uncompressed,
)


def test_pairs_include_every_method() -> None:
    assert {name for _, name in PAIRS} == set(METHODS)


# ---- a full budget changes nothing


@EVERY_PAIR
def test_full_budget_gives_the_answer_of_the_unmodified_model(family: str, name: str) -> None:
    call = generate if name in SITE_KINDS else first_token
    with attach(model(family), build_method(name, family, "100%")) as run:
        answer = call(model(family), batch_inputs(family))
    assert torch.equal(answer.logits, uncompressed(family, call).logits)
    assert torch.equal(answer.ids, uncompressed(family, call).ids)
    assert [stats.visual_tokens for stats in run.stats] == VISUAL_TOKENS[family]
    assert [stats.budget for stats in run.stats] == VISUAL_TOKENS[family]
    assert all(set(stats.kept.values()) <= {stats.visual_tokens} for stats in run.stats)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_full_budget_samples_the_same_answers(family: str) -> None:
    sample = {"do_sample": True, "temperature": 1.5, "num_return_sequences": 2}
    inputs, answers = expandable_inputs(family), []
    for method in (build_method("vanilla", family), build_method("apet", family, "100%")):
        with attach(model(family), method):
            torch.manual_seed(0)
            answers.append(generate(model(family), inputs, **sample).ids)
    torch.manual_seed(0)
    want = generate(model(family), inputs, **sample).ids
    assert torch.equal(answers[0], want)
    assert torch.equal(answers[1], want)
    assert len(set(map(tuple, want.tolist()))) > len(expandable_rows(family))  # it did sample


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl"])
def test_full_budget_in_bfloat16_gives_the_same_answer(family: str) -> None:
    half, inputs = (
        model(family, dtype=torch.bfloat16),
        row_inputs(family, len(example_rows(family)) - 1),
    )
    want = generate(half, inputs)
    with attach(half, build_method("apet", family, "100%")):
        answer = generate(half, inputs)
    assert torch.equal(answer.logits, want.logits)
    assert torch.equal(answer.ids, want.ids)


# ---- the cache is as short as the schedule says


@EVERY_PAIR
def test_cache_length_of_each_layer_follows_the_kept_tokens(family: str, name: str) -> None:
    row_answers = []
    for row in range(len(example_rows(family))):
        answer, (stats,) = compressed(family, name, row)
        row_answers.append(answer)
        text = row_inputs(family, row)["input_ids"].shape[1] - VISUAL_TOKENS[family][row]
        count, counts = stats.kept.get("encoder", stats.visual_tokens), []
        for layer, keys in enumerate(answer.cache):
            count = stats.kept.get(str(layer), count)
            assert keys.shape[2] == text + count + answer.ids.shape[1] - 1
            counts.append(count)
        assert stats.budget == pytest.approx(sum(counts) / len(counts))
        assert list(stats.kept.values()) == sorted(stats.kept.values(), reverse=True)
    answer, batch_stats = compressed(family, name)
    for layer, keys in enumerate(answer.cache):
        assert keys.shape[2] == max(
            one.cache[layer].shape[2] + STEPS - one.ids.shape[1] for one in row_answers
        )
    cache_bytes = 2 * sum(keys.nbytes for keys in answer.cache)
    assert batch_stats[0].cache_bytes == cache_bytes // len(batch_stats)


@pytest.mark.parametrize(
    ("family", "budget"),
    [
        ("llava", 6),
        ("llava_next", "40%"),
        ("qwen2_5_vl", 6),
        ("video_llava", 16),
        ("qwen3_vl", "40%"),
        ("llava_onevision", 16),
        ("llava_onevision", "40%"),
    ],
)
def test_apet_keeps_the_counts_of_the_paper_in_every_group(family: str, budget: int | str) -> None:
    encoder_only = family == "video_llava"
    with attach(model(family), build_method("apet", family, budget), keep_index=True) as run:
        last_logits(model(family), batch_inputs(family))
    for stats, media in zip(run.stats, GROUP_SIZES[family], strict=True):
        schedules = [
            Schedule.from_budget(
                budget, visual_tokens=sum(sizes), layers=6, encoder_only=encoder_only
            )
            for sizes in media
        ]
        at_encoder = [schedule.tokens_at(0, "encoder") for schedule in schedules]
        assert stats.kept.get("encoder", 0) == sum(at_encoder)
        in_decoder = sum(schedule.tokens_at(3) for schedule in schedules)
        assert stats.kept.get("3", stats.kept.get("encoder", 0)) == in_decoder
        assert stats.index is not None
        start = 0
        for sizes, keep in zip(media, at_encoder, strict=True):
            for size, group_keep in zip(sizes, share(keep, sizes), strict=True):
                index = stats.index["encoder"]
                assert int(((index >= start) & (index < start + size)).sum()) == group_keep
                start += size


# ---- detaching


def modules_and_hooks(model: nn.Module) -> list[Any]:
    """All modules, their attributes, and their hooks of every kind."""
    listed = []
    for name, module in model.named_modules():
        held = [
            (key, list(value.items()))
            for key, value in vars(module).items()
            if "hook" in key and isinstance(value, dict)
        ]
        listed.append((name, type(module), sorted(vars(module)), held))
    return listed


class BrokenMethod(ApET):
    def select(self, view: View) -> Kept:
        raise RuntimeError("broken method")


def raise_error(*args: object) -> None:
    raise RuntimeError("broken module")


@EVERY_FAMILY
def test_detached_model_is_unchanged_after_success_and_after_an_error(family: str) -> None:
    before = modules_and_hooks(model(family))
    with attach(model(family), build_method("apet", family)):
        assert modules_and_hooks(model(family)) != before
        first_token(model(family), batch_inputs(family))
    assert modules_and_hooks(model(family)) == before
    broken = BrokenMethod(budget="40%")
    with pytest.raises(RuntimeError, match="broken method"), attach(model(family), broken):
        first_token(model(family), batch_inputs(family))
    assert modules_and_hooks(model(family)) == before
    answer = first_token(model(family), batch_inputs(family))
    assert torch.equal(answer.logits, uncompressed(family, first_token).logits)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "video_llava"])
@pytest.mark.parametrize("failing", ["tower", "core", "layer"])
def test_attachment_answers_correctly_after_a_failed_call(family: str, failing: str) -> None:
    want, _ = compressed(family, "apet")
    core = model(family).model
    tower = {"video_llava": "image_tower", "qwen2_5_vl": "visual"}.get(family, "vision_tower")
    module = {
        "tower": getattr(core, tower),
        "core": core,
        "layer": core.language_model.layers[4],
    }[failing]
    with attach(model(family), build_method("apet", family), keep_index=True) as run:
        hook = module.register_forward_hook(raise_error)
        try:
            for call, inputs in (
                (first_token, row_inputs(family, 1)),
                (generate, row_inputs(family, 0)),
                (generate, batch_inputs(family)),
            ):
                with pytest.raises(RuntimeError, match="broken module"):
                    call(model(family), inputs)
        finally:
            hook.remove()
        answer = generate(model(family), batch_inputs(family))
        assert [stats.visual_tokens for stats in run.stats] == VISUAL_TOKENS[family]
    assert torch.equal(answer.logits, want.logits)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_methods_attached_in_turn_do_not_affect_each_other(family: str) -> None:
    for name in ("tome", "sparsevlm", "apet", "tome"):
        want, _ = compressed(family, name)
        with attach(model(family), build_method(name, family)):
            logits = last_logits(model(family), batch_inputs(family))
            torch.testing.assert_close(logits, want.logits[:, 0], **CLOSE)


def test_method_that_reads_the_tower_is_refused_where_patches_are_not_tokens() -> None:
    says = "visionzip reads.*llava_onevision.*choose another method"
    with pytest.raises(ValueError, match=says):
        attach(model("llava_onevision"), build_method("visionzip", "llava_onevision"))


SCRIPT = """
import json, sys
from tests.support import attached
for family in sys.argv[1].split(","):
    for name in attached.SITE_KINDS:
        answer, stats = attached.compressed(family, name)
        row = [attached.kept_indices(row) for row in stats]
        print(json.dumps([row, answer.ids.tolist(), answer.logits.tolist()]))
"""


def test_second_process_gives_the_same_answers(subprocesses: None) -> None:
    """Another interpreter has another seed for the hashes of strings."""
    families = ("llava", "qwen3_vl")
    command = [sys.executable, "-c", SCRIPT, ",".join(families)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[[{")]
    pairs = [(family, name) for family in families for name in SITE_KINDS]
    for (family, name), line in zip(pairs, lines, strict=True):
        answer, stats = compressed(family, name)
        kept, ids, logits = json.loads(line)
        assert kept == [kept_indices(row) for row in stats]
        assert ids == answer.ids.tolist()
        torch.testing.assert_close(torch.tensor(logits), answer.logits, rtol=0, atol=1e-6)


# ---- misuse


def test_unsupported_model_is_refused() -> None:
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
def test_invalid_options_are_explained(family: str, options: dict[str, Any], says: str) -> None:
    row = -1 if family == "video_llava" else 0
    inputs = row_inputs(family, row % len(example_rows(family)))
    with pytest.raises(ValueError, match=says), attach(model(family), ApET(**options)):
        last_logits(model(family), inputs)


@EVERY_FAMILY
@torch.no_grad()
def test_incomplete_prompt_is_refused(family: str) -> None:
    inputs, core = row_inputs(family, 0), model(family)
    with attach(core, build_method("apet", family)):
        cache = cache_of(core(**inputs, use_cache=True))
        with pytest.raises(ValueError, match="compression starts with the prompt"):
            core(**inputs, **cache_input(core, cache))
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


def test_second_method_is_refused_while_one_is_attached() -> None:
    with attach(model("llava"), build_method("apet", "llava")):
        with (
            pytest.raises(ValueError, match="attached already"),
            attach(model("llava"), build_method("uniform", "llava")),
        ):
            pass
        generate(model("llava"), row_inputs("llava", 0))
