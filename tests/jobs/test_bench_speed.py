"""The benchmark of speed: its models are the real shapes, its sums are right, and its table says what was reached."""

from __future__ import annotations

import json
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

JOBS = str(Path(__file__).parents[2] / "jobs" / "bench")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The scripts, as their own folder's imports find them."""
    sys.path.insert(0, JOBS)
    from jobs.bench import speed

    yield speed
    sys.path.remove(JOBS)


@pytest.mark.parametrize("name", ["llava-1.5-7b", "qwen2.5-vl-7b", "video-llava-7b"])
def test_the_models_are_of_the_real_shapes(name: str, bench: Any) -> None:
    assert shape_of(bench.SUBJECTS[name].config("7b")) == SHAPES[name]


@torch.inference_mode()
@pytest.mark.parametrize(("name", "kept"), [("llava-1.5-7b", 64.0), ("video-llava-7b", 256.0)])
def test_a_prefill_keeps_what_the_schedule_says(name: str, kept: float, bench: Any) -> None:
    subject, point = (
        bench.SUBJECTS[name],
        bench.Point(build("apet", budget=int(kept)), str(int(kept))),
    )
    model = subject.make("tiny", CPU, "sdpa")
    inputs = subject.prompts(1, model)
    assert (inputs["input_ids"] == subject.placeholder).sum() == subject.visual + subject.inside
    assert inputs["input_ids"].shape[1] == subject.visual + subject.text
    points = [bench.Point(build("vanilla"), "full"), point]
    bench.measure(model, points, inputs, 1)
    assert [each.kv_bytes for each in points] == [
        subject.kv_bytes(model, each.method, 1) for each in points
    ]
    assert point.kept == str(subject.schedule(model, point.method))
    assert subject.schedule(model, point.method).average == kept
    vanilla, ours = bench.report(subject, model, points)
    assert vanilla["prefill"]["speedup"] == 1.0
    assert ours["prefill"]["limit"] == pytest.approx(vanilla["flops"] / ours["flops"])
    assert ours["decoder"]["limit"] > ours["prefill"]["limit"] > 1


def test_a_rival_that_does_not_fit_ends_no_table(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(model: Any, point: Any, inputs: Any) -> None:
        if point.method.name == starved:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        point.prefill.append(1.0)

    monkeypatch.setattr(sys.modules["jobs.bench.models"], "run", run)
    model = SimpleNamespace(device=CPU)
    points = [
        bench.Point(build(name, budget="50%"), "50%") for name in ("vanilla", "fastv", "uniform")
    ]
    starved = "fastv"
    bench.measure(model, points, {}, 2)
    assert [point.refused for point in points] == [
        None,
        "out of memory: tried to allocate 20 GiB",
        None,
    ]
    assert [len(point.prefill) for point in points] == [2, 0, 2]
    starved = "vanilla"  # which all others are measured against
    with pytest.raises(torch.OutOfMemoryError):
        bench.measure(model, points, {}, 1)


def test_a_model_that_fails_costs_no_other(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(name: str, given: Any, device: Any) -> Iterator[Any]:
        yield f"{name} began"
        if name == "qwen2.5-vl-7b":
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        yield f"{name} ended"

    monkeypatch.setattr(bench, "_prefill", one)
    found: list[str] = []
    with pytest.raises(RuntimeError, match=r"without qwen2.5-vl-7b$"):
        found.extend(bench.prefill(SimpleNamespace(), CPU))
    assert found[-2:] == ["video-llava-7b began", "video-llava-7b ended"]
    assert len(found) == 5


@torch.inference_mode()
def test_a_profile_tells_compression_from_the_rest(bench: Any) -> None:
    from jobs.bench import profile_prefill

    subject = bench.SUBJECTS["llava-1.5-7b"]
    model = subject.make("tiny", CPU, "sdpa")
    inputs = subject.prompts(1, model)
    for method in (build("vanilla"), build("apet", budget=64)):
        took, parts = profile_prefill.shares(model, method, inputs)
        assert took > 0
        assert sum(parts.values()) == pytest.approx(1)
        assert parts["matmul"] > 0.1
        assert (parts["compression"] > 0) == (method.name == "apet")


def test_the_table_says_what_was_reached(bench: Any) -> None:
    rows = [
        bench.bar("faster", 3.6, ">=", 3.5, limit=4.2, paper=1.38),
        bench.bar("slower", 3.4, ">=", 3.5),
        bench.bar("little", 0.7, "<=", 1.0, "%"),
        bench.bar("much", 1.2, "<=", 1.0, "%"),
        bench.bar("equal", 100.0, "=", 100.0, "%"),
        bench.bar("without a bar", 5.0, unit=""),
    ]
    assert [row["reached"] for row in rows] == [True, False, True, False, True, None]
    lines = [bench.shown(row, gpu=True) for row in rows]
    assert lines[0].split() == [
        "faster",
        "3.60",
        "x",
        ">=",
        "3.50",
        "x",
        "4.20",
        "x",
        "1.38",
        "x",
        "yes",
    ]
    assert [line.split()[-1] for line in lines] == ["yes", "NO", "yes", "NO", "yes", "-"]
    assert {bench.shown(row, gpu=False).split()[-1] for row in rows} == {
        "-"
    }  # the bars are for a GPU
    assert all(len(line) <= len(bench.TITLE) for line in lines)


@pytest.mark.parametrize(("gigabytes", "rows"), [(80, 64), (141, 128)])
def test_a_large_gpu_is_given_more_rows(
    gigabytes: int, rows: int, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: about)
    monkeypatch.setattr(sys, "argv", ["bench_speed.py"])
    assert bench.arguments(gpu=True).batch == rows
    assert bench.arguments(gpu=False).batch == 1


def test_few_clips_are_encoded(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.bench import whole_job as whole

    monkeypatch.setattr(whole, "clip", lambda path, seed: path.write_text(str(seed)))
    data = whole.questions("video", 20, tmp_path / "video")
    names = [json.loads(line)["media"] for line in data.read_text().splitlines()]
    assert len(set(names)) == 20
    assert [int((data.parent / name).read_text()) for name in names] == [*range(16), *range(4)]


def test_a_part_that_fails_ends_alone(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fine(*_: object) -> Iterator[dict[str, Any]]:
        yield bench.bar("fine", 2.0)

    def broken(error: BaseException) -> Any:
        def part(*_: object) -> Iterator[dict[str, Any]]:
            yield bench.bar("first", 1.0)
            raise error

        return part

    monkeypatch.setattr(bench, "prefill", broken(ValueError("no such thing")))
    monkeypatch.setattr(bench, "job", broken(SystemExit("the job failed")))
    monkeypatch.setattr(bench, "video", fine)
    monkeypatch.setattr(sys, "argv", ["bench_speed.py", "--only", "prefill,job,video"])
    with pytest.raises(SystemExit) as end:
        bench.main()
    assert end.value.code == 1
    out, err = capsys.readouterr()
    *each, whole = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert out.splitlines()[-1].startswith("{")
    assert [part["part"] for part in each] == ["prefill", "job", "video"]
    assert [row["what"] for part in each for row in part["rows"]] == ["first", "first", "fine"]
    assert whole["rows"] == [row for part in each for row in part["rows"]]
    assert whole["failed"] == ["prefill", "job"]
    assert "ValueError: no such thing" in err
    assert "the job failed" in err
    monkeypatch.setattr(sys, "argv", ["bench_speed.py", "--only", "video"])
    bench.main()


def test_files_and_checkpoints(bench: Any, tmp_path: Path) -> None:
    """What the jobs are given: a folder that loads, pictures and clips that decode, questions six a picture."""
    from jobs.bench import whole_job as whole
    from pipelines.benchmarks import benchmark
    from pipelines.config.eval_config import EvalConfig
    from pipelines.inference.preprocess import Preprocessor

    for kind, tokens in (("image", 576), ("video", 8 * 257)):
        model = whole.checkpoint(kind, "tiny", tmp_path / f"{kind}-model", CPU)
        data = whole.questions(kind, 7 if kind == "image" else 1, tmp_path / kind)
        manifest = benchmark("manifest").rows(str(data), "test", kind=kind).ready()
        rows = manifest.read(manifest.index())
        config = EvalConfig.of(kind, model=str(model), data=str(data), max_new_tokens=2)
        _, inputs = Preprocessor(config)(rows[0], manifest)
        found, _ = whole.load(str(model))
        placeholder = (
            found.config.video_token_index if kind == "video" else found.config.image_token_index
        )
        assert (inputs["input_ids"] == placeholder).sum() == tokens
        assert len({row.media[0].path for row in rows}) == (2 if kind == "image" else 1)
