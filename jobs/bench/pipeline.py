"""What does the pipeline cost? Rows a second through Ray Data, against a plain loop over the same functions.

    python jobs/bench/pipeline.py                 # a table, and one JSON line last
    python jobs/bench/pipeline.py --rows 500 --memory   # without the part on memory

(a) a worker that answers nothing, on image files: what reading, preparing, moving and writing cost;
(b) the demo model: what is left of its own speed. Start-up is shown apart: nothing is read until all workers have
loaded, and rates are from that moment to the last answer. The plain loop calls the same functions one after the other
in one process, without Ray, on all the cores that the pipeline has.
Then the same with one worker and with two, and the driver's memory on manifests of growing length.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MEMORY = (1_000, 10_000, 100_000)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, default=2000, help="images that the idle worker is given (default 2000)"
    )
    parser.add_argument("--model", default="demo", help="of part (b) (default: demo)")
    parser.add_argument(
        "--model-rows",
        type=int,
        default=400,
        help="questions that the model is asked (default 400)",
    )
    parser.add_argument(
        "--memory", type=int, nargs="*", default=MEMORY, help="manifest lengths; none: leave it out"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child](args)))
        return
    found: dict[str, Any] = {}
    print(f"{'':34}{'rows/s':>10}{'of the loop':>14}{'start-up s':>12}")
    for part, title in (("idle", f"(a) idle worker, {args.rows} images"), ("model", "(b) model")):
        loop, *others = (child(f"{part}-{way}", args) for way in ("loop", "one", "two"))
        found[part] = {"loop": loop, "one": others[0], "two": others[1]}
        print(f"{title + ', plain loop':34}{loop['rate']:10.1f}{'':14}{loop['startup_s']:12.1f}")
        for way, name in (("one", "one actor"), ("two", "two actors")):
            each = found[part][way]
            share = each["rate"] / loop["rate"]
            print(
                f"{'    ' + name:34}{each['rate']:10.1f}{100 * share:12.0f} %{each['startup_s']:12.1f}"
            )
    if args.memory:
        print(f"\n{'manifest rows':>14}{'driver MiB':>12}{'more':>8}{'wall s':>9}")
        found["memory"] = []
        for rows in args.memory:
            each = child("memory", argparse.Namespace(**{**vars(args), "rows": rows}))
            found["memory"].append(each)
            first = found["memory"][-2]["mib"] if len(found["memory"]) > 1 else each["mib"]
            print(
                f"{rows:>14,}{each['mib']:12.0f}{100 * (each['mib'] / first - 1):7.1f}%{each['wall_s']:9.0f}"
            )
    print(json.dumps({"bench": "pipeline", "cores": os.cpu_count(), **found}))


def child(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own, so that none profits from what another has loaded."""
    command = [sys.executable, __file__, "--child", name, "--rows", str(args.rows)]
    command += ["--model", args.model, "--model-rows", str(args.model_rows)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last


def measured(args: argparse.Namespace, part: str, way: str) -> dict[str, Any]:
    """Rows a second from the moment that all workers have loaded to the last answer."""
    from pipelines.config.eval_config import EvalConfig
    from pipelines.inference import benchmark_job
    from pipelines.inference.worker import InferenceWorker
    from pipelines.job import run
    from pipelines.results import answers

    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        gate = Path(folder, "loaded")
        gate.mkdir()
        data = images(Path(folder), args.rows) if part == "idle" else None
        count = {"loop": 1, "one": 1, "two": 2}[way]
        config = EvalConfig.of(
            "image",
            model=args.model,
            data=str(data) if data else None,
            methods=("vanilla",),
            limit=None if data else args.model_rows,
            output=f"{folder}/out",
            actors=(count, count),
            cpus_per_actor={"one": 1.0, "two": 0.5}.get(way),
            **({"benchmark": "shapes"} if part == "model" else {}),
        )
        worker = counted(idle() if part == "idle" else InferenceWorker, gate)
        find = benchmark_job.manifest_of
        benchmark_job.manifest_of = lambda config: held(find(config), gate, count)
        if way == "loop":
            loop(config, worker)
        elif run(config, worker):
            raise SystemExit("the job failed")
        ready = max(path.stat().st_mtime for path in gate.iterdir())
        tables = [answers.read(each) for each in runs(Path(folder, "out"))]
        times = [
            moment.timestamp() for table in tables for moment in table["answered_at"].to_pylist()
        ]
    return {
        "rate": len(times) / (max(times) - ready),
        "startup_s": ready - began,
        "rows": len(times),
    }


def counted(worker: Any, gate: Path) -> Any:
    """A worker that leaves a file when it has loaded."""

    class CountedEngine(worker.engine_class):  # type: ignore[misc,name-defined]
        def load(self) -> None:
            super().load()
            Path(gate, uuid.uuid4().hex).touch()

    return type("CountedWorker", (worker,), {"engine_class": CountedEngine})


def held(manifest: Any, gate: Path, count: int) -> Any:
    """A manifest whose media cannot be had until so many workers have loaded: nothing is prepared in advance."""
    from pipelines.data.manifest import Manifest

    class Held(Manifest):
        def fetch(self, medium: Any) -> Any:
            while len(os.listdir(gate)) < count:
                time.sleep(0.01)
            return super().fetch(medium)

    return Held(**vars(manifest))


def runs(output: Path) -> list[Any]:
    from pipelines.results.storage import Folder

    return [Folder.of(str(path.parent)) for path in output.glob("*/config.yaml")]


def loop(config: Any, worker: Any) -> None:
    """The same functions one after the other in this process: read, prepare, answer, write."""
    import torch

    from pipelines.inference.benchmark_job import BenchmarkJob
    from pipelines.inference.failure_tracker import FailureTracker
    from pipelines.inference.job_spec import job_spec
    from pipelines.inference.plan import BATCHES_PER_BLOCK, prepare_rows
    from pipelines.inference.preprocess import preprocessor_for
    from pipelines.results.run_record import RunRecord

    work = BenchmarkJob.of(config)
    work.begin(RunRecord("loop"))
    plan = job_spec([work], threads=os.cpu_count())
    book = FailureTracker()
    preprocessor_for(plan.config)
    answerer = worker(plan, book)
    torch.set_num_threads(os.cpu_count() or 1)  # in a task it takes one
    rows = work.missing().append_column("benchmark", [[0] * len(work.index)])
    for block in prepare_rows(rows, plan, book, BATCHES_PER_BLOCK * plan.batch_size):
        answerer(block)


def idle() -> Any:
    """A worker that takes rows, makes the model's inputs of them and says nothing."""
    from pipelines.inference.engines.transformers import TransformersEngine
    from pipelines.inference.worker import InferenceWorker

    class IdleEngine(TransformersEngine):
        def load(self) -> None:
            pass

        def answer(self, config: Any, method: Any, rows: Sequence[Any], *_: Any) -> list[Any]:
            return [{"prediction": "", "visual_tokens_in": 0} for _ in rows]

    return type("IdleWorker", (InferenceWorker,), {"engine_class": IdleEngine})


def images(folder: Path, count: int) -> Path:
    """As many image files as asked for, of a photo's usual size, and their manifest."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    soft = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    with (folder / "rows.jsonl").open("w") as manifest:
        for number in range(count):
            name = f"{number:05}.jpg"
            soft[number % 12, number % 16] = rng.integers(0, 256, 3)
            Image.fromarray(soft).resize((640, 480), Image.Resampling.BICUBIC).save(
                folder / name, quality=85
            )
            manifest.write(
                json.dumps({"id": f"{number:05}", "media": name, "question": "What is this?"})
                + "\n"
            )
    return folder / "rows.jsonl"


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """The driver's peak memory on a manifest of so many rows, without media, answered by an idle worker."""
    import resource

    from PIL import Image

    from pipelines.config.eval_config import EvalConfig
    from pipelines.job import run

    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        Image.new("RGB", (32, 32), "grey").save(path.with_name("grey.png"))
        with path.open("w") as manifest:
            for number in range(args.rows):
                row = {"id": f"row-{number:09}", "media": "grey.png", "question": "What is this?"}
                manifest.write(json.dumps(row) + "\n")
        config = EvalConfig.of(
            "image",
            model=args.model,
            data=str(path),
            methods=("vanilla",),
            output=f"{folder}/out",
            batch_size=64,
        )
        if run(config, idle()):
            raise SystemExit("the job failed")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": args.rows, "mib": peak, "wall_s": time.time() - began}


CHILDREN = {
    **{
        f"{part}-{way}": (lambda args, part=part, way=way: measured(args, part, way))
        for part in ("idle", "model")
        for way in ("loop", "one", "two")
    },
    "memory": memory,
}


if __name__ == "__main__":
    main()
