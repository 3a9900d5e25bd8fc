"""Whole sweeps on an embedded Ray: shared work, failures, and tables after an interruption."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.compute as pc
import pytest
from mlflow import MlflowClient
from ray import cloudpickle

from pipelines.config.sweep_config import SweepConfig, parse_sweep
from pipelines.inference.benchmark_job import BenchmarkJob, RunState
from pipelines.inference.engines.transformers import TransformersEngine
from pipelines.inference.worker import InferenceWorker
from pipelines.results import answers
from pipelines.results.run_record import RunRecord, State
from pipelines.results.storage import Folder
from pipelines.sweep import _failed, sweep
from tests.support import tiny
from tests.support.interrupt import interrupt_after

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
ROWS = {"first": 24, "second": 8}
LATE = {"late": 4}


def write_manifests(folder: Path, rows: Mapping[str, int]) -> None:
    """Write manifests whose rows have the same ids."""
    for name, count in rows.items():
        lines = ["id,media,question,answers,type"]
        for number in range(count):
            tiny.image(20 + 3 * (number % 7), 20, seed=number).save(folder / f"{name}-{number}.png")
            kind = "odd" if number % 2 else "even"
            lines.append(f"row-{number:02},{name}-{number}.png,What is {name}?,a,{kind}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def grid(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    entries = ", ".join(
        f"{{benchmark: manifest, data: {data / name}.csv}}" for name in (*ROWS, *LATE)
    )
    (data / "all.yaml").write_text(
        f"models: [{model}]\nbenchmarks: [{entries}]\nmethods: [vanilla, apet, random]\n"
        "budgets: [50%, 25%]\nmax_new_tokens: 4\nbatch_size: 4\nactors: 1\n"
    )
    return [str(data / "all.yaml"), "--output", str(output), *more]


def runs(output: Path) -> dict[str, Folder]:
    found = [Folder.of(str(path.parent)) for path in output.glob("*/config.yaml")]
    return {folder.uri: folder for folder in found}


def tables(output: Path) -> dict[str, bytes]:
    """The report's tables, without those of time."""
    found = {path.name: path.read_bytes() for path in sorted(output.glob("all-*/tables/*.csv"))}
    return {
        name: data for name, data in found.items() if not name.startswith(("efficiency", "slowest"))
    }


class CountingEngine(TransformersEngine):
    """Counts loads and vision tower calls; one method fails on one benchmark."""

    def load(self) -> None:
        super().load()
        self.notes = Path(self.job.benchmarks[0].runs[0].folder.uri).parent / "notes"
        self.notes.mkdir(exist_ok=True)
        self.note("loaded")
        layer = self.model.model.vision_tower.encoder.layers[0].mlp
        layer.register_forward_hook(lambda *_: self.note("encoded"))

    def note(self, what: str) -> None:
        with (self.notes / what).open("a") as file:
            file.write(".")

    def answer(
        self, config: Any, method: Any, rows: Sequence[Any], *args: Any
    ) -> list[dict[str, Any]]:
        if method.name == "random" and method.budget == "25%" and config.data.endswith("first.csv"):
            raise ArithmeticError("this point is broken")
        return super().answer(config, method, rows, *args)


class CountingWorker(InferenceWorker):
    engine_class = CountingEngine


def test_methods_share_work_and_a_failing_one_does_not_stop_others(
    cluster: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_manifests(tmp_path, ROWS)
    asked = parse_sweep(grid(checkpoint("llava"), tmp_path, tmp_path / "out"))
    monkeypatch.setattr(CountingEngine, "_warm_up", lambda self: None)
    assert sweep(SweepConfig(asked.name, asked.jobs, only_plan=True)) == 0
    shown = capsys.readouterr().out
    assert (
        f"{ROWS['first']:>12,}{5 * ROWS['first']:>14,}" in shown
    )  # rows, and answers of five points
    assert "cannot start: manifest" in shown
    assert not (tmp_path / "out").exists()

    assert sweep(asked, CountingWorker) == 1  # broken answers, and a file that is not there yet
    said = capsys.readouterr()
    assert "not done: manifest" in said.err
    assert (tmp_path / "out/notes/loaded").read_text() == "."
    batches = sum(-(-count // 4) for count in ROWS.values())
    assert len((tmp_path / "out/notes/encoded").read_text()) == batches
    found = runs(tmp_path / "out")
    assert len(found) == 10
    for folder in found.values():
        record, table = RunRecord.load(folder), answers.read(folder)
        assert table.num_rows in ROWS.values()
        assert len(set(table["row_id"].to_pylist())) == table.num_rows
        broken = record.point["name"] == "random-25pct" and table.num_rows == ROWS["first"]
        assert pc.all(pc.equal(table["status"], "error" if broken else "ok")).as_py()
        assert record.parent is not None
        assert record.parent["name"].startswith("all-")

    client = MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    [experiment] = [each for each in client.search_experiments() if each.name == "apet"]
    logged = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in logged if run.data.tags.get("kind") == "sweep"]
    children = [
        run for run in logged if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    assert len(children) == 10
    assert all({"method", "model", "benchmark"} <= run.data.params.keys() for run in children)
    assert all(
        "point" not in run.data.params for run in children
    )  # the page that compares runs cuts it short
    assert parent.data.metrics["progress.rows_done"] == 5 * sum(ROWS.values())
    series = {name for run in children for name in run.data.metrics if name.startswith("progress.")}
    assert not series  # charts and comparisons open on results
    scored = [run.data.metrics for run in children if "accuracy" in run.data.metrics]
    assert {next(iter(metrics)) for metrics in scored} == {"accuracy"}
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert files == {"report.html", "queries.sql", "figures", "tables"}

    # The next actor finds a benchmark with errors, a finished one and a new one.
    write_manifests(tmp_path, LATE)
    assert (
        sweep(parse_sweep(grid(checkpoint("llava"), tmp_path, tmp_path / "out", "--retry-errors")))
        == 0
    )
    found = [answers.read(folder) for folder in runs(tmp_path / "out").values()]
    assert sorted(table.num_rows for table in found) == sorted(5 * [*ROWS.values(), *LATE.values()])
    assert all(pc.all(pc.equal(table["status"], "ok")).as_py() for table in found)
    capsys.readouterr()
    assert sweep(asked) == 0
    assert "nothing to do" in capsys.readouterr().out


def demo_sweep(output: Path) -> list[str]:
    """Arguments of a sweep of the demo model, whose answers are meaningful, on two benchmarks."""
    file = output.parent / "all.yaml"
    file.write_text(
        "models: [demo]\n"
        "benchmarks: [{benchmark: shapes, limit: 16}, {benchmark: shapes, split: val, limit: 8}]\n"
        "methods: [vanilla, apet, random]\nbudgets: [64]\nbatch_size: 8\nactors: 1\n"
    )
    return [str(file), "--output", str(output)]


def test_interrupted_sweep_writes_the_same_tables(cluster: str, tmp_path: Path) -> None:
    """Intact answers stay as they are, and a file that was torn is answered again."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert sweep(parse_sweep(demo_sweep(whole))) == 0
    command = [sys.executable, "jobs/sweep.py", *demo_sweep(killed), "--ray-address", cluster]
    assert interrupt_after(1, command, killed, signal.SIGINT) == 130
    assert "run the same command again to continue" in killed.with_suffix(".txt").read_text()
    interrupt_after(4, command, killed)
    done = [answers.read(folder).num_rows for folder in runs(killed).values()]
    assert sum(done) < 3 * (16 + 8)
    assert any(done)
    before = {path: path.read_bytes() for path in killed.glob("*/*.parquet")}
    torn = max(before)
    part = before.pop(torn)[:100]
    torn.write_bytes(part)
    assert sweep(parse_sweep(demo_sweep(killed))) == 0
    assert [path.read_bytes() for path in torn.parent.glob("*.torn")] == [part]
    assert {path: path.read_bytes() for path in before} == before
    assert {RunRecord.load(folder).state for folder in runs(killed).values()} == {"finished"}
    assert tables(whole).keys() >= {"accuracy.csv", "retention.csv"}
    assert tables(killed) == tables(whole)
    for one, other in zip(
        *(sorted(runs(each).values(), key=lambda each: each.uri) for each in (whole, killed)),
        strict=True,
    ):
        columns = ["row_id", "prediction", "score", "visual_tokens_kept", "batch_rows"]
        assert answers.read(one, columns).equals(answers.read(other, columns))


@pytest.mark.parametrize(
    ("state", "errors", "failed"),
    [("finished", 9, True), ("killed", 1, False), ("finished", 0, False)],
)
def test_interrupted_run_has_not_failed_yet(state: State, errors: int, failed: bool) -> None:
    """One error of twenty rows may be one of a thousand, and retried rows share other batches."""
    record = RunRecord("point", state=state, rows={"wanted": 1000, "done": 20, "error": errors})
    work = cast(BenchmarkJob, SimpleNamespace(config=SimpleNamespace(max_error_rate=0.01)))
    assert _failed(cast(RunState, SimpleNamespace(record=record)), work) == failed


def test_impossible_methods_are_recorded_and_not_checked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished sweep must not build models to find the methods that they do not support."""
    asked = parse_sweep(
        ["--benchmark", "shapes", "--method", "fastv", "--budget", "64", "--output", str(tmp_path)]
    )
    assert sweep(asked) == 0
    assert "skipped: fastv-64: a budget of 64" in capsys.readouterr().out

    def again(self: BenchmarkJob, **_: Any) -> None:
        raise AssertionError("the model is asked again")

    monkeypatch.setattr(BenchmarkJob, "check", again)
    assert sweep(asked) == 0
    said = capsys.readouterr().out
    assert "skipped: fastv-64: a budget of 64" in said
    assert "nothing to do" in said
    monkeypatch.setattr("pipelines.sweep.git_commit", lambda: "another")  # which may know how
    assert sweep(asked) == 2
    assert "the model is asked again" in capsys.readouterr().out
