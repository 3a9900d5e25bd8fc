"""The speed benchmark: models of real shapes, correct sums, and a table that reports every bar."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from apet import SHAPES
from apet.flops import shape_of
from apet.methods import build
from jobs.bench import generated_jobs, prefill_models, profile_prefill, speed
from jobs.bench.prefill_models import SUBJECTS, Measurement, measure, summarise
from pipelines.config.eval_config import EvalConfig
from pipelines.inference.benchmark_job import manifest_of
from pipelines.inference.preprocess import Preprocessor
from tests.support import ROOT

CPU = torch.device("cpu")
SCRIPTS = ("compress", "decode", "pipeline", "prefill", "speed", "sweep")


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_prints_its_help(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As started by its path, with its own folder first on the path of imports."""
    path = ROOT / "jobs" / "bench" / f"{script}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 0
    assert f"python jobs/bench/{script}.py" in capsys.readouterr().out


@pytest.mark.parametrize("name", SUBJECTS)
def test_models_have_the_real_shapes(name: str) -> None:
    assert shape_of(SUBJECTS[name].config("7b")) == SHAPES[name]


@torch.inference_mode()
@pytest.mark.parametrize(("name", "kept"), [("llava-1.5-7b", 64.0), ("video-llava-7b", 256.0)])
def test_prefill_keeps_the_tokens_of_the_schedule(name: str, kept: float) -> None:
    subject = SUBJECTS[name]
    model = subject.make("tiny", CPU, "sdpa")
    inputs = subject.prompts(1, model)
    placeholders = (inputs["input_ids"] == subject.placeholder).sum()
    assert placeholders == subject.visual + subject.uncounted
    assert inputs["input_ids"].shape[1] == subject.visual + subject.text
    apet = Measurement(build("apet", budget=int(kept)), str(int(kept)))
    measurements = [Measurement(build("vanilla"), "full"), apet]
    measure(model, measurements, inputs, 1)
    for measurement in measurements:
        assert measurement.kv_bytes == subject.kv_bytes(model, measurement.method, 1)
    assert apet.kept == str(subject.schedule(model, apet.method))
    assert subject.schedule(model, apet.method).average == kept
    vanilla, ours = summarise(subject, model, measurements)
    assert vanilla["prefill"]["speedup"] == 1.0
    assert ours["prefill"]["limit"] == pytest.approx(vanilla["flops"] / ours["flops"])
    assert ours["decoder"]["limit"] > ours["prefill"]["limit"] > 1


def test_method_without_enough_memory_is_marked_as_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_prefill(model: Any, measurement: Measurement, inputs: Any) -> None:
        if measurement.method.name == too_large:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        measurement.prefill.append(1.0)

    monkeypatch.setattr(prefill_models, "run_prefill", run_prefill)
    model = SimpleNamespace(device=CPU)
    measurements = [
        Measurement(build(name, budget="50%"), "50%") for name in ("vanilla", "fastv", "uniform")
    ]
    too_large = "fastv"
    measure(model, measurements, {}, 2)
    refused = "out of memory: tried to allocate 20 GiB"
    assert [measurement.refused for measurement in measurements] == [None, refused, None]
    assert [len(measurement.prefill) for measurement in measurements] == [2, 0, 2]
    # All others are compared with vanilla.
    too_large = "vanilla"
    with pytest.raises(torch.OutOfMemoryError):
        measure(model, measurements, {}, 1)


def test_model_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def prefill_of(name: str, args: Any, device: Any) -> Iterator[Any]:
        yield f"{name} began"
        if name == "qwen2.5-vl-7b":
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        yield f"{name} ended"

    monkeypatch.setattr(speed, "prefill_of", prefill_of)
    rows: list[Any] = []
    with pytest.raises(RuntimeError, match=r"failed: qwen2.5-vl-7b$"):
        rows.extend(speed.prefill(SimpleNamespace(), CPU))  # type: ignore[arg-type]
    assert rows[-2:] == ["video-llava-7b began", "video-llava-7b ended"]
    assert len(rows) == 5


@torch.inference_mode()
def test_profile_separates_compression() -> None:
    subject = SUBJECTS["llava-1.5-7b"]
    model = subject.make("tiny", CPU, "sdpa")
    inputs = subject.prompts(1, model)
    for method in (build("vanilla"), build("apet", budget=64)):
        ms, groups = profile_prefill.shares(model, method, inputs)
        assert ms > 0
        assert sum(groups.values()) == pytest.approx(1)
        assert groups["matmul"] > 0.1
        assert (groups["compression"] > 0) == (method.name == "apet")


def test_table_reports_whether_each_bar_was_reached() -> None:
    rows = [
        speed.bar("faster", 3.6, ">=", 3.5, limit=4.2, paper=1.38),
        speed.bar("slower", 3.4, ">=", 3.5),
        speed.bar("little", 0.7, "<=", 1.0, "%"),
        speed.bar("much", 1.2, "<=", 1.0, "%"),
        speed.bar("equal", 100.0, "=", 100.0, "%"),
        speed.bar("without a bar", 5.0, unit=""),
    ]
    assert [row["reached"] for row in rows] == [True, False, True, False, True, None]
    lines = [speed.format_bar(row, gpu=True) for row in rows]
    assert lines[0].split() == [
        *("faster", "3.60", "x", ">=", "3.50", "x", "4.20", "x", "1.38", "x", "yes")
    ]
    assert [line.split()[-1] for line in lines] == ["yes", "NO", "yes", "NO", "yes", "-"]
    # The bars are for a GPU.
    assert {speed.format_bar(row, gpu=False).split()[-1] for row in rows} == {"-"}
    assert all(len(line) <= len(speed.TABLE_HEAD) for line in lines)


@pytest.mark.parametrize(("gigabytes", "rows"), [(80, 64), (141, 128)])
def test_batch_is_larger_on_a_large_gpu(
    gigabytes: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: properties)
    monkeypatch.setattr(sys, "argv", ["speed.py"])
    assert speed.parse_arguments(gpu=True).batch == rows
    assert speed.parse_arguments(gpu=False).batch == 1


def test_only_sixteen_clips_are_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_jobs, "write_clip", lambda path, seed: path.write_text(f"{seed}"))
    data = generated_jobs.write_questions("video", 20, tmp_path / "video")
    names = [json.loads(line)["media"] for line in data.read_text().splitlines()]
    assert len(set(names)) == 20
    assert [int((data.parent / name).read_text()) for name in names] == [*range(16), *range(4)]


def test_part_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def working(*_: object) -> Iterator[dict[str, Any]]:
        yield speed.bar("works", 2.0)

    def failing(error: BaseException) -> Any:
        def run_benchmark(*_: object) -> Iterator[dict[str, Any]]:
            yield speed.bar("first", 1.0)
            raise error

        return run_benchmark

    monkeypatch.setitem(speed.PARTS, "prefill", failing(ValueError("no such thing")))
    monkeypatch.setitem(speed.PARTS, "job", failing(SystemExit("the job failed")))
    monkeypatch.setitem(speed.PARTS, "video", working)
    monkeypatch.setattr(sys, "argv", ["speed.py", "--only", "prefill,job,video"])
    with pytest.raises(SystemExit) as end:
        speed.main()
    assert end.value.code == 1
    out, err = capsys.readouterr()
    *parts, total = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert out.splitlines()[-1].startswith("{")
    assert [part["part"] for part in parts] == ["prefill", "job", "video"]
    assert [row["what"] for part in parts for row in part["rows"]] == ["first", "first", "works"]
    assert total["rows"] == [row for part in parts for row in part["rows"]]
    assert total["failed"] == ["prefill", "job"]
    assert "ValueError: no such thing" in err
    assert "the job failed" in err
    monkeypatch.setattr(sys, "argv", ["speed.py", "--only", "video"])
    speed.main()


@pytest.mark.parametrize(("kind", "tokens"), [("image", 576), ("video", 8 * 257)])
def test_generated_files_and_checkpoints_can_be_read(
    kind: Any, tokens: int, tmp_path: Path
) -> None:
    """The checkpoint loads, pictures and clips decode, and each picture has six questions."""
    model = generated_jobs.write_checkpoint(kind, "tiny", tmp_path / "model", CPU)
    count = 7 if kind == "image" else 1
    data = generated_jobs.write_questions(kind, count, tmp_path / "files")
    config = EvalConfig.of(kind, model=str(model), data=str(data))
    manifest = manifest_of(config)
    rows = manifest.read(manifest.index())
    _, inputs = Preprocessor(config)(rows[0], manifest)
    loaded, _ = generated_jobs.load(str(model))
    index = {"image": "image_token_index", "video": "video_token_index"}[kind]
    assert (inputs["input_ids"] == getattr(loaded.config, index)).sum() == tokens
    assert len({row.media[0].path for row in rows}) == (2 if kind == "image" else 1)
