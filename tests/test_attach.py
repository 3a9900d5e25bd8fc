"""Attaching a method to a model: what it must not change, and what it must, for every family and method."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flash
import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import BatchFeature, PreTrainedModel

from apet import ApET, attach, compress
from apet.methods import METHODS
from apet.methods.base import Kept, Method
from apet.prefill import RowStats
from apet.schedule import Schedule, share
from apet.view import View

STEPS = 3
CLOSE = {"rtol": 0, "atol": 1e-4}
EITHER = pytest.mark.parametrize("family", tiny.FAMILIES)
EVERY = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small only wait for further ones
    yield
    torch.set_num_threads(before)


def rows(family: str) -> list[dict[str, Any]]:
    """Unequal in everything: one picture, two, none, and a video with a picture behind it."""
    found = [
        {"text": "What is this?", "images": [tiny.image(30, 20, 1)]},
        {"text": "Describe both in detail, please", "images": [tiny.image(50, 20, 2), tiny.image(24, 44, 3)]},
        {"text": "No picture"},
    ]
    if family in tiny.VIDEO_FAMILIES:
        video = {"videos": [tiny.video(8, 24, 16, 5)], "images": [tiny.image(20, 20, 6)]}
        found.append({"text": "First <video> then <image>?", **video})
    return found


SIZES = {  # of the groups of each medium of each of these rows
    "llava": [[[36]], [[36], [36]], []],
    "llava_next": [[[36, 30, 30]], [[36, 30, 36, 30], [36, 36, 36]], []],
    "qwen2_5_vl": [[[8]], [[12], [18]], [], [[6, 6, 6, 6], [4]]],
    "video_llava": [[[36]], [[36], [36]], [], [[36] * 8, [36]]],
    "qwen3_vl": [[[8]], [[12], [18]], [], [[6, 6, 6, 6], [4]]],
    "llava_onevision": [[[25, 40]], [[25], [25]], [], [[9] * 8, [25, 25]]],
}
VISUAL = {family: [sum(map(sum, media)) for media in found] for family, found in SIZES.items()}


@cache
def model(family: str, attn: str = "sdpa", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return tiny.model(family, attn, dtype)


@cache
def batch(family: str) -> BatchFeature:
    return tiny.inputs(family, rows(family))


@cache
def alone(family: str, row: int) -> BatchFeature:
    return tiny.inputs(family, [rows(family)[row]])


def make(name: str, budget: int | str = "40%") -> Method:
    small = {"basis": 4} if "basis" in {field.name for field in fields(METHODS[name])} else {}
    return METHODS[name](budget=budget, **small)


class Answer(NamedTuple):
    ids: Tensor  # (B, n)
    logits: Tensor  # (B, n, vocabulary)
    cache: list[Tensor]  # the keys of each layer


def generate(model: PreTrainedModel, inputs: BatchFeature, **more: Any) -> Answer:
    options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, **more}
    out = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    ids = out.sequences[:, inputs["input_ids"].shape[1] :]
    keys = [layer.keys for layer in out.past_key_values.layers] if out.past_key_values is not None else []
    return Answer(ids, torch.stack(out.logits, dim=1), keys)


@torch.no_grad()
def last_logits(model: PreTrainedModel, inputs: BatchFeature) -> Tensor:
    return model(**inputs).logits[:, -1]


@cache
def plain(family: str) -> Answer:
    return generate(model(family), batch(family))


@cache
def compressed(family: str, name: str, row: int | None = None) -> tuple[Answer, list[RowStats]]:
    with attach(model(family), make(name), keep_index=True) as run:
        answer = generate(model(family), batch(family) if row is None else alone(family, row))
    return answer, run.stats


def same_index(one: RowStats, other: RowStats) -> None:
    assert one.index is not None
    assert other.index is not None
    assert {site: kept.tolist() for site, kept in one.index.items()} == {
        site: kept.tolist() for site, kept in other.index.items()
    }


# ---- 1. a full budget changes nothing


@EITHER
@EVERY
def test_full_budget_is_the_unmodified_model(family: str, name: str) -> None:
    with attach(model(family), make(name, "100%")) as run:
        answer = generate(model(family), batch(family))
    assert torch.equal(answer.logits, plain(family).logits)
    assert torch.equal(answer.ids, plain(family).ids)
    assert [stats.visual_tokens for stats in run.stats] == VISUAL[family]
    assert [stats.budget for stats in run.stats] == VISUAL[family]
    assert [set(stats.kept.values()) <= {stats.visual_tokens} for stats in run.stats]


@EITHER
def test_full_budget_and_sampling(family: str) -> None:
    answers = []
    for method in (None, make("apet", "100%")):
        torch.manual_seed(0)
        sample = {"do_sample": True, "temperature": 1.5, "num_return_sequences": 2}
        if method is None:
            answers.append(generate(model(family), batch(family), **sample))
        else:
            with attach(model(family), method):
                answers.append(generate(model(family), batch(family), **sample))
    assert torch.equal(answers[0].ids, answers[1].ids)
    assert len(set(map(tuple, answers[0].ids.tolist()))) > len(rows(family))  # it did sample


# ---- 2. rows do not notice their batch


@EITHER
@EVERY
def test_a_batch_is_its_rows(family: str, name: str) -> None:
    together, stats = compressed(family, name)
    for row in range(len(rows(family))):
        one, one_stats = compressed(family, name, row)
        same_index(one_stats[0], stats[row])
        assert one_stats[0].kept == stats[row].kept
        assert one_stats[0].budget == stats[row].budget
        torch.testing.assert_close(one.logits[0], together.logits[row], **CLOSE)
        assert torch.equal(one.ids[0], together.ids[row])


def padded_right(inputs: BatchFeature) -> BatchFeature:
    pads = (inputs["attention_mask"] == 0).sum(dim=1).tolist()
    moved = {
        key: torch.stack([value.roll(-pad, 0) for value, pad in zip(inputs[key], pads, strict=True)])
        for key in ("input_ids", "attention_mask", "mm_token_type_ids")
        if key in inputs
    }
    return BatchFeature({**inputs, **moved})


@EITHER
def test_right_padding(family: str) -> None:
    with attach(model(family), make("apet"), keep_index=True) as run, torch.no_grad():
        out = model(family)(**padded_right(batch(family)))
    for row, stats in enumerate(run.stats):
        one, one_stats = compressed(family, "apet", row)
        same_index(one_stats[0], stats)
        last = (
            int(batch(family)["attention_mask"][row].sum()) - VISUAL[family][row] + list(stats.kept.values() or [0])[-1]
        )
        torch.testing.assert_close(out.logits[row, last - 1], one.logits[0, 0], **CLOSE)


@EITHER
def test_beams(family: str) -> None:
    with attach(model(family), make("apet"), keep_index=True) as run:
        together = model(family).generate(**batch(family), max_new_tokens=STEPS, num_beams=2)
        stats = run.stats
        assert len(stats) == 2 * len(rows(family))
        for row in range(len(rows(family))):
            same_index(stats[2 * row], stats[2 * row + 1])
            inputs = alone(family, row)
            one = model(family).generate(**inputs, max_new_tokens=STEPS, num_beams=2)
            width = inputs["input_ids"].shape[1]
            assert one[0, width:].tolist() == together[row, -one.shape[1] + width :].tolist()


# ---- 3. any kernel


@EITHER
@EVERY
@pytest.mark.parametrize("attn", ["eager", flash.NAME])
def test_kernels_agree(family: str, name: str, attn: str) -> None:
    want, want_stats = compressed(family, name)
    with attach(model(family, attn), make(name), keep_index=True) as run:
        logits = last_logits(model(family, attn), batch(family))
    for stats, other in zip(run.stats, want_stats, strict=True):
        same_index(stats, other)
    torch.testing.assert_close(logits, want.logits[:, 0], **CLOSE)


@EITHER
def test_decoding_with_flash(family: str) -> None:
    want, _ = compressed(family, "apet")
    with attach(model(family, flash.NAME), make("apet")):
        answer = generate(model(family, flash.NAME), batch(family))
        assert torch.equal(answer.ids, want.ids)
        torch.testing.assert_close(answer.logits, want.logits, **CLOSE)
        one = generate(model(family, flash.NAME), alone(family, 0))  # nothing padded: no mask at all
    torch.testing.assert_close(one.logits[0], want.logits[0], **CLOSE)


# ---- 4. the cache is as short as the schedule says


@EITHER
@EVERY
def test_cache_lengths(family: str, name: str) -> None:
    for row in range(len(rows(family))):
        answer, (stats,) = compressed(family, name, row)
        text = alone(family, row)["input_ids"].shape[1] - VISUAL[family][row]
        there, seen = stats.visual_tokens, []
        there = stats.kept.get("encoder", there)
        for layer, keys in enumerate(answer.cache):
            there = stats.kept.get(str(layer), there)
            assert keys.shape[2] == text + there + STEPS - 1
            seen.append(there)
        assert stats.budget == pytest.approx(sum(seen) / len(seen))
        assert list(stats.kept.values()) == sorted(stats.kept.values(), reverse=True)
    answer, stats = compressed(family, name)
    for layer, keys in enumerate(answer.cache):
        assert keys.shape[2] == max(compressed(family, name, row)[0].cache[layer].shape[2] for row in range(len(stats)))
    assert stats[0].cache_bytes == 2 * sum(keys.nbytes for keys in answer.cache) // len(stats)


@EITHER
@pytest.mark.parametrize("budget", [6, "40%"])
def test_apet_keeps_what_the_paper_says(family: str, budget: int | str) -> None:
    if budget == 6 and family in ("llava_next", "video_llava", "llava_onevision"):
        budget = 16  # more crops or frames than that
    only = family == "video_llava"
    with attach(model(family), make("apet", budget), keep_index=True) as run:
        last_logits(model(family), batch(family))
    for stats, media in zip(run.stats, SIZES[family], strict=True):
        schedules = [
            Schedule.from_budget(budget, visual_tokens=sum(sizes), layers=6, encoder_only=only) for sizes in media
        ]
        assert stats.kept.get("encoder", 0) == sum(schedule.tokens_at(0, "encoder") for schedule in schedules)
        assert stats.kept.get("3", stats.kept.get("encoder", 0)) == sum(one.tokens_at(3) for one in schedules)
        assert stats.index is not None
        starts = [0]
        for sizes, schedule in zip(media, schedules, strict=True):
            parts = share(schedule.tokens_at(0, "encoder"), sizes)
            for size, part in zip(sizes, parts, strict=True):
                inside = (stats.index["encoder"] >= starts[-1]) & (stats.index["encoder"] < starts[-1] + size)
                assert int(inside.sum()) == part
                starts.append(starts[-1] + size)


# ---- 5. nothing is left behind


def hooks(model: nn.Module) -> list[Any]:
    """All modules, what they hold, and their hooks of every kind."""
    found = []
    for name, module in model.named_modules():
        held = [(key, list(value.items())) for key, value in vars(module).items() if "hook" in key and value]
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
    with attach(model(family), make("apet")):
        assert hooks(model(family)) != before
        generate(model(family), batch(family))
    assert hooks(model(family)) == before
    with pytest.raises(RuntimeError, match="broken method"), attach(model(family), Broken(budget="40%")):
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
    tower = {"video_llava": "video_tower", "qwen2_5_vl": "visual", "qwen3_vl": "visual"}.get(family, "vision_tower")
    module = {"tower": getattr(core, tower), "core": core, "layer": core.language_model.layers[4]}[place]
    with attach(model(family), make("apet"), keep_index=True) as run:
        hook = module.register_forward_hook(failing)
        try:
            for inputs in (alone(family, 1), alone(family, 0), batch(family)):
                with pytest.raises(RuntimeError, match="broken module"):
                    last_logits(model(family), inputs)
                with pytest.raises(RuntimeError, match="broken module"):
                    generate(model(family), inputs)
        finally:
            hook.remove()
        answer = generate(model(family), batch(family))
        assert [stats.visual_tokens for stats in run.stats] == VISUAL[family]
    assert torch.equal(answer.logits, want.logits)


@EITHER
def test_methods_take_turns(family: str) -> None:
    for name in (*METHODS, "apet"):
        want, _ = compressed(family, name)
        with attach(model(family), make(name)):
            assert torch.equal(generate(model(family), batch(family)).logits, want.logits)


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import test_attach as t
t.torch.set_num_threads(1)
answer, stats = t.compressed("qwen2_5_vl", "apet")
print([[kept.tolist() for kept in row.index.values()] for row in stats], answer.ids.tolist())
print(answer.logits.double().sum().item())
"""


def test_a_second_process() -> None:
    answer, stats = compressed("qwen2_5_vl", "apet")
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *_, found, total = done.stdout.splitlines()
    index = [[kept.tolist() for kept in row.index.values()] for row in stats if row.index is not None]
    assert found == f"{index} {answer.ids.tolist()}"
    assert float(total) == pytest.approx(answer.logits.double().sum().item(), rel=1e-6)


# ---- 6. inside, ApET is `compress`


class Entries(NamedTuple):
    """What the decoder and its layer 3 are called with, before and after the method."""

    entry: Tensor
    layer: Tensor


@torch.no_grad()
def entries(model: PreTrainedModel, inputs: BatchFeature, method: Method | None) -> tuple[Entries, Entries]:
    core, seen = model.model, {}

    def watch(when: str) -> list[Any]:
        return [
            core.language_model.register_forward_pre_hook(
                lambda module, args, kwargs: seen.update({when: kwargs["inputs_embeds"]}), with_kwargs=True
            ),
            core.language_model.layers[3].register_forward_pre_hook(
                lambda module, args: seen.update({when + " layer": args[0]})
            ),
        ]

    held = watch("before")
    if method is not None:
        with attach(model, method):
            held += watch("after")
            model(**inputs)
    else:
        held += watch("after")
        model(**inputs)
    for hook in held:
        hook.remove()
    return Entries(seen["before"], seen["before layer"]), Entries(seen["after"], seen["after layer"])


def packed(core: Any, features: Tensor, sizes: Tensor) -> Tensor:
    """Which feature each placeholder of one image holds, by the model's own packing; -1 for newlines."""
    numbers = torch.arange(features[..., 0].numel()).view(*features.shape[:2], 1).double()
    (flat,), _ = core.pack_image_features([numbers], sizes, "default", image_newline=torch.tensor([-1.0]))
    return flat[:, 0].long()


def by_hand(family: str) -> tuple[list[tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
    """The groups of row 0 as (columns, tokens at the encoder's site), and what is left to do to these."""
    core, inputs = model(family).model, alone(family, 0)
    columns = (inputs["input_ids"][0] == model(family).config.image_token_id).nonzero()[:, 0]
    if family not in ("llava", "llava_next"):
        embeds = entries(model(family), inputs, None)[0].entry[0]
        if family == "llava_onevision":
            columns = columns[(embeds[columns] != core.image_newline).any(-1)]
        return [(part, embeds[part]) for part in columns.split(SIZES[family][0][0])], lambda tokens: tokens
    seen: list[Tensor] = []
    hook = core.multi_modal_projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    last_logits(model(family), inputs)
    hook.remove()
    features = seen[0]  # (tiles, T, D)
    if family == "llava":
        return [(columns, features[0])], core.multi_modal_projector
    cells = packed(core, features, inputs["image_sizes"])
    tiles = [cells.where(cells >= 0, -features.shape[1]) // features.shape[1] == tile for tile in range(len(features))]
    return [(columns[tile], features.flatten(0, 1)[cells[tile]]) for tile in tiles], core.multi_modal_projector


@EITHER
@torch.no_grad()
def test_inside_apet_is_compress(family: str) -> None:
    inputs = alone(family, 0)
    before, after = entries(model(family), inputs, make("apet"))
    whole = entries(model(family), inputs, None)[0].entry[0]
    groups, project = by_hand(family)
    sizes = [len(columns) for columns, _ in groups]
    assert sizes == SIZES[family][0][0]
    schedule = Schedule.from_budget("40%", visual_tokens=sum(sizes), layers=6, encoder_only=family == "video_llava")
    alive, visual = torch.ones(len(whole), dtype=torch.bool), torch.zeros(len(whole), dtype=torch.bool)
    for (columns, tokens), keep in zip(groups, share(schedule.tokens_at(0, "encoder"), sizes), strict=True):
        out = compress(tokens, keep, basis=min(4, keep))
        alive[columns] = False
        alive[columns[out.index]] = visual[columns[out.index]] = True
        whole[columns[out.index]] = project(out.tokens)
    torch.testing.assert_close(after.entry[0], whole[alive], rtol=1e-5, atol=1e-5)
    if family == "video_llava":
        return
    hidden, kept = before.layer[0], schedule.tokens_at(3)
    columns = visual[alive].nonzero()[:, 0]
    out = compress(hidden[columns], kept, basis=min(4, kept))
    alive = torch.ones(len(hidden), dtype=torch.bool)
    alive[columns] = False
    alive[columns[out.index]] = True
    hidden[columns[out.index]] = out.tokens
    assert torch.equal(after.layer[0], hidden[alive])
