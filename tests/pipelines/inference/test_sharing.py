"""Questions about the same picture: read, encoded and prefilled once, with the same answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from pipelines.config.eval_config import EvalConfig
from pipelines.data.media import images
from pipelines.data.row_index import group_by_media
from pipelines.data.rows import Row
from pipelines.inference import plan
from pipelines.inference.batching import split_into_batches
from pipelines.inference.benchmark_job import BenchmarkJob
from pipelines.inference.encoded_prompt import EncodedPrompt, PromptEncoder
from pipelines.inference.engines.transformers import TransformersEngine
from pipelines.inference.failure_tracker import FailureTracker
from pipelines.inference.job_spec import job_spec
from pipelines.inference.plan import prepare_rows
from pipelines.inference.prepared_row import PreparedRow
from pipelines.inference.preprocess import Preprocessor
from tests.pipelines.inference.test_worker import Checkpoint, run_job, write
from tests.support import samples, tiny
from tests.support.attached import EVERY_FAMILY

QUESTIONS = ("What is this?", "How many are there, and why?", "Is it red?\nAnswer yes or no.")
# A copy has the same content under another name, from which methods that draw would draw otherwise.
PICTURES = (("one.png",), ("two.png",), ("one.png", "two.png"), ("copy.png",))


@pytest.fixture
def config(checkpoint: Checkpoint, tmp_path: Path) -> Callable[..., EvalConfig]:
    """Makes the config of a job: each question about each picture, and about both of them."""
    for name, size in (("one.png", (30, 20)), ("two.png", (24, 44)), ("copy.png", (30, 20))):
        tiny.image(*size, seed=size[0]).save(tmp_path / name)
    rows: list[Any] = [
        {"id": f"{number}-{'+'.join(media)}", "media": list(media), "question": question}
        for number, question in enumerate(QUESTIONS)
        for media in PICTURES
    ]
    data = write(tmp_path, rows)

    def make(family: str, methods: Sequence[str], **values: Any) -> EvalConfig:
        share = values.get("share", "prefix")
        return EvalConfig.of(
            "image",
            model=str(checkpoint(family)),
            data=data,
            methods=tuple(methods),
            budgets=("80%",),
            output=str(tmp_path / values.pop("output", share)),
            **{"max_new_tokens": 4, **values},
        )

    return make


def columns(table: pa.Table, *names: str) -> dict[str, Any]:
    """Values of some columns by row id."""
    rows = table.select(["row_id", *names]).to_pylist()
    return {row.pop("row_id"): row for row in rows}


@EVERY_FAMILY
def test_answers_do_not_depend_on_what_is_shared(
    family: str, config: Callable[..., EvalConfig]
) -> None:
    methods = ("vanilla", "apet:basis=4", "random", "fastv")
    unshared, _ = run_job(config(family, methods, share="none"))
    for share in ("prefix", "encoder"):
        answers, _ = run_job(config(family, methods, share=share))
        for method, table in answers.items():
            same = ("prediction", "visual_tokens_kept", "prompt_tokens", "error", "schedule")
            assert columns(table, *same) == columns(unshared[method], *same)
            shared = share == "prefix" and not method.startswith("fastv")
            assert set(table["shared_rows"].to_pylist()) == {3 if shared else 1}
            assert (table["shared_prefill_ms"].null_count == 0) == shared


@pytest.mark.parametrize("family", tiny.VIDEO_FAMILIES)
def test_clips_are_shared_like_pictures(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    # Seven seconds: the times of Qwen's frames lie beyond their heights and widths.
    (tmp_path / "clip.mp4").write_bytes(samples.clip("mp4", "libx264", frames=175))
    rows = [
        {"id": str(number), "media": "clip.mp4", "question": question}
        for number, question in enumerate(QUESTIONS)
    ]
    config = EvalConfig.of(
        "video",
        model=str(checkpoint(family)),
        data=write(tmp_path, rows),
        methods=("vanilla", "apet:basis=4", "random"),
        budgets=("80%",),
        max_new_tokens=4,
    )
    shared, _ = run_job(replace(config, output=str(tmp_path / "shared")))
    unshared, _ = run_job(replace(config, output=str(tmp_path / "unshared"), share="none"))
    for method, table in shared.items():
        same = ("prediction", "visual_tokens_kept", "error")
        assert columns(table, *same) == columns(unshared[method], *same)
        assert table["shared_rows"].to_pylist() == [3, 3, 3]


def test_answer_does_not_depend_on_other_questions(config: Callable[..., EvalConfig]) -> None:
    """A job of the first questions alone, and one with a question a batch."""
    whole, _ = run_job(config("llava", ("apet:basis=4", "random")))
    first, _ = run_job(config("llava", ("apet:basis=4", "random"), limit=3, output="first"))
    single, _ = run_job(config("llava", ("apet:basis=4", "random"), batch_size=1, output="single"))
    for method, table in whole.items():
        everything = columns(table, "prediction")
        assert columns(single[method], "prediction") == everything
        few = columns(first[method], "prediction")
        assert len(few) == 3
        assert few.items() <= everything.items()


def test_rows_of_a_prefix_pay_equal_parts_of_it(config: Callable[..., EvalConfig]) -> None:
    names = ("prefill_ms", "shared_prefill_ms", "shared_rows", "batch_rows")
    (shared,) = run_job(config("llava", ("vanilla",)))[0].values()
    rows = shared.select(names).to_pylist()
    assert {row["batch_rows"] for row in rows} == {len(rows)}
    own = [row["prefill_ms"] - row["shared_prefill_ms"] / row["shared_rows"] for row in rows]
    assert min(own) > 0
    assert own == pytest.approx([own[0]] * len(own))  # a part of what follows the prefixes
    (unshared,) = run_job(config("llava", ("vanilla",), share="none"))[0].values()
    assert unshared["shared_prefill_ms"].null_count == len(unshared)
    assert min(unshared["prefill_ms"].to_pylist()) > 0


def test_picture_is_decoded_once_and_crosses_once(
    config: Callable[..., EvalConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []
    decode = images.decode

    def count(content: Any) -> Any:
        decoded.append(content)
        return decode(content)

    monkeypatch.setattr(images, "decode", count)
    job = BenchmarkJob.of(config("llava", ("vanilla",)))
    spec = job_spec([job], threads=1)
    pointers = group_by_media(job.missing()).append_column(
        "benchmark_index", pa.array([0] * len(job.index), pa.int16())
    )
    (block,) = prepare_rows(pointers, spec, FailureTracker(), 64)
    assert len(decoded) == 5  # one, two, both, and the copy
    assert len(block["media"].combine_chunks().dictionary) == 3  # the copy is equal
    rows = PreparedRow.from_table(block)
    assert len({row.prefix_key for row in rows}) == 4
    assert rows[0].media is rows[1].media


def test_prepared_rows_are_divided_by_the_size_of_their_media(
    config: Callable[..., EvalConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = BenchmarkJob.of(config("llava", ("vanilla",)))
    spec = job_spec([job], threads=1)
    pointers = group_by_media(job.missing()).append_column(
        "benchmark_index", pa.array([0] * len(job.index), pa.int16())
    )
    (whole,) = prepare_rows(pointers, spec, FailureTracker(), 64)
    largest = max(map(len, whole["media"].combine_chunks().dictionary.to_pylist()))
    tokens = max(map(len, whole["inputs"].to_pylist()))
    monkeypatch.setattr(plan, "MAX_BLOCK_BYTES", 2 * (largest + 3 * tokens))
    parts = list(prepare_rows(pointers, spec, FailureTracker(), 64))
    assert len(parts) > 1
    for part in parts:
        media = part["media"].combine_chunks()
        assert len(media.dictionary) == len(media.indices.unique())  # none of another part
        assert part.nbytes < whole.nbytes
    rows = [row for part in parts for row in PreparedRow.from_table(part)]
    assert rows == PreparedRow.from_table(whole)


@EVERY_FAMILY
def test_prompt_behind_known_media_equals_the_processors(
    family: str, config: Callable[..., EvalConfig]
) -> None:
    made = config(family, ("vanilla",))
    manifest = BenchmarkJob.of(made).manifest
    rows = sorted(manifest.read(manifest.index()), key=lambda row: str(row.media))
    preprocess = Preprocessor(made)
    encode, followed = PromptEncoder(preprocess), 0
    for row in rows:
        latest = encode._latest
        prompt = encode(row, manifest)
        followed += encode._latest is latest
        text, inputs = preprocess(row, manifest)
        want = EncodedPrompt.of(text, inputs, preprocess.placeholders, preprocess.special)
        assert (prompt.text, prompt.media, prompt.prefix_key) == (text, want.media, want.prefix_key)
        assert prompt.tokens.keys() == want.tokens.keys()
        assert all((prompt.tokens[name] == tensor).all() for name, tensor in want.tokens.items())
    assert followed == 8


def test_batches_count_a_prefix_once() -> None:
    rows = [
        PreparedRow(0, Row(f"{key}{number}"), (), tokens=110, prefix_tokens=100, prefix_key=key)
        for number in range(30)
        for key in "ab"
    ]
    batches = list(split_into_batches(rows, 4, None, 10, share=True))
    # four rows of 120 tokens that share nothing are 480: a prefix of 100 and 19 rows of 20
    assert [len(batch) for batch in batches] == [19, 14, 19, 8]
    assert [row.prefix_key for batch in batches for row in batch] == ["a"] * 30 + ["b"] * 30
    assert [len(batch) for batch in split_into_batches(rows, 4, None, 10)] == [4] * 15
    limited = split_into_batches(rows, 4, 600, 10, share=True)  # of memory: a copy for every row
    assert max(map(len, limited)) == 5


def test_engine_shares_only_with_methods_that_read_no_question(
    config: Callable[..., EvalConfig],
) -> None:
    def shares(*methods: str, **values: Any) -> bool:
        job = BenchmarkJob.of(config("llava", methods, **values))
        return TransformersEngine(job_spec([job], threads=1), torch.device("cpu")).shares_prefixes

    assert shares("vanilla")
    assert shares("fastv", "vanilla")
    assert not shares("fastv")
    assert not shares("vanilla", share="encoder")
