"""Whole sweeps on an embedded Ray: what points share, what stops and what goes on, the same tables after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import tiny
from mlflow import MlflowClient
from ray import cloudpickle

from pipelines import answers
from pipelines.answerer import Answerer
from pipelines.grid import Grid, parse_grid
from pipelines.record import Record
from pipelines.storage import Folder
from pipelines.sweep import sweep

pytestmark = pytest.mark.filterwarnings("default")  # Ray and MLflow warn of themselves
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
ROOT = Path(__file__).parent.parent
ROWS = {"first": 24, "second": 8}


def questions(folder: Path) -> None:
    """Two manifests, whose rows have the same ids."""
    for name, count in ROWS.items():
        lines = ["id,media,question,answers,type"]
        for number in range(count):
            tiny.image(20 + 3 * (number % 7), 20, seed=number).save(folder / f"{name}-{number}.png")
            lines.append(f"row-{number:02},{name}-{number}.png,What is {name}?,a,{'odd' if number % 2 else 'even'}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def grid(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    entries = ", ".join(f"{{benchmark: manifest, data: {data / name}.csv}}" for name in (*ROWS, "missing"))
    (data / "all.yaml").write_text(
        f"models: [{model}]\nbenchmarks: [{entries}]\nmethods: [vanilla, apet, random]\nbudgets: [50%, 25%]\n"
        "max_new_tokens: 4\nbatch_size: 4\nactors: 1\n"
    )
    return [str(data / "all.yaml"), "--output", str(output), *more]


def runs(output: Path) -> dict[str, Folder]:
    found = [Folder.of(str(path.parent)) for path in output.glob("*/config.yaml")]
    return {folder.uri: folder for folder in found}


def tables(output: Path) -> dict[str, bytes]:
    """The report's tables of accuracy and retention."""
    found = {path.name: path.read_bytes() for path in sorted(output.glob("all-*/tables/*.csv"))}
    return {name: data for name, data in found.items() if name.startswith(("accuracy", "retention"))}


class Counting(Answerer):
    """Notes that it was loaded, and how often its vision tower worked."""

    def load(self) -> None:
        super().load()
        self.notes = Path(self.job.sections[0].runs[0].folder.uri).parent / "notes"
        self.notes.mkdir(exist_ok=True)
        self.note("loaded")
        layer = self.model.model.vision_tower.encoder.layers[0].mlp
        layer.register_forward_hook(lambda *_: self.note("encoded"))

    def note(self, what: str) -> None:
        with (self.notes / what).open("a") as file:
            file.write(".")

    def generate(self, section: Any, method: Any, rows: Sequence[Any], *more: Any, **how: Any) -> list[dict[str, Any]]:
        if method.name == "random" and method.budget == "25%":
            raise ArithmeticError("this point is broken")
        return super().generate(section, method, rows, *more, **how)


def test_points_share_their_work_and_one_that_fails_stops_no_other(
    cluster: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    questions(tmp_path)
    asked = parse_grid(grid(checkpoint("llava"), tmp_path, tmp_path / "out"))
    monkeypatch.setattr(Counting, "_warm_up", lambda self: None)
    assert sweep(Grid(asked.name, asked.jobs, only_plan=True)) == 0
    shown = capsys.readouterr().out
    assert "24" in shown
    assert "120" in shown  # answers: five points
    assert "cannot begin: manifest" in shown
    assert not (tmp_path / "out").exists()

    assert sweep(asked, Counting) == 1  # broken answers, and a file that is not there
    said = capsys.readouterr()
    assert "not done: manifest" in said.err
    assert (tmp_path / "out/notes/loaded").read_text() == "."
    batches = sum(-(-count // 4) for count in ROWS.values())
    assert len((tmp_path / "out/notes/encoded").read_text()) == batches
    found = runs(tmp_path / "out")
    assert len(found) == 10
    for folder in found.values():
        record, table = Record.load(folder), answers.read(folder)
        assert table.num_rows in ROWS.values()
        assert len(set(table["row_id"].to_pylist())) == table.num_rows
        broken = record.point["name"] == "random-25pct"
        assert pc.all(pc.equal(table["status"], "error" if broken else "ok")).as_py()
        assert record.parent is not None
        assert record.parent["name"].startswith("all-")

    client = MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    [experiment] = [each for each in client.search_experiments() if each.name == "apet"]
    logged = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in logged if run.data.tags.get("kind") == "sweep"]
    children = [run for run in logged if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 10
    assert all({"method", "point", "model", "benchmark"} <= run.data.params.keys() for run in children)
    assert "report.html" in {item.path for item in client.list_artifacts(parent.info.run_id)}

    assert sweep(parse_grid(grid(checkpoint("llava"), tmp_path, tmp_path / "out", "--retry-errors"))) == 1
    for folder in runs(tmp_path / "out").values():
        assert pc.all(pc.equal(answers.read(folder)["status"], "ok")).as_py()
    capsys.readouterr()
    assert sweep(asked) == 1  # the file is still not there
    assert "nothing to do" in capsys.readouterr().out


def test_killed_and_started_again_it_gives_the_same_tables(
    cluster: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    questions(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    asked = grid(checkpoint("llava"), tmp_path, whole)
    assert sweep(parse_grid(asked)) == 1
    log = tmp_path / "log.txt"
    with log.open("w") as said:
        command = [sys.executable, "jobs/sweep.py", *asked, "--output", str(killed), "--ray-address", cluster]
        driver = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 600
        while len(list(killed.glob("*/*.parquet"))) < 7:
            assert driver.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"no answers to kill it over: {log.read_text()}"
            time.sleep(0.02)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert sum(answers.read(folder).num_rows for folder in runs(killed).values()) < 5 * sum(ROWS.values())
    assert sweep(parse_grid([*asked, "--output", str(killed)])) == 1
    assert tables(whole)
    assert tables(killed) == tables(whole)
