"""Ten rows of each benchmark from its files to its scores, in each layout, with a demo model on a real pipeline.

One of each kind goes through the command that a user types. The others share that command's machinery and the workers,
as in a sweep: a worker that is started anew imports torch and transformers, which takes longer than all the answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from mlflow import MlflowClient

from jobs import eval_image, eval_video, score
from pipelines.benchmarks import benchmark
from pipelines.config.eval_config import EvalConfig
from pipelines.data.rows import Kind
from pipelines.inference.benchmark_job import BenchmarkJob
from pipelines.job import execute, job_record
from pipelines.results import answers
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from tests.support.official import LAYOUTS
from tests.support.official.rows import SUFFIX, TEN

pytestmark = pytest.mark.filterwarnings("default")  # Ray and MLflow warn of themselves
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,"
    " and polite answers to the user's questions. USER: "
)
TYPED = {"pope": eval_image, "msvd": eval_video}
BUDGET = "12.5%"


def kind_of(name: str) -> Kind:
    found = benchmark(LAYOUTS[name][0]).kind
    assert found
    return found


def asked(name: str, folder: Path) -> dict[str, Any]:
    """The flags of a job of ten rows, whose files are written."""
    bench, split, write = LAYOUTS[name]
    write(folder / "data" / name, TEN[bench])
    return {
        "model": "demo",
        "benchmark": bench,
        "data": str(folder / "data" / name),
        "split": split,
        "conversation": "vicuna_v1",
        "output": str(folder / name),
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "max_new_tokens": 4,
    }


@pytest.fixture(scope="module")
def results(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all results, one a layout."""
    folder = tmp_path_factory.mktemp("results")
    groups: dict[Kind, list[BenchmarkJob]] = {"image": [], "video": []}
    for name in LAYOUTS:
        kind = kind_of(name)
        given = asked(name, folder)
        if name not in TYPED:
            config = EvalConfig.of(
                kind, **given, methods=("apet",), budgets=(BUDGET,), actors=(1, 1)
            )
            groups[kind].append(BenchmarkJob.of(config))
            continue
        argv = [
            part
            for flag, value in given.items()
            for part in (f"--{flag.replace('_', '-')}", str(value))
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                sys,
                "argv",
                ["eval.py", *argv, "--method", "apet", "--budget", BUDGET, "--actors", "1"],
            )
            assert TYPED[name].main() == 0
    job = job_record(groups["image"][0].config, "job-all", {}, {})
    assert execute(list(groups.values()), job) == "finished"
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_ten_rows_from_files_to_scores(
    name: str, results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = {path.parent for path in (results / name).glob("*/*.parquet")}
    table, record = answers.read(Folder.of(str(path))), RunRecord.load(Folder.of(str(path)))
    assert table.num_rows == len(set(table["row_id"].to_pylist())) == 10
    assert pc.all(pc.equal(table["status"], "ok")).as_py()
    assert record.rows == {"wanted": 10, "done": 10, "error": 0}
    assert set(table["split"].to_pylist()) == {LAYOUTS[name][1]}
    for prompt, media in zip(table["prompt"].to_pylist(), table["media"].to_pylist(), strict=True):
        assert prompt.startswith(SYSTEM + f"<{kind_of(name)}>\n" * len(media))
        assert prompt.endswith(f"{SUFFIX[LAYOUTS[name][0]]} ASSISTANT:")

    monkeypatch.setattr(sys, "argv", ["score.py", str(path)])
    assert score.main() == 0
    scored = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (scored["rows"], scored["matched"], scored["duplicate"], scored["changed"]) == (
        10,
        10,
        0,
        0,
    )
    assert scored["metrics"]["rows_total"] == 10
    assert scored["metrics"] == {name: record.metrics[name] for name in scored["metrics"]}
    assert ("accuracy" in scored["metrics"]) == (name not in ("vqav2 test", "vizwiz test"))
    logged = MlflowClient(record.mlflow["uri"]).get_run(record.mlflow["run_id"]).data.metrics
    assert scored["metrics"] == {name: logged[name] for name in scored["metrics"]}
