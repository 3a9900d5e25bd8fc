"""`Decode` gives the answers of `generate`, wherever tokens are dropped and rows end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.stopping_criteria import StoppingCriteria

from apet import ApET, Decode, attach
from apet.decoding import cuda_graphs, decode_step, growing_steps
from apet.decoding import decode as decode_module
from apet.decoding.cuda_graphs import FixedSteps, GraphStore
from pipelines.inference.engines.generation import Sampler
from tests.apet.models.test_sliding_window import mistral
from tests.support import flash, tiny
from tests.support.attached import (
    EVERY_FAMILY,
    SITE_KINDS,
    batch_inputs,
    build_method,
    compressed,
    example_rows,
    model,
    row_inputs,
    uncompressed,
)

TOKENS = 5
Patch = pytest.MonkeyPatch
Step = tuple[int, int]  # rows, and the columns of the last layer's cache


def generated(
    model: PreTrainedModel, inputs: dict[str, Tensor], tokens: int = TOKENS, **more: object
) -> Tensor:
    out = model.generate(**inputs, do_sample=False, max_new_tokens=tokens, **more)
    return out[:, inputs["input_ids"].shape[1] :]


def decode_with_fixed_shapes(model: PreTrainedModel) -> Decode:
    """Decode in the fixed shapes of graphs, which are not captured without CUDA."""
    decode = Decode(model)
    decode.graphs = GraphStore(decode.family)
    return decode


def set_early_ends(patch: Patch, model: PreTrainedModel, answers: Tensor) -> None:
    """Make two tokens ends: the first row's second one and the last row's third."""
    patch.setattr(
        model.generation_config, "eos_token_id", [int(answers[0, 1]), int(answers[-1, 2])]
    )


def raise_assertion(*_: object, **__: object) -> None:
    raise AssertionError


@pytest.fixture
def steps(monkeypatch: Patch) -> list[Step]:
    """All decode steps of the test."""
    recorded: list[Step] = []
    step = decode_step.decode_step

    def record(
        family: object, tokens: Tensor, positions: Tensor, cache: object, masks: object
    ) -> Tensor:
        logits = step(family, tokens, positions, cache, masks)
        recorded.append((len(tokens), cache.layers[-1].keys.shape[2]))
        return logits

    for module in (growing_steps, cuda_graphs):
        monkeypatch.setattr(module, "decode_step", record)
    return recorded


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *((family, "apet") for family in tiny.FAMILIES),
        *(("llava", name) for name in ("vanilla", *SITE_KINDS) if name != "apet"),
        ("qwen3_vl", "vanilla"),
        ("qwen2_5_vl", "sparsevlm"),
    ],
)
def test_answers_equal_those_of_generate(
    family: str, name: str, monkeypatch: Patch, steps: list[Step]
) -> None:
    """Rows of all lengths, with several pictures, none, or videos, and two early ends."""
    core = model(family)
    set_early_ends(monkeypatch, core, compressed(family, name)[0].ids)
    shapes = decode_with_fixed_shapes(core)
    with attach(core, build_method(name, family)):
        want = generated(core, batch_inputs(family))
        assert torch.equal(Decode(core).answer(batch_inputs(family), TOKENS), want)
        assert steps
        for _ in range(2):  # a shape is captured when it comes for the second time
            assert torch.equal(shapes.answer(batch_inputs(family), TOKENS), want)
    assert steps[-1][1] % cuda_graphs.WIDTH_MULTIPLE == 0
    assert (want == core.generation_config.pad_token_id).any()


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_row_gets_the_same_answer_alone_as_in_a_batch(family: str, monkeypatch: Patch) -> None:
    core, decode = model(family), Decode(model(family))
    shapes = decode_with_fixed_shapes(model(family))
    set_early_ends(monkeypatch, core, compressed(family, "apet")[0].ids)
    pad = core.generation_config.pad_token_id
    with attach(core, build_method("apet", family)):
        together = decode.answer(batch_inputs(family), TOKENS)
        for row in range(len(example_rows(family))):
            for either in (decode, shapes, shapes):
                alone = either.answer(row_inputs(family, row), TOKENS)[0].tolist()
                padding = [pad] * (together.shape[1] - len(alone))
                assert together[row].tolist() == alone + padding


@pytest.mark.parametrize(
    ("family", "attn"),
    [("llava", "eager"), ("llava", flash.NAME), ("qwen3_vl", flash.NAME), ("qwen3_vl", "eager")],
)
def test_kernels_give_the_answers_of_generate(family: str, attn: str) -> None:
    core = model(family, attn)
    with attach(core, build_method("apet", family)):
        want = generated(core, batch_inputs(family), 4)
        assert torch.equal(Decode(core).answer(batch_inputs(family), 4), want)
        assert torch.equal(Decode(core).answer(row_inputs(family, 0), 4), want[:1])
        shapes = decode_with_fixed_shapes(core)
        for _ in range(2):
            assert torch.equal(shapes.answer(batch_inputs(family), 4), want)
    assert core.model.language_model.config._attn_implementation == attn


@EVERY_FAMILY
def test_answers_without_a_method_equal_those_of_generate(family: str) -> None:
    core, decode = model(family), Decode(model(family))
    text_only = row_inputs(family, 2)
    for inputs in (batch_inputs(family), text_only):
        want = generated(core, inputs, 3)
        assert torch.equal(decode.answer(inputs, 3), want)
        assert torch.equal(decode.answer(inputs, 1), want[:, :1])
    assert not any(module._forward_pre_hooks for module in core.modules())


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_answers_longer_than_the_free_columns_move_to_new_caches(
    family: str, monkeypatch: Patch, steps: list[Step]
) -> None:
    for module in (decode_step, growing_steps, cuda_graphs):
        monkeypatch.setattr(module, "MAX_STEPS", 2)
    monkeypatch.setattr(cuda_graphs, "WIDTH_MULTIPLE", 3)
    core, shapes = model(family), decode_with_fixed_shapes(model(family))
    with attach(core, build_method("apet", family)):
        want = generated(core, batch_inputs(family), 8)
        steps.clear()
        for _ in range(3):
            assert torch.equal(shapes.answer(batch_inputs(family), 8), want)
        assert len(shapes.graphs._captured) > 1
        # All steps have fixed shapes, also the last one, which is alone in its cache.
        assert all(columns % 3 == 0 for _, columns in steps)
        steps.clear()
        assert torch.equal(Decode(core).answer(batch_inputs(family), 8), want)
        first = steps[0][1]
        assert [columns for _, columns in steps[:3]] == [first, first + 1, first + 2]
        # When shapes recur, the first one that came twice stays captured; the others never are.
        monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 1)
        limited = decode_with_fixed_shapes(core)
        for _ in range(3):
            assert torch.equal(limited.answer(batch_inputs(family), 8), want)
        assert len(limited.graphs._captured) == 1


def test_shape_is_captured_when_it_comes_again_even_for_a_single_step(
    monkeypatch: Patch, steps: list[Step]
) -> None:
    """The second batch of a shape, which is captured, is computed like the first."""
    captured: list[object] = []
    monkeypatch.setattr(FixedSteps, "capture", lambda fixed, pool: captured.append(fixed))
    core, shapes = model("llava"), decode_with_fixed_shapes(model("llava"))
    with attach(core, build_method("apet", "llava")):
        want = generated(core, batch_inputs("llava"), 2)
        for times in range(3):
            assert torch.equal(shapes.answer(batch_inputs("llava"), 2), want)
            assert len(captured) == min(times, 1)
    assert [*shapes.graphs._captured.values()] == captured
    assert len(steps) == 3
    assert len(set(steps)) == 1
    assert steps[0][1] % cuda_graphs.WIDTH_MULTIPLE == 0


def test_nan_in_masked_columns_does_not_change_answers() -> None:
    """A batch that overflowed leaves NaN in the storage."""
    core, shapes = model("llava"), decode_with_fixed_shapes(model("llava"))
    with attach(core, build_method("apet", "llava")):
        want = [shapes.answer(batch_inputs("llava"), 4) for _ in range(2)][1]
        shapes.graphs._storage.fill_(torch.nan)
        assert torch.equal(shapes.answer(batch_inputs("llava"), 4), want)


def test_finished_rows_leave_when_half_are_done(monkeypatch: Patch, steps: list[Step]) -> None:
    core = model("qwen2_5_vl")
    ids = uncompressed("qwen2_5_vl").ids
    monkeypatch.setattr(
        core.generation_config,
        "eos_token_id",
        sorted({*ids[:2, 1].tolist(), *ids[2:3, 2].tolist()}),
    )
    want = generated(core, batch_inputs("qwen2_5_vl"), 6)
    ends = [(row != core.generation_config.pad_token_id).sum().item() for row in want]
    assert torch.equal(Decode(core).answer(batch_inputs("qwen2_5_vl"), 6), want)
    assert steps[0][0] == len(ends)
    assert steps[-1][0] < len(ends)
    assert all(
        count < 2 * sum(end > step + 1 for end in ends) for step, (count, _) in enumerate(steps)
    )


def test_sampling_noise_of_a_row_is_the_same_alone(monkeypatch: Patch) -> None:
    core, seeds = model("llava"), [5, 6, 7]

    def noise(row_seeds: list[int]) -> LogitsProcessorList:
        return LogitsProcessorList([Sampler(1.0, row_seeds)])

    first = generated(core, batch_inputs("llava"), logits_processor=noise(seeds))
    set_early_ends(monkeypatch, core, first)
    want = generated(core, batch_inputs("llava"), logits_processor=noise(seeds))
    assert torch.equal(Decode(core).answer(batch_inputs("llava"), TOKENS, noise(seeds)), want)
    one = Decode(core).answer(row_inputs("llava", 1), TOKENS, noise([6]))[0]
    assert one.tolist() == want[1, : len(one)].tolist()


def test_stopping_criteria_run_once_per_token() -> None:
    lengths: list[int] = []

    class StopAtThird(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
            lengths.append(input_ids.shape[1])
            return torch.full((len(input_ids),), len(lengths) == 3)

    core, inputs = model("llava"), batch_inputs("llava")
    answer = Decode(core).answer(inputs, 9, stopping_criteria=StoppingCriteriaList([StopAtThird()]))
    width = inputs["input_ids"].shape[1]
    assert lengths == [width + 1, width + 2, width + 3]
    assert torch.equal(answer, uncompressed("llava").ids[:, :3])


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 1},
        {"begin_suppress_tokens": list(range(97, 120))},
        {"forced_eos_token_id": 3},
        {"min_new_tokens": 4},
        {"eos_token_id": None},
    ],
    ids=lambda options: next(iter(options)),
)
def test_generation_config_of_a_checkpoint_is_respected(
    options: dict[str, object], monkeypatch: Patch
) -> None:
    core = model("llava")
    before = Decode(core).answer(batch_inputs("llava"), 8)
    for name, value in options.items():
        monkeypatch.setattr(core.generation_config, name, value)
    want = generated(core, batch_inputs("llava"), 8)
    assert torch.equal(Decode(core).answer(batch_inputs("llava"), 8), want)
    assert "penalty" not in str(options) or not torch.equal(want, before)


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 2}, {"cache_implementation": "static"}],
    ids=lambda options: next(iter(options)),
)
def test_other_strategies_are_left_to_generate(
    options: dict[str, object], monkeypatch: Patch
) -> None:
    core = model("llava")
    monkeypatch.setattr(decode_module, "GrowingSteps", raise_assertion)
    for name, value in options.items():
        monkeypatch.setattr(core.generation_config, name, value)
    assert torch.equal(
        Decode(core).answer(batch_inputs("llava"), 3), generated(core, batch_inputs("llava"), 3)
    )


def test_windows_within_the_answer_are_left_to_generate(monkeypatch: Patch) -> None:
    inputs = tiny.inputs("llava", example_rows("llava"))
    width = inputs["input_ids"].shape[1]
    wide, narrow = mistral(width + 4), mistral(width - 30)
    assert torch.equal(Decode(wide).answer(inputs, 4), generated(wide, inputs, 4))
    monkeypatch.setattr(decode_module, "GrowingSteps", raise_assertion)
    assert torch.equal(Decode(narrow).answer(inputs, 4), generated(narrow, inputs, 4))
    with pytest.raises(AssertionError):
        Decode(wide).answer(inputs, 4)


def test_answers_continue_without_graphs_when_memory_is_short(monkeypatch: Patch) -> None:
    shapes = decode_with_fixed_shapes(model("llava"))

    def raise_out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(GraphStore, "_new_steps", raise_out_of_memory)
    with pytest.warns(UserWarning, match="without CUDA graphs.*no room"):
        assert torch.equal(shapes.answer(batch_inputs("llava"), 3), uncompressed("llava").ids)
    assert shapes.graphs is None
    assert torch.equal(shapes.answer(batch_inputs("llava"), 3), uncompressed("llava").ids)


def test_site_at_the_first_decoder_layer_gives_the_answer_of_generate() -> None:
    core, inputs = model("llava"), batch_inputs("llava")
    with attach(core, ApET(schedule="encoder=80%,0=40%", basis=3)):
        assert torch.equal(Decode(core).answer(inputs, 4), generated(core, inputs, 4))


def test_failed_step_restores_the_model(monkeypatch: Patch) -> None:
    core = model("llava", flash.NAME)
    monkeypatch.setattr(core.lm_head, "forward", fail_after_first(core.lm_head.forward))
    with pytest.raises(RuntimeError, match="second time"):
        Decode(core).answer(batch_inputs("llava"), 3)
    assert core.model.language_model.config._attn_implementation == flash.NAME
    assert not any(module._forward_pre_hooks for module in core.modules())


def fail_after_first(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
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
def test_captured_graphs_give_the_answers_of_steps(family: str, inference: bool) -> None:
    """Graphs may be replayed outside inference mode; batches of other shapes share storage."""
    core = tiny.model(family).cuda()
    decode, uncaptured = Decode(core), Decode(core)
    uncaptured.forget()
    batches = [
        {key: value.cuda() for key, value in inputs.items()}
        for inputs in (batch_inputs(family), row_inputs(family, 0))
    ]
    for name in ("vanilla", "apet"):
        with attach(core, build_method(name, family)):
            for inputs in (*batches, *batches, *batches):
                with torch.inference_mode(inference):
                    answer = decode.answer(inputs, 40)
                assert torch.equal(answer, uncaptured.answer(inputs, 40))
    assert decode.graphs is not None
    assert all(steps._graph is not None for steps in decode.graphs._captured.values())
    assert decode.graphs._captured
    decode.forget()
    with torch.no_grad():
        assert torch.equal(decode.answer(batches[0], 5), uncaptured.answer(batches[0], 5))
