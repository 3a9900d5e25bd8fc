"""Whole jobs on an embedded Ray, with real files, workers and MLflow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from ray import cloudpickle

from pipelines.config.eval_config import EvalConfig
from pipelines.data.manifest import Manifest
from pipelines.data.rows import Medium
from pipelines.inference import benchmark_job
from pipelines.inference.engines.transformers import TransformersEngine
from pipelines.inference.worker import InferenceWorker
from pipelines.job import run
from pipelines.results import answers
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from tests.support import ROOT, tiny

Checkpoint = Callable[[str], Path]


def write_manifest(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def write_pictures(folder: Path, count: int) -> list[dict[str, Any]]:
    """Write small pictures of several sizes; return a question about each."""
    rows = []
    for number in range(count):
        name = f"{number:03}.png"
        tiny.image(20 + 3 * (number % 7), 20 + 2 * (number % 5), seed=number).save(folder / name)
        question = "What is this?" + " Say more." * (number % 3)
        rows.append(
            {
                "id": f"row-{number:03}",
                "media": name,
                "question": question,
                "answers": ["a"],
                "type": "easy",
            }
        )
    return rows


def config(model: Path, data: Path, output: Path | str, **more: Any) -> EvalConfig:
    given = {
        "methods": ("vanilla", "uniform"),
        "budgets": ("50%",),
        "max_new_tokens": 4,
        "batch_size": 4,
        "actors": (1, 1),
        **more,
    }
    return EvalConfig.of("image", model=str(model), data=str(data), output=str(output), **given)


def runs(output: Path) -> dict[str, Folder]:
    """Folders of the runs, by method and budget."""
    folders = [Folder.of(str(path.parent)) for path in output.glob("*/config.yaml")]
    return {RunRecord.load(folder).point["name"]: folder for folder in folders}


def read_row_ids(folder: Folder) -> list[str]:
    """Row ids of all answers, read with pyarrow alone; each must be there once."""
    files = [f"{folder.uri}/{name}" for name in folder.names() if name.endswith(".parquet")]
    ids: list[str] = (
        pyarrow.dataset.dataset(files).to_table(columns=["row_id"])["row_id"].to_pylist()
    )
    assert len(ids) == len(set(ids))
    return sorted(ids)


BAD_FILES = {
    "missing": None,
    "empty": b"",
    "html": b"<!DOCTYPE html><html>404</html>",
    "wrong": b"certainly no picture",
    "torn": "torn",
}


cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


def first_time(marker: Path) -> bool:
    """True for the first caller among all processes."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class FragileEngine(TransformersEngine):
    """Dies once of row `poison`, raises on row `raises`, and has memory for two rows."""

    def answer(
        self, config: Any, method: Any, rows: Sequence[Any], *args: Any
    ) -> list[dict[str, Any]]:
        names = {row.row_id for row in rows}
        if "poison" in names and first_time(Path(config.data).with_name("answered")):
            os._exit(9)
        if "raises" in names:
            raise ArithmeticError("this row is wrong")
        if len(rows) > 2:
            raise torch.OutOfMemoryError("too many rows at once")
        return super().answer(config, method, rows, *args)


class FragileWorker(InferenceWorker):
    engine_class = FragileEngine


class DeadlyManifest(Manifest):
    """The process that reads `deadly.png` dies once, as a decoder may."""

    def fetch(self, medium: Medium) -> Any:
        if medium.path == "deadly.png" and first_time(Path(self.root, "read")):
            os._exit(11)
        return super().fetch(medium)


def test_job_writes_answers_errors_and_mlflow_runs(
    cluster: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """tests/pipelines/inference/test_worker.py has rows that kill a worker every time."""
    good = write_pictures(tmp_path, 12)
    good[2]["id"] = "poison"
    shutil.copy(tmp_path / good[9]["media"], tmp_path / "deadly.png")
    good[9]["media"] = "deadly.png"
    bad = []
    for name, content in BAD_FILES.items():
        path = tmp_path / f"{name}.jpg"
        if content == "torn":
            Image.effect_noise((300, 300), 90).convert("RGB").save(path)
            path.write_bytes(path.read_bytes()[:5000])
        elif isinstance(content, bytes):
            path.write_bytes(content)
        bad.append({"id": name, "media": path.name, "question": "What is this?"})
    bad.append({"id": "silent", "media": "000.png", "question": " "})
    bad.append({"id": "raises", "media": "001.png", "question": "What is this?"})
    bad.append({"id": "escape", "media": "../../etc/passwd", "question": "?"})
    data = write_manifest(tmp_path, [*good, *bad])
    job = config(checkpoint("llava"), data, tmp_path / "out", max_error_rate=0.9)
    find = benchmark_job.manifest_of
    monkeypatch.setattr(
        benchmark_job, "manifest_of", lambda *given: DeadlyManifest(**vars(find(*given)))
    )
    assert run(job, FragileWorker) == 0
    monkeypatch.undo()
    assert (tmp_path / "answered").exists()
    assert (tmp_path / "read").exists()
    shown = capsys.readouterr()
    assert "vanilla" in shown.out
    assert "mlflow ui" in shown.out
    assert "20/40" in shown.err or "40/40 answers" in shown.err

    tables = {name: answers.read(folder) for name, folder in runs(tmp_path / "out").items()}
    assert set(tables) == {"vanilla", "uniform-50pct"}
    for name, table in tables.items():
        assert read_row_ids(runs(tmp_path / "out")[name]) == sorted(
            row["id"] for row in [*good, *bad]
        )
        status = dict(zip(table["row_id"].to_pylist(), table["status"].to_pylist(), strict=True))
        assert {row for row, how in status.items() if how == "error"} == {row["id"] for row in bad}
        errors = dict(zip(table["row_id"].to_pylist(), table["error"].to_pylist(), strict=True))
        assert "FileNotFoundError" in errors["missing"]
        assert "web page" in errors["html"]
        assert "PermissionError" in errors["escape"]
        assert "question is empty" in errors["silent"]
        assert errors["raises"] == "ArithmeticError: this row is wrong"
        fine = table.filter(pc.equal(table["status"], "ok"))
        assert max(fine["batch_rows"].to_pylist()) <= 2
        assert set(fine["visual_tokens_in"].to_pylist()) == {36}
        assert set(fine["budget"].to_pylist()) == {36.0 if name == "vanilla" else 18.0}

    vanilla = {row["row_id"]: row for row in tables["vanilla"].to_pylist()}
    assert vanilla["poison"]["batch_rows"] == 1  # alone, the second time
    expected = answer_with_transformers(checkpoint("llava"), tmp_path, good)
    assert {row: vanilla[row]["prediction"] for row in expected} == expected

    client = MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    [experiment] = [each for each in client.search_experiments() if each.name == "apet"]
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    for name, folder in runs(tmp_path / "out").items():
        record = RunRecord.load(folder)
        logged = found[
            f"{name} manifest-{record.tags['model']} {record.name[-8:]}"
        ].data  # charts cut its end off
        assert record.state == "finished"
        assert logged.metrics["rows_total"] == 20
        assert logged.metrics["rows_error"] == 8
        assert logged.metrics["wall_s"] > 0
        assert logged.metrics["load_s"] > 0
        assert logged.params["max_new_tokens"] == "4"
        assert logged.tags["method"] == name.split("-")[0]
        assert logged.tags["mlflow.parentRunId"] in {run.info.run_id for run in found.values()}

    # A finished job takes a second, not half a minute: nothing heavy is imported.
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print(*sys.modules)"
    )
    again = subprocess.run(
        [sys.executable, "-c", code, *command(job)[1:]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout
    heavy = {"torch", "transformers", "ray", "mlflow", "pandas"}
    assert not heavy & set(again.stdout.splitlines()[-1].split())
    # With the default limit there are too many errors, which is reported without a run.
    assert run(config(checkpoint("llava"), data, tmp_path / "out")) == 1


def answer_with_transformers(
    model: Path, folder: Path, rows: Sequence[dict[str, Any]]
) -> dict[str, str]:
    """Answers of plain transformers, row by row."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor, found = AutoProcessor.from_pretrained(model), {}
    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype="auto")
    for row in rows:
        content = [{"type": "image"}, {"type": "text", "text": row["question"]}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(text=text, images=Image.open(folder / row["media"]), return_tensors="pt")
        with torch.inference_mode():
            out = loaded.generate(**inputs, max_new_tokens=4, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        found[row["id"]] = processor.batch_decode(new, skip_special_tokens=True)[0].strip()
    return found


def command(job: EvalConfig) -> list[str]:
    """The command line of a job."""
    flags = {
        "--model": job.model,
        "--data": job.data,
        "--output": job.output,
        "--batch-size": job.batch_size,
        "--max-new-tokens": job.max_new_tokens,
        "--max-error-rate": job.max_error_rate,
    }
    words = [str(word) for flag in flags.items() for word in flag]
    for method in job.methods:
        words += ["--method", method]
    return [sys.executable, "jobs/eval_image.py", *words, "--budget", *job.budgets]
