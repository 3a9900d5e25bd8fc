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
from transformers import BatchFeature, BertConfig, BertModel, GenerationMixin, PreTrainedModel

from apet import ApET, attach, compress
from apet.methods import METHODS
from apet.methods.base import Kept, Method
from apet.methods.decoder import DecoderMethod
from apet.prefill import RowStats
from apet.schedule import Schedule, share
from apet.view import View

STEPS = 3
CLOSE = {"rtol": 0, "atol": 1e-4}
EITHER = pytest.mark.parametrize("family", tiny.FAMILIES)
EVERY = pytest.mark.parametrize("name", METHODS)
REFUSED = {("visionzip", "llava_onevision"): "choose another method"}  # by (method, family), and what the error says


@pytest.fixture(autouse=True)
def _refused(request: pytest.FixtureRequest) -> None:
    """A method that a family cannot serve says so when it is attached; the test is then over."""
    given = getattr(request.node, "callspec", None)
    pair = (given.params.get("name"), given.params.get("family")) if given else None
    if pair in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[pair]):
            attach(model(pair[1]), make(*pair))
        pytest.skip(f"{pair[1]} refuses {pair[0]}, as documented")


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
        {"text": "No picture, only words, and more of them than any other row has tokens. " * 7},
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


def repeatable(family: str) -> list[int]:
    """Rows that `generate` can repeat: before 5.23 it mixed up the pictures of a row with several."""
    mixes = not hasattr(GenerationMixin, "_expand_multimodal_outputs") and "qwen" not in family
    return [row for row in range(len(rows(family))) if row != 1 or not mixes]


@cache
def repeated(family: str) -> BatchFeature:
    return tiny.inputs(family, [rows(family)[row] for row in repeatable(family)])


def make(name: str, family: str, budget: int | str | None = None) -> Method:
    """With a budget that every method can meet: in six layers with DeepStack, the first three see all tokens."""
    if budget is None:
        budget = "70%" if family == "qwen3_vl" and issubclass(METHODS[name], DecoderMethod) else "40%"
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
    with attach(model(family), make(name, family), keep_index=True) as run:
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
    with attach(model(family), make(name, family, "100%")) as run:
        answer = generate(model(family), batch(family))
    assert torch.equal(answer.logits, plain(family).logits)
    assert torch.equal(answer.ids, plain(family).ids)
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
    with attach(model(family), make("apet", family), keep_index=True) as run, torch.no_grad():
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
    options = {"max_new_tokens": STEPS, "num_beams": 2}
    with attach(model(family), make("apet", family), keep_index=True) as run:
        together, stats = model(family).generate(**repeated(family), **options), run.stats
        assert len(stats) == 2 * len(repeatable(family))
        for place, row in enumerate(repeatable(family)):
            same_index(stats[2 * place], stats[2 * place + 1])
            one = model(family).generate(**alone(family, row), **options)
            same_index(stats[2 * place], run.stats[0])
            new = one.shape[1] - alone(family, row)["input_ids"].shape[1]
            assert one[0, -new:].tolist() == together[place, repeated(family)["input_ids"].shape[1] :][:new].tolist()


# ---- 3. any kernel


@EITHER
@EVERY
@pytest.mark.parametrize("attn", ["eager", flash.NAME])
def test_kernels_agree(family: str, name: str, attn: str) -> None:
    want, want_stats = compressed(family, name)
    with attach(model(family, attn), make(name, family), keep_index=True) as run:
        answer = generate(model(family, attn), batch(family), max_new_tokens=1, min_new_tokens=1)
    for stats, other in zip(run.stats, want_stats, strict=True):
        same_index(stats, other)
    torch.testing.assert_close(answer.logits[:, 0], want.logits[:, 0], **CLOSE)


@EITHER
def test_decoding_with_flash(family: str) -> None:
    want, _ = compressed(family, "apet")
    with attach(model(family, flash.NAME), make("apet", family)):
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
    with attach(model(family), make("apet", family, budget), keep_index=True) as run:
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
    tower = {"video_llava": "image_tower", "qwen2_5_vl": "visual", "qwen3_vl": "visual"}.get(family, "vision_tower")
    module = {"tower": getattr(core, tower), "core": core, "layer": core.language_model.layers[4]}[place]
    with attach(model(family), make("apet", family), keep_index=True) as run:
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
        if (name, family) in REFUSED:
            continue
        want, _ = compressed(family, name)
        with attach(model(family), make(name, family)):
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
    before, after = entries(model(family), inputs, make("apet", family))
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


# ---- half precision


@EITHER
def test_full_budget_in_bfloat16(family: str) -> None:
    half = model(family, dtype=torch.bfloat16)
    want = generate(half, batch(family))
    with attach(half, make("apet", family, "100%")):
        answer = generate(half, batch(family))
    assert torch.equal(answer.logits, want.logits)
    assert torch.equal(answer.ids, want.ids)


@EITHER
@EVERY
def test_a_batch_is_its_rows_in_bfloat16(family: str, name: str) -> None:
    """Matrix products round differently with their shape: a near tie may fall otherwise, logits move a little."""
    half, one_step = model(family, dtype=torch.bfloat16), {"max_new_tokens": 1, "min_new_tokens": 1}
    with attach(half, make(name, family), keep_index=True) as run:
        together = generate(half, batch(family), **one_step).logits[:, 0]
        stats = run.stats
        for row, logits in enumerate(together):
            one = generate(half, alone(family, row), **one_step).logits[0, 0]
            assert stats[row].kept == run.stats[0].kept
            swaps = swapped(stats[row], run.stats[0])
            assert swaps <= 0.1 * stats[row].visual_tokens
            if not swaps:
                torch.testing.assert_close(one.float(), logits.float(), rtol=0, atol=0.15)


def swapped(one: RowStats, other: RowStats) -> int:
    """How many tokens one kept at a site and the other did not."""
    assert one.index is not None
    assert other.index is not None
    kept = zip(one.index.values(), other.index.values(), strict=True)
    return sum(len(set(here.tolist()) - set(there.tolist())) for here, there in kept)


# ---- generate and forward, as always


@EITHER
def test_without_a_cache(family: str) -> None:
    want, _ = compressed(family, "apet")
    with attach(model(family), make("apet", family), keep_index=True) as run:
        answer = generate(model(family), batch(family), use_cache=False)
        assert [stats.visual_tokens for stats in run.stats] == VISUAL[family]
        again = generate(model(family), alone(family, 0))  # nothing is left of the batch before
    assert torch.equal(answer.ids, want.ids)
    torch.testing.assert_close(answer.logits, want.logits, **CLOSE)
    torch.testing.assert_close(again.logits[0], want.logits[0], **CLOSE)


@EITHER
def test_a_row_stops_at_the_end(family: str) -> None:
    want, _ = compressed(family, "apet")
    end = int(want.ids[0, -1])
    last = want.ids[0].tolist().index(end) + 1
    with attach(model(family), make("apet", family)):
        out = model(family).generate(**batch(family), max_new_tokens=6, eos_token_id=end)
    new = out[:, batch(family)["input_ids"].shape[1] :]
    pad = model(family).generation_config.pad_token_id
    assert new[0].tolist() == [*want.ids[0, :last].tolist(), *[pad] * (new.shape[1] - last)]
    assert new.shape[1] <= 6
    with attach(model(family), make("apet", family)):
        one = model(family).generate(**alone(family, 0), max_new_tokens=6, eos_token_id=end)
    assert one.shape[1] == alone(family, 0)["input_ids"].shape[1] + last


def longer(inputs: BatchFeature, ids: Tensor) -> BatchFeature:
    """The inputs with further tokens (B, n) behind them."""
    more = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": torch.zeros_like(ids)}
    grown = {key: torch.cat([inputs[key], value], dim=1) for key, value in more.items() if key in inputs}
    return BatchFeature({**inputs, **grown})


@EITHER
@torch.no_grad()
def test_steps_equal_a_fresh_run(family: str) -> None:
    """Of the whole sequence: nothing that a step sees is out of place."""
    want, stats = compressed(family, "apet")
    for row in range(len(rows(family))):
        one, _ = compressed(family, "apet", row)
        with attach(model(family), make("apet", family), keep_index=True) as run:
            for step in range(1, STEPS):
                logits = last_logits(model(family), longer(alone(family, row), one.ids[:, :step]))
                torch.testing.assert_close(logits[0], want.logits[row, step], **CLOSE)
                same_index(run.stats[0], stats[row])


@EITHER
@torch.no_grad()
def test_forward_step_by_step(family: str) -> None:
    """A loop of one's own, with no more than ids and the cache, or with a mask for a padded batch."""
    want, _ = compressed(family, "apet", 0)
    with attach(model(family), make("apet", family)):
        out = model(family)(**alone(family, 0), use_cache=True)
        for step in range(STEPS):
            torch.testing.assert_close(out.logits[:, -1], want.logits[:, step], **CLOSE)
            out = model(family)(input_ids=want.ids[:, step : step + 1], past_key_values=out.past_key_values)


# ---- misuse


def test_unknown_model() -> None:
    other = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(ValueError, match="'bert' are not supported; these are: llava, llava_next, llava_onevision"):
        attach(other, ApET(budget=64))


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("llava", {"schedule": "encoder=8,6=4"}, "'6=4' is outside the decoder; its layers are 0 to 5"),
        ("llava", {"schedule": "encoder 8"}, "cannot read 'encoder 8'"),
        ("llava", {"budget": "0.5%"}, "leaves a site none of the row's 36 visual tokens; the smallest possible is 2"),
        ("llava_next", {"schedule": "encoder=2"}, "without a token; 4 are enough for every group"),
        ("video_llava", {"budget": 7}, "without a token; 8 are enough for every group"),
        ("qwen3_vl", {"schedule": "encoder=4,2=2"}, "'2=2' is too early: this decoder adds visual features in its"),
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
        others = {key: value for key, value in inputs.items() if key not in ("input_ids", "mm_token_type_ids")}
        with pytest.raises(ValueError, match="compression starts with the prompt"):
            core(**others, inputs_embeds=embeds)
        with pytest.raises(ValueError, match=r"do not match|are not those of|whole number|not what this model makes"):
            core(**{**inputs, "input_ids": inputs["input_ids"][:, :8]})
        assert torch.isfinite(last_logits(core, inputs)).all()  # and it goes on


def test_one_method_at_a_time() -> None:
    with attach(model("llava"), make("apet", "llava")):
        with pytest.raises(ValueError, match="attached already"), attach(model("llava"), make("uniform", "llava")):
            pass
        generate(model("llava"), alone("llava", 0))
