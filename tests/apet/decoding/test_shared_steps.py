"""Rows that share a prefix get the answers that they get from whole prompts."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.stopping_criteria import StoppingCriteria

from apet import Decode, attach
from apet.attention import packed_kernel
from apet.decoding import decode_step, growing_steps, shared_steps
from apet.decoding.cuda_graphs import GraphStore
from apet.decoding.shared_steps import Suffixes, next_positions
from apet.models import family_of
from pipelines.inference.engines.generation import Sampler
from tests.apet.models.test_sliding_window import mistral
from tests.support import tiny
from tests.support.attached import EVERY_FAMILY, build_method, example_rows, model

TOKENS = 5
Patch = pytest.MonkeyPatch

# They do not read the question, and act nowhere, at the encoder and in the decoder, inside the
# tower, at the encoder with a draw, and on the tower's attention.
METHODS = ("vanilla", "apet", "tome", "random", "visionzip")
PAIRS = [
    (family, name)
    for family in tiny.FAMILIES
    for name in METHODS
    if (family, name) != ("llava_onevision", "visionzip")
]

# Questions about each picture of `example_rows`: unequal numbers of unequal lengths.
QUESTIONS = {
    0: ["What is this?", "And now something rather longer?", "x"],
    1: ["Describe both in detail"],
    3: ["First <video> then <image>?", "First <video> then <image> and more words"],
}
# Tokens behind the media that belong to the prefix, by row; 0: the prefix ends in the picture.
EXTRA = {0: 0, 1: 4, 3: 0}


class SharedBatch(NamedTuple):
    prompts: dict[str, Tensor]  # whole, one for each question
    prefixes: dict[str, Tensor]
    suffixes: Suffixes


@cache
def shared_batch(family: str) -> SharedBatch:
    """The questions about the media of `example_rows`, whole and in two parts."""
    visual = family_of(model(family)).visual
    pictures, rows, counts = [], [], []
    for number, row in enumerate(example_rows(family)):
        questions = QUESTIONS.get(number, [])
        rows += [{**row, "text": question} for question in questions]
        if questions:
            pictures.append(rows[-len(questions)])
            counts.append(len(questions))
    alone = [tiny.inputs(family, [row]) for row in rows]
    starts = [sum(counts[:number]) for number in range(len(counts))]
    ends = [
        int(visual(alone[start]["input_ids"])[0].nonzero()[-1]) + 1 + EXTRA[number]
        for start, number in zip(starts, QUESTIONS, strict=False)
    ]
    pad = model(family).generation_config.pad_token_id
    prefixes = dict(tiny.inputs(family, pictures))
    shape = prefixes["input_ids"].shape
    for name in [name for name, value in prefixes.items() if value.shape == shape]:
        parts = [alone[start][name][0, :end] for start, end in zip(starts, ends, strict=True)]
        prefixes[name] = left_padded(parts, pad if name == "input_ids" else 0)
    rests = [
        inputs["input_ids"][0, end:]
        for inputs, end in zip(
            alone,
            [end for end, count in zip(ends, counts, strict=True) for _ in range(count)],
            strict=True,
        )
    ]
    valid = left_padded([torch.ones_like(rest) for rest in rests], 0).bool()
    suffixes = Suffixes(left_padded(rests, pad), valid, counts)
    return SharedBatch(dict(tiny.inputs(family, rows)), prefixes, suffixes)


def left_padded(rows: list[Tensor], pad: int) -> Tensor:
    width = max(map(len, rows))
    return torch.stack([torch.cat([row.new_full((width - len(row),), pad), row]) for row in rows])


def shared_answer(
    core: PreTrainedModel,
    batch: SharedBatch,
    tokens: int = TOKENS,
    *,
    fixed_shapes: bool = False,
    processor: LogitsProcessorList | None = None,
    stopping: StoppingCriteriaList | None = None,
) -> Tensor:
    decode = Decode(core)
    if fixed_shapes:  # those of graphs, which are not captured without CUDA
        decode.graphs = GraphStore(decode.family)
    return decode.answer(batch.prefixes, tokens, processor, stopping, suffixes=batch.suffixes)


@pytest.fixture
def computed_rows(monkeypatch: Patch) -> list[tuple[int, int]]:
    """Rows and prefixes of every call of the decoder with shared prefixes."""
    recorded: list[tuple[int, int]] = []
    run = shared_steps.run_decoder

    def record(
        family: object, tokens: Tensor, positions: Tensor, kv_cache: object, inputs: list[Any]
    ) -> Tensor:
        recorded.append((len(tokens), len(inputs[0]["shared_prefix"].keys)))
        return run(family, tokens, positions, kv_cache, inputs)

    monkeypatch.setattr(shared_steps, "run_decoder", record)
    return recorded


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_answers_equal_those_of_whole_prompts(
    family: str, name: str, monkeypatch: Patch, computed_rows: list[tuple[int, int]]
) -> None:
    """Two early ends, so that rows and prefixes leave."""
    core, batch = model(family), shared_batch(family)
    with attach(core, build_method(name, family)) as run:
        free = Decode(core).answer(batch.prompts, TOKENS)
        ends = [int(free[0, 1]), int(free[-1, 2])]
        monkeypatch.setattr(core.generation_config, "eos_token_id", ends)
        want, kept = Decode(core).answer(batch.prompts, TOKENS), [row.kept for row in run.stats]
        assert torch.equal(shared_answer(core, batch), want)
        firsts = [sum(batch.suffixes.counts[:n]) for n in range(len(batch.suffixes.counts))]
        assert [row.kept for row in run.stats] == [kept[first] for first in firsts]
    assert computed_rows[0] == (len(want), len(firsts))


@EVERY_FAMILY
def test_answers_in_fixed_shapes_equal_those_of_whole_prompts(family: str) -> None:
    core, batch = model(family), shared_batch(family)
    with attach(core, build_method("apet", family)):
        want = Decode(core).answer(batch.prompts, 3)
        assert torch.equal(shared_answer(core, batch, 3, fixed_shapes=True), want)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize("attn", ["eager", packed_kernel.NAME])
def test_kernels_of_the_model_do_not_change_answers(family: str, attn: str) -> None:
    core, batch = model(family, attn), shared_batch(family)
    with attach(core, build_method("apet", family)):
        want = Decode(core).answer(batch.prompts, 3)
        assert torch.equal(shared_answer(core, batch, 3), want)
        assert torch.equal(shared_answer(core, batch, 3, fixed_shapes=True), want)
    assert core.model.language_model.config._attn_implementation == attn


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_answers_longer_than_the_free_columns_move_to_new_caches(
    family: str, monkeypatch: Patch
) -> None:
    for module in (decode_step, growing_steps, shared_steps):
        monkeypatch.setattr(module, "MAX_STEPS", 2)
    core, batch = model(family), shared_batch(family)
    with attach(core, build_method("apet", family)):
        want = Decode(core).answer(batch.prompts, 8)
        assert torch.equal(shared_answer(core, batch, 8), want)


def test_finished_rows_and_their_prefixes_leave(
    monkeypatch: Patch, computed_rows: list[tuple[int, int]]
) -> None:
    core, batch = model("qwen2_5_vl"), shared_batch("qwen2_5_vl")
    counts = batch.suffixes.counts
    assert [*counts] == [3, 1, 2]

    class EndRows(StoppingCriteria):
        """Ends the last two rows at the first token, the first two at the second."""

        def __init__(self, width: int) -> None:
            self.width = width

        def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
            step = input_ids.shape[1] - self.width
            ended = [step >= 2, step >= 2, False, False, step >= 1, step >= 1]
            return torch.tensor(ended)

    def criteria(ids: Tensor) -> StoppingCriteriaList:
        return StoppingCriteriaList([EndRows(ids.shape[1])])

    width = batch.prefixes["input_ids"].shape[1] + batch.suffixes.ids.shape[1]
    want = Decode(core).answer(
        batch.prompts, TOKENS, stopping_criteria=criteria(batch.prompts["input_ids"])
    )
    got = shared_answer(core, batch, stopping=StoppingCriteriaList([EndRows(width)]))
    assert torch.equal(got, want)
    # Half of the rows have to be finished before any leave: then two prefixes are needed.
    assert computed_rows == [(6, 3), (6, 3), (2, 2), (2, 2), (2, 2)]


def test_sampling_noise_of_a_row_does_not_depend_on_sharing() -> None:
    core, batch = model("llava"), shared_batch("llava")
    seeds = [5, 6, 7, 8]

    def noise() -> LogitsProcessorList:
        return LogitsProcessorList([Sampler(1.0, seeds)])

    want = Decode(core).answer(batch.prompts, TOKENS, noise())
    assert torch.equal(shared_answer(core, batch, processor=noise()), want)
    assert not torch.equal(want, Decode(core).answer(batch.prompts, TOKENS))


@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}, {"forced_eos_token_id": 3}],
)
def test_logits_processors_see_whole_prompts(
    options: dict[str, object], monkeypatch: Patch
) -> None:
    core, batch = model("llava"), shared_batch("llava")
    for name, value in options.items():
        monkeypatch.setattr(core.generation_config, name, value)
    assert Decode(core).can_share(500)
    want = Decode(core).answer(batch.prompts, 8)
    assert torch.equal(shared_answer(core, batch, 8), want)


def test_logits_processors_see_no_padding_inside_prompts() -> None:
    core, batch = model("llava"), shared_batch("llava")
    seen: list[Tensor] = []

    def record(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(ids)
        return scores

    shared_answer(core, batch, 1, processor=LogitsProcessorList([record]))
    for ids, whole, mask in zip(
        seen[0], batch.prompts["input_ids"], batch.prompts["attention_mask"], strict=True
    ):
        prompt = whole[mask.bool()]
        assert torch.equal(ids[-len(prompt) :], prompt)
        assert (ids[: -len(prompt)] == core.generation_config.pad_token_id).all()


@pytest.mark.parametrize(
    "options",
    [
        {"min_new_tokens": 2},
        {"min_length": 2},
        {"begin_suppress_tokens": [5]},
        {"exponential_decay_length_penalty": (1, 1.5)},
        {"encoder_repetition_penalty": 1.5},
        {"num_beams": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_read_the_prompt_do_not_share(
    options: dict[str, object], monkeypatch: Patch
) -> None:
    core = model("llava")
    assert Decode(core).can_share(500)
    for name, value in options.items():
        monkeypatch.setattr(core.generation_config, name, value)
    assert not Decode(core).can_share(500)


def test_rows_longer_than_a_sliding_window_do_not_share() -> None:
    batch = shared_batch("llava")
    total = batch.prefixes["input_ids"].shape[1] + batch.suffixes.ids.shape[1] + 4
    wide, narrow = mistral(total), mistral(total - 1)
    assert Decode(wide).can_share(total)
    assert torch.equal(shared_answer(wide, batch, 4), Decode(wide).answer(batch.prompts, 4))
    assert not Decode(narrow).can_share(total)
    with pytest.raises(ValueError, match="can_share"):
        shared_answer(narrow, batch, 4)


@EVERY_FAMILY
def test_first_logits_in_bfloat16_are_close(family: str) -> None:
    """The tolerance is that of rows in batches, see `tests/apet/attach/test_batches.py`."""
    half, batch = model(family, dtype=torch.bfloat16), shared_batch(family)
    logits: list[Tensor] = []

    def record(ids: Tensor, scores: Tensor) -> Tensor:
        logits.append(scores)
        return scores

    recording = LogitsProcessorList([record])
    with attach(half, build_method("apet", family)):
        shared_answer(half, batch, 1, processor=recording)
        Decode(half).answer(batch.prompts, 1, recording)
    allowed = logits[1].isfinite()  # placeholders are suppressed
    torch.testing.assert_close(logits[0][allowed], logits[1][allowed], rtol=0, atol=0.25)


def test_prefixes_are_computed_before_the_call_back() -> None:
    core, batch = model("llava"), shared_batch("llava")
    lengths: list[int] = []
    hook = core.model.language_model.register_forward_pre_hook(lambda *_: lengths.append(0))
    during: list[int] = []
    try:
        Decode(core).answer(
            batch.prefixes,
            2,
            suffixes=batch.suffixes,
            after_prefixes=lambda: during.append(len(lengths)),
        )
    finally:
        hook.remove()
    assert during == [1]
    assert len(lengths) == 3


def test_position_after_a_picture_is_behind_all_its_dimensions() -> None:
    one_dimension = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]])
    assert next_positions(one_dimension).tolist() == [[3], [4]]
    # A picture of 1 x 2 x 3 tokens after one token of text
    picture = torch.tensor([[[1, 1, 1]], [[1, 1, 2]], [[1, 2, 3]]])
    assert next_positions(picture).tolist() == [[[4]]] * 3
    counted = torch.cat([torch.tensor([[[7, 8, 9]]]), picture])
    assert next_positions(counted).tolist() == [[[10]], [[4]], [[4]], [[4]]]


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_answers_on_a_gpu_equal_those_of_whole_prompts(family: str) -> None:
    """With steps that share prefixes, and with graphs, which a shape's second batch uses."""
    core, batch = tiny.model(family).cuda(), shared_batch(family)
    prompts, prefixes = (
        {name: value.cuda() for name, value in part.items()}
        for part in (batch.prompts, batch.prefixes)
    )
    decode, uncaptured = Decode(core), Decode(core)
    uncaptured.forget()
    with attach(core, build_method("apet", family)):
        want = uncaptured.answer(prompts, 8)
        for either in (uncaptured, decode, decode):
            assert torch.equal(either.answer(prefixes, 8, suffixes=batch.suffixes), want)
    assert decode.graphs is not None
    assert any(steps._graph is not None for steps in decode.graphs._captured.values())
