"""Ten rows of every benchmark from its files to its scores, with a demo model on a real pipeline.

All benchmarks of a kind share one job and its workers, as in a sweep: a new worker imports torch
and transformers, which takes longer than all the answers. Each benchmark has one layout here, since
test_official.py reads and preprocesses all of them. Two have a second one where the pipeline
differs: media inside Parquet files, and rows without references.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest
from mlflow import MlflowClient

from jobs import score
from pipelines.benchmarks import benchmark
from pipelines.config.eval_config import parse
from pipelines.data.rows import Kind
from pipelines.inference.benchmark_job import BenchmarkJob
from pipelines.job import execute, job_record
from pipelines.results import answers
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from tests.support.official import LAYOUTS
from tests.support.official.rows import SUFFIX, TEN

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives"
    " helpful, detailed, and polite answers to the user's questions. USER: "
)
NO_REFERENCES = "vizwiz test"
LAYOUTS_TO_RUN = (
    *("gqa", "gqa of the hub", "mmbench of the hub", "mmbench_cn", "mme", "pope", "scienceqa"),
    *("vqav2 val", "textvqa of the hub", "vizwiz val", NO_REFERENCES, "tgif", "msvd", "msrvtt"),
)


def kind_of(layout: str) -> Kind:
    kind = benchmark(LAYOUTS[layout][0]).kind
    assert kind
    return kind


def job_of_ten_rows(layout: str, folder: Path) -> BenchmarkJob:
    """Write the files of a benchmark, and make its job from a command line."""
    name, split, write = LAYOUTS[layout]
    data = folder / "data" / layout
    write(data, TEN[name])
    flags = {
        "--model": "demo",
        "--benchmark": name,
        "--data": data,
        "--split": split,
        "--conversation": "vicuna_v1",
        "--output": folder / layout,
        "--tracking-uri": f"sqlite:///{folder}/mlflow.db",
        "--max-new-tokens": 4,
        "--method": "apet",
        "--budget": "12.5%",
        "--actors": 1,
    }
    argv = [str(word) for flag in flags.items() for word in flag]
    return BenchmarkJob.of(parse(kind_of(layout), argv))


@pytest.fixture(scope="module")
def results(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of all layouts."""
    folder = tmp_path_factory.mktemp("results")
    groups: dict[Kind, list[BenchmarkJob]] = {"image": [], "video": []}
    for layout in LAYOUTS_TO_RUN:
        groups[kind_of(layout)].append(job_of_ten_rows(layout, folder))
    record = job_record(groups["image"][0].config, "job-all", [], {}, {})
    assert execute(list(groups.values()), record) == "finished"
    return folder


def test_every_benchmark_is_run() -> None:
    names = {name for name, *_ in LAYOUTS.values()}
    assert {LAYOUTS[layout][0] for layout in LAYOUTS_TO_RUN} == names


@pytest.mark.parametrize("layout", LAYOUTS_TO_RUN)
def test_ten_rows_go_from_files_to_scores(
    layout: str,
    results: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, split, _ = LAYOUTS[layout]
    [path] = {path.parent for path in (results / layout).glob("*/*.parquet")}
    table, record = answers.read(Folder.of(str(path))), RunRecord.load(Folder.of(str(path)))
    assert table.num_rows == len(set(table["row_id"].to_pylist())) == 10
    assert pc.all(pc.equal(table["status"], "ok")).as_py()
    assert record.rows == {"wanted": 10, "done": 10, "error": 0}
    assert set(table["split"].to_pylist()) == {split}
    for prompt, media in zip(table["prompt"].to_pylist(), table["media"].to_pylist(), strict=True):
        assert prompt.startswith(SYSTEM_PROMPT + f"<{kind_of(layout)}>\n" * len(media))
        assert prompt.endswith(f"{SUFFIX[name]} ASSISTANT:")

    # jobs/score.py, the run's record and MLflow agree.
    monkeypatch.setattr(sys, "argv", ["score.py", str(path)])
    assert score.main() == 0
    scored = json.loads(capsys.readouterr().out.splitlines()[-1])
    counts = {key: scored[key] for key in ("rows", "matched", "duplicate", "changed")}
    assert counts == {"rows": 10, "matched": 10, "duplicate": 0, "changed": 0}
    metrics = scored["metrics"]
    assert metrics["rows_total"] == 10
    assert metrics == {key: record.metrics[key] for key in metrics}
    assert ("accuracy" in metrics) == (layout != NO_REFERENCES)
    logged = MlflowClient(record.mlflow["uri"]).get_run(record.mlflow["run_id"]).data.metrics
    assert metrics == {key: logged[key] for key in metrics}
