"""`Decode` answers as `generate` does: for every family, wherever tokens are dropped, whenever a row ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.stopping_criteria import StoppingCriteria

import apet.decoding.decode
import apet.decoding.graph
import apet.decoding.step
from apet import ApET, Decode, attach
from apet.decoding.graph import Graphs
from pipelines.inference.engines.generation import Sampler
from tests.apet.models.test_sliding_window import mistral
from tests.support import flash, tiny
from tests.support.attached import EITHER, FEW, alone, batch, compressed, make, model, plain, rows

TOKENS = 5
Patch = pytest.MonkeyPatch


def generated(
    model: PreTrainedModel, inputs: dict[str, Tensor], tokens: int = TOKENS, **more: object
) -> Tensor:
    out = model.generate(**inputs, do_sample=False, max_new_tokens=tokens, **more)
    return out[:, inputs["input_ids"].shape[1] :]


def fixed(model: PreTrainedModel) -> Decode:
    """With the shapes of graphs, though nothing captures them."""
    decode = Decode(model)
    decode.graphs = Graphs(decode.family)
    return decode


def end_within(patch: Patch, model: PreTrainedModel, answers: Tensor) -> None:
    """Make two tokens ends: the first row's second one and the last row's third."""
    patch.setattr(
        model.generation_config, "eos_token_id", [int(answers[0, 1]), int(answers[-1, 2])]
    )


def never(*_: object, **__: object) -> None:
    raise AssertionError


@pytest.fixture
def stepped(monkeypatch: Patch) -> list[tuple[int, int]]:
    """The rows of each step, and the columns that its last layer's attention had."""
    found: list[tuple[int, int]] = []
    step = apet.decoding.step.step

    def noted(
        family: object, tokens: Tensor, positions: Tensor, cache: object, masks: object
    ) -> Tensor:
        logits = step(family, tokens, positions, cache, masks)
        found.append((len(tokens), cache.layers[-1].keys.shape[2]))
        return logits

    for module in (apet.decoding.step, apet.decoding.graph):
        monkeypatch.setattr(module, "step", noted)
    return found


@EITHER
@pytest.mark.parametrize("name", ["vanilla", *FEW])
def test_it_says_what_generate_says(
    family: str, name: str, monkeypatch: Patch, stepped: list[tuple[int, int]]
) -> None:
    """Rows of all lengths, several pictures, none, videos; two ends, in the middle of the batch's answers."""
    core = model(family)
    end_within(monkeypatch, core, compressed(family, name)[0].ids)
    shapes = fixed(core)
    with attach(core, make(name, family)):
        want = generated(core, batch(family))
        assert torch.equal(Decode(core).answer(batch(family), TOKENS), want)
        assert stepped
        for _ in range(2):  # the first time without a graph's shapes, then with them
            assert torch.equal(shapes.answer(batch(family), TOKENS), want)
    assert stepped[-1][1] % apet.decoding.graph.BUCKET == 0
    assert (want == core.generation_config.pad_token_id).any()


@EITHER
def test_a_row_s_answer_is_its_own(family: str, monkeypatch: Patch) -> None:
    core, decode, shapes = model(family), Decode(model(family)), fixed(model(family))
    end_within(monkeypatch, core, compressed(family, "apet")[0].ids)
    pad = core.generation_config.pad_token_id
    with attach(core, make("apet", family)):
        together = decode.answer(batch(family), TOKENS)
        for row in range(len(rows(family))):
            for each in (decode, shapes, shapes):
                one = each.answer(alone(family, row), TOKENS)[0].tolist()
                assert together[row].tolist() == one + [pad] * (together.shape[1] - len(one))


@EITHER
@pytest.mark.parametrize("attn", ["eager", flash.NAME])
def test_any_kernel(family: str, attn: str) -> None:
    core = model(family, attn)
    with attach(core, make("apet", family)):
        want = generated(core, batch(family), 4)
        assert torch.equal(Decode(core).answer(batch(family), 4), want)
        assert torch.equal(Decode(core).answer(alone(family, 0), 4), want[:1])
        shapes = fixed(core)
        for _ in range(2):
            assert torch.equal(shapes.answer(batch(family), 4), want)
    assert core.model.language_model.config._attn_implementation == attn


@EITHER
def test_without_a_method(family: str) -> None:
    core, decode = model(family), Decode(model(family))
    words = alone(family, len(rows("llava")) - 1)  # no picture
    for inputs in (batch(family), words):
        want = generated(core, inputs, 3)
        assert torch.equal(decode.answer(inputs, 3), want)
        assert torch.equal(decode.answer(inputs, 1), want[:, :1])
    assert not any(module._forward_pre_hooks for module in core.modules())


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_answers_longer_than_the_room(
    family: str, monkeypatch: Patch, stepped: list[tuple[int, int]]
) -> None:
    for module in (apet.decoding.step, apet.decoding.graph):
        monkeypatch.setattr(module, "ROOM", 2)
    monkeypatch.setattr(apet.decoding.graph, "BUCKET", 3)
    core, shapes = model(family), fixed(model(family))
    with attach(core, make("apet", family)):
        want = generated(core, batch(family), 8)
        stepped.clear()
        for _ in range(3):
            assert torch.equal(shapes.answer(batch(family), 8), want)
        assert len(shapes.graphs._kept) > 1
        columns = [columns for _, columns in stepped]
        assert all(column % 3 == 0 for column in columns)  # the last step, too, which is alone
        stepped.clear()
        assert torch.equal(Decode(core).answer(batch(family), 8), want)
        columns = [columns for _, columns in stepped]
        assert columns[:3] == [
            columns[0],
            columns[0] + 1,
            columns[0] + 2,
        ]  # it grows with the answer
        monkeypatch.setattr(apet.decoding.graph, "KEPT", 1)
        few = fixed(core)
        for _ in range(
            3
        ):  # shapes come round: the first one that came twice stays, the others do without
            assert torch.equal(few.answer(batch(family), 8), want)
        assert len(few.graphs._kept) == 1


def test_a_single_step_is_worth_a_graph(monkeypatch: Patch, stepped: list[tuple[int, int]]) -> None:
    """Yes or no, and the end: from a shape's second batch on, which is computed as its first one was."""
    captured: list[object] = []
    monkeypatch.setattr(
        apet.decoding.graph.Fixed, "capture", lambda steps, pool: captured.append(steps)
    )
    core, shapes = model("llava"), fixed(model("llava"))
    with attach(core, make("apet", "llava")):
        want = generated(core, batch("llava"), 2)
        for times in range(3):
            assert torch.equal(shapes.answer(batch("llava"), 2), want)
            assert len(captured) == min(times, 1)
    assert [*shapes.graphs._kept.values()] == captured
    assert len(stepped) == 3
    assert len(set(stepped)) == 1
    assert stepped[0][1] % apet.decoding.graph.BUCKET == 0


def test_what_masks_hide_does_no_harm() -> None:
    """A batch that overflowed leaves numbers that are none behind it."""
    core, shapes = model("llava"), fixed(model("llava"))
    with attach(core, make("apet", "llava")):
        want = [shapes.answer(batch("llava"), 4) for _ in range(2)][1]
        shapes.graphs._storage.fill_(torch.nan)
        assert torch.equal(shapes.answer(batch("llava"), 4), want)


def test_rows_leave_when_half_of_them_are_done(
    monkeypatch: Patch, stepped: list[tuple[int, int]]
) -> None:
    core = model("qwen2_5_vl")
    ids = plain("qwen2_5_vl").ids
    monkeypatch.setattr(
        core.generation_config,
        "eos_token_id",
        sorted({*ids[:2, 1].tolist(), *ids[2:3, 2].tolist()}),
    )
    want = generated(core, batch("qwen2_5_vl"), 6)
    ends = [(row != core.generation_config.pad_token_id).sum().item() for row in want]
    assert torch.equal(Decode(core).answer(batch("qwen2_5_vl"), 6), want)
    assert stepped[0][0] == len(ends)
    assert stepped[-1][0] < len(ends)
    assert all(
        count < 2 * sum(end > step + 1 for end in ends) for step, (count, _) in enumerate(stepped)
    )


def test_luck_is_a_row_s_own(monkeypatch: Patch) -> None:
    core, seeds = model("llava"), [5, 6, 7]

    def luck(which: list[int]) -> LogitsProcessorList:
        return LogitsProcessorList([Sampler(1.0, which)])

    first = generated(core, batch("llava"), logits_processor=luck(seeds))
    end_within(monkeypatch, core, first)
    want = generated(core, batch("llava"), logits_processor=luck(seeds))
    assert torch.equal(Decode(core).answer(batch("llava"), TOKENS, luck(seeds)), want)
    one = Decode(core).answer(alone("llava", 1), TOKENS, luck([6]))[0]
    assert one.tolist() == want[1, : len(one)].tolist()


def test_rules_are_asked_once_a_token() -> None:
    lengths: list[int] = []

    class Counted(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
            lengths.append(input_ids.shape[1])
            return torch.full((len(input_ids),), len(lengths) == 3)

    core, inputs = model("llava"), batch("llava")
    found = Decode(core).answer(inputs, 9, stopping_criteria=StoppingCriteriaList([Counted()]))
    width = inputs["input_ids"].shape[1]
    assert lengths == [width + 1, width + 2, width + 3]
    assert torch.equal(found, plain("llava").ids[:, :3])


@pytest.mark.parametrize(
    "asked",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 1},
        {"begin_suppress_tokens": list(range(97, 120))},
        {"forced_eos_token_id": 3},
        {"min_new_tokens": 4},
        {"eos_token_id": None},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_a_checkpoint_asks_for_is_done(asked: dict[str, object], monkeypatch: Patch) -> None:
    core = model("llava")
    before = Decode(core).answer(batch("llava"), 8)
    for name, value in asked.items():
        monkeypatch.setattr(core.generation_config, name, value)
    want = generated(core, batch("llava"), 8)
    assert torch.equal(Decode(core).answer(batch("llava"), 8), want)
    assert "penalty" not in str(asked) or not torch.equal(want, before)


@pytest.mark.parametrize(
    "asked",
    [{"num_beams": 2}, {"cache_implementation": "static"}],
    ids=lambda asked: next(iter(asked)),
)
def test_anything_but_greedy_choice_is_generate_s(
    asked: dict[str, object], monkeypatch: Patch
) -> None:
    core = model("llava")
    monkeypatch.setattr(apet.decoding.decode, "Rooms", never)
    for name, value in asked.items():
        monkeypatch.setattr(core.generation_config, name, value)
    assert torch.equal(Decode(core).answer(batch("llava"), 3), generated(core, batch("llava"), 3))


def test_a_window_that_an_answer_reaches_is_generate_s(monkeypatch: Patch) -> None:
    inputs = tiny.inputs("llava", rows("llava"))
    width = inputs["input_ids"].shape[1]
    wide, narrow = mistral(width + 4), mistral(width - 30)
    assert torch.equal(Decode(wide).answer(inputs, 4), generated(wide, inputs, 4))
    monkeypatch.setattr(apet.decoding.decode, "Rooms", never)
    assert torch.equal(Decode(narrow).answer(inputs, 4), generated(narrow, inputs, 4))
    with pytest.raises(AssertionError):
        Decode(wide).answer(inputs, 4)


def test_without_room_for_graphs_it_goes_on(monkeypatch: Patch) -> None:
    shapes = fixed(model("llava"))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Graphs, "_made", full)
    with pytest.warns(UserWarning, match="without CUDA graphs.*no room"):
        assert torch.equal(shapes.answer(batch("llava"), 3), plain("llava").ids)
    assert shapes.graphs is None
    assert torch.equal(shapes.answer(batch("llava"), 3), plain("llava").ids)


def test_a_site_at_the_decoder_s_first_layer() -> None:
    core, inputs = model("llava"), batch("llava")
    with attach(core, ApET(schedule="encoder=80%,0=40%", basis=3)):
        assert torch.equal(Decode(core).answer(inputs, 4), generated(core, inputs, 4))


def test_a_failing_step_leaves_the_model_as_it_was(monkeypatch: Patch) -> None:
    core = model("llava", flash.NAME)
    monkeypatch.setattr(core.lm_head, "forward", once(core.lm_head.forward))
    with pytest.raises(RuntimeError, match="second time"):
        Decode(core).answer(batch("llava"), 3)
    assert core.model.language_model.config._attn_implementation == flash.NAME
    assert not any(module._forward_pre_hooks for module in core.modules())


def once(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    calls: list[int] = []

    def wrapped(hidden: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("the second time")
        return call(hidden)

    return wrapped


@pytest.mark.gpu
@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_graphs_replay_what_steps_say(family: str, inference: bool) -> None:
    """Captured in inference mode and replayed outside it, too; batches of other shapes share their storage."""
    core = tiny.model(family).cuda()
    decode, plain = Decode(core), Decode(core)
    plain.forget()
    batches = [
        {key: value.cuda() for key, value in inputs.items()}
        for inputs in (batch(family), alone(family, 0))
    ]
    for name in ("vanilla", "apet"):
        with attach(core, make(name, family)):
            for inputs in (*batches, *batches, *batches):
                with torch.inference_mode(inference):
                    found = decode.answer(inputs, 40)
                assert torch.equal(found, plain.answer(inputs, 40))
    assert decode.graphs is not None
    assert all(steps._graph is not None for steps in decode.graphs._kept.values())
    assert decode.graphs._kept
    decode.forget()
    with torch.no_grad():
        assert torch.equal(decode.answer(batches[0], 5), plain.answer(batches[0], 5))
