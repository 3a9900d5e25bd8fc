"""Readers and workers by themselves, without Ray: the steps of a job, one after the other in this process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from apet.decoding.graph import Graphs
from pipelines.config.eval_config import EvalConfig
from pipelines.data.manifest import Manifest
from pipelines.data.rows import Medium
from pipelines.inference import benchmark_job
from pipelines.inference.failure_tracker import MAX_SOLO_DEATHS, FailureTracker
from pipelines.inference.job_spec import job_of
from pipelines.inference.plan import prepared
from pipelines.inference.worker import InferenceWorker, check_output_visible
from pipelines.results import answers
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from tests.support import tiny

Checkpoint = Callable[[str], Path]


class Died(BaseException):
    """The end of a worker's process."""


def answered(
    config: EvalConfig, worker: type[InferenceWorker] = InferenceWorker
) -> tuple[dict[str, pa.Table], int]:
    """The answers by point, and how often who read or answered died of it. Ray would start them again likewise."""
    todo, book, deaths = benchmark_job.BenchmarkJob.of(config), FailureTracker(), 0
    todo.begin(RunRecord("job"))
    job = job_of([todo], threads=1)
    pointers = todo.missing().append_column(
        "section", pa.array(np.zeros(len(todo.index), np.int16))
    )

    def restarted(do: Callable[..., Any], *given: Any) -> Any:
        nonlocal deaths
        while True:
            try:
                return do(*given)
            except Died:
                deaths += 1

    for block in restarted(lambda: list(prepared(pointers, job, book, 4 * job.batch_size))):
        restarted(lambda rows: worker(job, book)(rows), block)
    return {unit.point.name: answers.read(unit.folder) for unit in todo.units}, deaths


def write(folder: Path, rows: Sequence[dict[str, str]]) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def errors(table: pa.Table) -> dict[str, str]:
    """By row, of those that have one."""
    bad = table.filter(pc.equal(table["status"], "error"))
    return dict(zip(bad["row_id"].to_pylist(), bad["error"].to_pylist(), strict=True))


def asked(model: Path, folder: Path, ids: Sequence[str], methods: tuple[str, ...]) -> EvalConfig:
    """Questions about little pictures, which have the rows' names."""
    rows = []
    for number, name in enumerate(ids):
        tiny.image(20 + 3 * number, 20, seed=number).save(folder / f"{name}.png")
        rows.append({"id": name, "media": f"{name}.png", "question": "What is this?"})
    return EvalConfig.of(
        "image",
        model=str(model),
        data=write(folder, rows),
        output=str(folder / "out"),
        methods=methods,
        budgets=("50%",),
        max_new_tokens=2,
        batch_size=4,
    )


def test_a_worker_that_does_not_see_the_output(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine: it would write to its own disk. One that sees it late, or cannot ask now, goes on."""
    config = asked(checkpoint("llava"), tmp_path, "ab", ("vanilla",))
    job = job_of([benchmark_job.BenchmarkJob.of(config)], threads=1)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(
        FileNotFoundError,
        match=r"does not see .*; --output must be a folder that all machines share",
    ):
        InferenceWorker(job, FailureTracker())
    looks = iter([False, False, True])
    monkeypatch.setattr(Folder, "exists", lambda *_: next(looks))
    check_output_visible(job)
    assert list(looks) == []

    def busy(*_: object) -> bool:
        raise OSError("SLOW_DOWN")

    monkeypatch.setattr(Folder, "exists", busy)
    check_output_visible(job)


def test_batches_are_limited_by_tokens(checkpoint: Checkpoint, tmp_path: Path) -> None:
    config = asked(checkpoint("llava"), tmp_path, list("abcdefg"), ("vanilla", "uniform"))
    whole, _ = answered(replace(config, output=str(tmp_path / "whole")))
    tokens = set(
        whole["vanilla"]["prompt_tokens"].to_pylist()
    )  # the same question about one picture
    cut, _ = answered(replace(config, batch_tokens=3 * (max(tokens) + config.max_new_tokens)))
    for name, table in cut.items():
        assert sorted(table["batch_rows"].to_pylist()) == [1, 3, 3, 3, 3, 3, 3]
        assert sorted(whole[name]["batch_rows"].to_pylist()) == [3, 3, 3, 4, 4, 4, 4]
        found, want = (
            each.select(["row_id", "prediction"]).sort_by("row_id") for each in (table, whole[name])
        )
        assert found == want


class Mortal(InferenceWorker):
    """Dies of `poison` under every method, and of `venom` under the unmodified model alone."""

    def generate(
        self, section: Any, method: Any, rows: Sequence[Any], *more: Any, **how: Any
    ) -> list[dict[str, Any]]:
        names = {row.row_id for row in rows}
        if "poison" in names or ("venom" in names and method.name == "vanilla"):
            raise Died
        return super().generate(section, method, rows, *more, **how)


@pytest.mark.parametrize(
    ("name", "lost", "deaths"),
    [
        (
            "venom",
            {"vanilla": {"venom"}, "uniform-50pct": set(), "random-50pct": set()},
            1 + MAX_SOLO_DEATHS,
        ),
        (
            "poison",
            {"vanilla": {"poison"}, "uniform-50pct": {"poison"}, "random-50pct": {"poison"}},
            1 + 2 * MAX_SOLO_DEATHS,
        ),
    ],
)
def test_a_row_that_workers_die_of_is_lost_to_the_methods_it_kills(
    checkpoint: Checkpoint, tmp_path: Path, name: str, lost: dict[str, set[str]], deaths: int
) -> None:
    """One that has killed under two of them kills under all: no further worker is spent on it."""
    config = asked(
        checkpoint("llava"), tmp_path, ["a", name, "b", "c"], ("vanilla", "uniform", "random")
    )
    tables, died = answered(config, Mortal)
    assert died == deaths
    assert {point: set(errors(table)) for point, table in tables.items()} == lost
    for table in tables.values():
        assert sorted(table["row_id"].to_pylist()) == sorted(["a", "b", "c", name])
        assert all(error.startswith("WorkerDied") for error in errors(table).values())


class Starved(InferenceWorker):
    """Has no memory for the row c, not even alone."""

    def generate(
        self, section: Any, method: Any, rows: Sequence[Any], *more: Any, **how: Any
    ) -> list[dict[str, Any]]:
        if "c" in [row.row_id for row in rows]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().generate(section, method, rows, *more, **how)


def test_a_row_that_fits_nowhere_is_an_error_row(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tables, _ = answered(asked(checkpoint("llava"), tmp_path, "abcd", ("vanilla",)), Starved)
    assert errors(tables["vanilla"]) == {
        "c": "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"
    }


class Tight(InferenceWorker):
    """Has memory for a batch, or for what graphs hold."""

    def load(self) -> None:
        super().load()
        self.decode.graphs = Graphs(self.decode.family)

    def generate(
        self, section: Any, method: Any, rows: Sequence[Any], *more: Any, **how: Any
    ) -> list[dict[str, Any]]:
        if self.decode.graphs is not None and rows[0].row_id != "warm-up":
            raise torch.OutOfMemoryError
        return super().generate(section, method, rows, *more, **how)


@pytest.mark.parametrize("names", ["abcd", "a"])
def test_graphs_go_before_a_batch_is_halved(
    checkpoint: Checkpoint, tmp_path: Path, names: str
) -> None:
    config = asked(checkpoint("llava"), tmp_path, names, ("vanilla",))
    tables, _ = answered(config, Tight)
    assert not errors(tables["vanilla"])
    assert tables["vanilla"]["batch_rows"].to_pylist() == [len(names)] * len(names)


class Deadly(Manifest):
    """Who reads `poison.png` dies."""

    def fetch(self, medium: Medium) -> Any:
        if medium.path == "poison.png":
            raise Died
        return super().fetch(medium)


def test_a_row_that_readers_die_of_is_lost(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = benchmark_job.manifest_of
    monkeypatch.setattr(benchmark_job, "manifest_of", lambda *given: Deadly(**vars(find(*given))))
    config = asked(checkpoint("llava"), tmp_path, ["a", "poison", "b"], ("vanilla", "uniform"))
    tables, deaths = answered(config)
    assert deaths == 1 + MAX_SOLO_DEATHS
    for table in tables.values():
        assert errors(table) == {"poison": "WorkerDied: the worker died each time it read this row"}
        assert sorted(table["row_id"].to_pylist()) == ["a", "b", "poison"]


def test_videos(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = []
    for number in range(4):
        with av.open(str(tmp_path / f"{number}.mp4"), "w") as out:
            stream = out.add_stream("mpeg4", rate=10, width=48, height=32)
            stream.pix_fmt = "yuv420p"
            for frame in tiny.video(12 + 4 * number, 48, 32, seed=number):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
            out.mux(stream.encode(None))
        rows.append({"id": f"{number}", "media": f"{number}.mp4", "question": "What happens?"})
    (tmp_path / "torn.mp4").write_bytes((tmp_path / "0.mp4").read_bytes()[:300])
    rows.append({"id": "torn", "media": "torn.mp4", "question": "What happens?"})
    config = EvalConfig.of(
        "video",
        model=str(checkpoint("video_llava")),
        data=write(tmp_path, rows),
        output=str(tmp_path / "out"),
        methods=("vanilla", "apet"),
        budgets=("50%",),
        max_new_tokens=4,
        frames=4,
    )
    tables, _ = answered(config)
    assert set(tables) == {"vanilla", "apet-50pct"}
    for name, table in tables.items():
        assert set(errors(table)) == {"torn"}
        fine = table.filter(pc.equal(table["status"], "ok"))
        assert sorted(fine["row_id"].to_pylist()) == ["0", "1", "2", "3"]
        assert set(fine["visual_tokens_in"].to_pylist()) == {4 * 36}
        assert set(fine["budget"].to_pylist()) == {144.0 if name == "vanilla" else 72.0}
