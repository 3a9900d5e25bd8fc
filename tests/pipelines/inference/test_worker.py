"""The stages of a job without Ray: preprocessing and answering, one after the other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from apet.decoding.cuda_graphs import GraphStore
from pipelines.config.eval_config import EvalConfig
from pipelines.data.manifest import Manifest
from pipelines.data.rows import Medium
from pipelines.inference import benchmark_job
from pipelines.inference.engines.transformers import TransformersEngine
from pipelines.inference.failure_tracker import MAX_SOLO_DEATHS, FailureTracker
from pipelines.inference.job_spec import job_spec
from pipelines.inference.plan import prepare_rows
from pipelines.inference.worker import InferenceWorker, check_output_visible
from pipelines.results import answers
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from tests.support import tiny

Checkpoint = Callable[[str], Path]


class WorkerDeath(BaseException):
    """Stands for the end of a worker's process: no `except Exception` catches it."""


def worker_with(engine: type[TransformersEngine]) -> type[InferenceWorker]:
    return type("Worker", (InferenceWorker,), {"engine_class": engine})


def run_job(
    config: EvalConfig, engine: type[TransformersEngine] = TransformersEngine
) -> tuple[dict[str, pa.Table], int]:
    """Run a job's stages in this process, restarting what dies, as Ray would.

    Returns the answers by method, and the number of deaths.
    """
    job, tracker, deaths = benchmark_job.BenchmarkJob.of(config), FailureTracker(), 0
    job.begin(RunRecord("job"))
    spec = job_spec([job], threads=1)
    pointers = job.missing().append_column(
        "benchmark_index", pa.array([0] * len(job.index), pa.int16())
    )
    worker = worker_with(engine)

    def with_restarts(stage: Callable[..., Any], *args: Any) -> Any:
        nonlocal deaths
        while True:
            try:
                return stage(*args)
            except WorkerDeath:
                deaths += 1

    block_rows = 4 * spec.batch_size
    for block in with_restarts(lambda: list(prepare_rows(pointers, spec, tracker, block_rows))):
        with_restarts(lambda rows: worker(spec, tracker)(rows), block)
    return {run.method.name: answers.read(run.folder) for run in job.runs}, deaths


def write(folder: Path, rows: Sequence[dict[str, str]]) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def errors(table: pa.Table) -> dict[str, str]:
    """Error messages by row id."""
    bad = table.filter(pc.equal(table["status"], "error"))
    return dict(zip(bad["row_id"].to_pylist(), bad["error"].to_pylist(), strict=True))


def make_config(
    model: Path, folder: Path, ids: Sequence[str], methods: tuple[str, ...]
) -> EvalConfig:
    """Questions about small pictures that are named like the rows."""
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


def test_worker_refuses_an_output_folder_it_cannot_see(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would write to its own disk. A late file or a busy store proves nothing."""
    config = make_config(checkpoint("llava"), tmp_path, "ab", ("vanilla",))
    job = job_spec([benchmark_job.BenchmarkJob.of(config)], threads=1)
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


def test_batch_tokens_limits_batches_and_keeps_answers(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = make_config(checkpoint("llava"), tmp_path, list("abcdefg"), ("vanilla", "uniform"))
    unlimited, _ = run_job(replace(config, output=str(tmp_path / "unlimited")))
    tokens = set(
        unlimited["vanilla"]["prompt_tokens"].to_pylist()
    )  # the same question about one picture
    limited, _ = run_job(replace(config, batch_tokens=3 * (max(tokens) + config.max_new_tokens)))
    for name, table in limited.items():
        assert sorted(table["batch_rows"].to_pylist()) == [1, 3, 3, 3, 3, 3, 3]
        assert sorted(unlimited[name]["batch_rows"].to_pylist()) == [3, 3, 3, 4, 4, 4, 4]
        found, want = (
            each.select(["row_id", "prediction"]).sort_by("row_id")
            for each in (table, unlimited[name])
        )
        assert found == want


class Fragile(TransformersEngine):
    """Dies of row `poison` under every method, and of row `venom` under vanilla only."""

    def answer(
        self, config: Any, method: Any, rows: Sequence[Any], *args: Any
    ) -> list[dict[str, Any]]:
        names = {row.row_id for row in rows}
        if "poison" in names or ("venom" in names and method.name == "vanilla"):
            raise WorkerDeath
        return super().answer(config, method, rows, *args)


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
def test_row_that_kills_workers_is_an_error_under_the_methods_it_kills(
    checkpoint: Checkpoint, tmp_path: Path, name: str, lost: dict[str, set[str]], deaths: int
) -> None:
    """A row that killed under two methods is given up for all: no further worker is lost."""
    config = make_config(
        checkpoint("llava"), tmp_path, ["a", name, "b", "c"], ("vanilla", "uniform", "random")
    )
    tables, died = run_job(config, Fragile)
    assert died == deaths
    assert {point: set(errors(table)) for point, table in tables.items()} == lost
    for table in tables.values():
        assert sorted(table["row_id"].to_pylist()) == sorted(["a", "b", "c", name])
        assert all(error.startswith("WorkerDied") for error in errors(table).values())


class OutOfMemory(TransformersEngine):
    """Runs out of memory on row c, even alone."""

    def answer(
        self, config: Any, method: Any, rows: Sequence[Any], *args: Any
    ) -> list[dict[str, Any]]:
        if "c" in [row.row_id for row in rows]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().answer(config, method, rows, *args)


def test_row_that_never_fits_into_memory_is_an_error(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    tables, _ = run_job(
        make_config(checkpoint("llava"), tmp_path, "abcd", ("vanilla",)), OutOfMemory
    )
    assert errors(tables["vanilla"]) == {
        "c": "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"
    }


class GraphsOrBatch(TransformersEngine):
    """Has memory either for a batch or for captured graphs."""

    def load(self) -> None:
        super().load()
        self.decode.graphs = GraphStore(self.decode.family)

    def answer(
        self, config: Any, method: Any, rows: Sequence[Any], *args: Any
    ) -> list[dict[str, Any]]:
        if self.decode.graphs is not None and rows[0].row_id != "warm-up":
            raise torch.OutOfMemoryError
        return super().answer(config, method, rows, *args)


@pytest.mark.parametrize("names", ["abcd", "a"])
def test_graphs_are_released_before_a_batch_is_halved(
    checkpoint: Checkpoint, tmp_path: Path, names: str
) -> None:
    config = make_config(checkpoint("llava"), tmp_path, names, ("vanilla",))
    tables, _ = run_job(config, GraphsOrBatch)
    assert not errors(tables["vanilla"])
    assert tables["vanilla"]["batch_rows"].to_pylist() == [len(names)] * len(names)


class DeadlyManifest(Manifest):
    """Kills the task that reads `poison.png`."""

    def fetch(self, medium: Medium) -> Any:
        if medium.path == "poison.png":
            raise WorkerDeath
        return super().fetch(medium)


def test_row_that_kills_its_reader_is_an_error(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = benchmark_job.manifest_of
    monkeypatch.setattr(
        benchmark_job, "manifest_of", lambda *args: DeadlyManifest(**vars(find(*args)))
    )
    config = make_config(
        checkpoint("llava"), tmp_path, ["a", "poison", "b"], ("vanilla", "uniform")
    )
    tables, deaths = run_job(config)
    assert deaths == 1 + MAX_SOLO_DEATHS
    for table in tables.values():
        assert errors(table) == {"poison": "WorkerDied: the worker died each time it read this row"}
        assert sorted(table["row_id"].to_pylist()) == ["a", "b", "poison"]


def test_videos_are_answered_and_torn_ones_are_errors(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
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
    tables, _ = run_job(config)
    assert set(tables) == {"vanilla", "apet-50pct"}
    for name, table in tables.items():
        assert set(errors(table)) == {"torn"}
        fine = table.filter(pc.equal(table["status"], "ok"))
        assert sorted(fine["row_id"].to_pylist()) == ["0", "1", "2", "3"]
        assert set(fine["visual_tokens_in"].to_pylist()) == {4 * 36}
        assert set(fine["budget"].to_pylist()) == {144.0 if name == "vanilla" else 72.0}
