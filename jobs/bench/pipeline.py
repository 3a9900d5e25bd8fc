"""Measure what the pipeline costs: rows a second through Ray Data, against a plain loop.

    python jobs/bench/pipeline.py
    python jobs/bench/pipeline.py --rows 500 --memory    # without the part on memory

(a) A worker that answers nothing, on image files: the cost of reading, preparing, moving, writing.
(b) The demo model: what remains of its own speed.

Nothing is read until all workers have loaded. That start-up is shown apart; rates are from then to
the last answer. The plain loop calls the same functions one after the other in one process, without
Ray, on all the cores that the pipeline has. The pipeline runs with one worker and with two. The
last table shows the driver's memory on manifests of growing length.
"""

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

from jobs.bench.common import (
    ROOT,
    argument_parser,
    print_json,
    run_folders,
    write_manifest,
    write_photo,
)

MANIFEST_LENGTHS = (1_000, 10_000, 100_000)
QUESTION = "What is this?"
ACTORS = {"loop": 1, "one": 1, "two": 2}  # workers of each variant


def main() -> None:
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add("--rows", type=int, default=2000, help="images for the idle worker (default 2000)")
    add("--model", default="demo", help="of part (b) (default: demo)")
    add("--model-rows", type=int, default=400, help="questions for the model (default 400)")
    add(
        "--memory",
        type=int,
        nargs="*",
        default=MANIFEST_LENGTHS,
        help="manifest lengths; none: leave this part out",
    )
    add("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child](args)))
        return
    results: dict[str, Any] = {}
    print(f"{'':34}{'rows/s':>10}{'of the loop':>14}{'start-up s':>12}")
    for part, title in (("idle", f"(a) idle worker, {args.rows} images"), ("model", "(b) model")):
        variants = results[part] = {name: run_child(f"{part}-{name}", args) for name in ACTORS}
        loop = variants["loop"]
        print(f"{title + ', plain loop':34}{loop['rate']:10.1f}{'':14}{loop['startup_s']:12.1f}")
        for name in ("one", "two"):
            row, label = variants[name], f"    {name} actor{'s' if name == 'two' else ''}"
            share = 100 * row["rate"] / loop["rate"]
            print(f"{label:34}{row['rate']:10.1f}{share:12.0f} %{row['startup_s']:12.1f}")
    if args.memory:
        print(f"\n{'manifest rows':>14}{'driver MiB':>12}{'more':>8}{'wall s':>9}")
        results["memory"] = []
        for rows in args.memory:
            row = run_child("memory", argparse.Namespace(**{**vars(args), "rows": rows}))
            previous = results["memory"][-1] if results["memory"] else row
            more = 100 * (row["mib"] / previous["mib"] - 1)
            print(f"{rows:>14,}{row['mib']:12.0f}{more:7.1f}%{row['wall_s']:9.0f}")
            results["memory"].append(row)
    print_json("pipeline", cores=os.cpu_count(), **results)


def run_child(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure in a new process, so that no measurement profits from what another has loaded."""
    command = [sys.executable, __file__, "--child", name, "--rows", str(args.rows)]
    command += ["--model", args.model, "--model-rows", str(args.model_rows)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_rate(args: argparse.Namespace, part: str, variant: str) -> dict[str, Any]:
    """Rows a second from the moment that all workers have loaded to the last answer."""
    from pipelines.config.eval_config import EvalConfig
    from pipelines.inference import benchmark_job
    from pipelines.inference.worker import InferenceWorker
    from pipelines.job import run
    from pipelines.results import answers

    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        loaded = Path(folder, "loaded")
        loaded.mkdir()
        actors = ACTORS[variant]
        if part == "idle":
            source: dict[str, Any] = {"data": str(write_images(Path(folder), args.rows))}
        else:
            source = {"benchmark": "shapes", "limit": args.model_rows}
        config = EvalConfig.of(
            "image",
            model=args.model,
            methods=("vanilla",),
            output=f"{folder}/out",
            actors=(actors, actors),
            cpus_per_actor={"one": 1.0, "two": 0.5}.get(variant),
            **source,
        )
        worker = note_loading(idle_worker() if part == "idle" else InferenceWorker, loaded)
        manifest_of = benchmark_job.manifest_of
        benchmark_job.manifest_of = lambda config: hold_media(manifest_of(config), loaded, actors)
        if variant == "loop":
            run_plain_loop(config, worker)
        elif run(config, worker):
            raise SystemExit("the job failed")
        ready = max(path.stat().st_mtime for path in loaded.iterdir())
        tables = [answers.read(run_folder) for run_folder in run_folders(Path(folder, "out"))]
        times = [
            moment.timestamp() for table in tables for moment in table["answered_at"].to_pylist()
        ]
    return {
        "rate": len(times) / (max(times) - ready),
        "startup_s": ready - began,
        "rows": len(times),
    }


def note_loading(worker: Any, loaded: Path) -> Any:
    """A worker class that leaves a file in a folder when it has loaded."""

    class NotingEngine(worker.engine_class):  # type: ignore[misc,name-defined]
        def load(self) -> None:
            super().load()
            Path(loaded, uuid.uuid4().hex).touch()

    return type("NotingWorker", (worker,), {"engine_class": NotingEngine})


def hold_media(manifest: Any, loaded: Path, actors: int) -> Any:
    """A manifest that delivers no media, and so prepares no row, before all workers have loaded."""
    from pipelines.data.manifest import Manifest

    class HeldManifest(Manifest):
        def fetch(self, medium: Any) -> Any:
            while len(os.listdir(loaded)) < actors:
                time.sleep(0.01)
            return super().fetch(medium)

    return HeldManifest(**vars(manifest))


def run_plain_loop(config: Any, worker: Any) -> None:
    """Call the same functions one after the other in this process: read, prepare, answer, write."""
    import torch

    from pipelines.inference.benchmark_job import BenchmarkJob
    from pipelines.inference.failure_tracker import FailureTracker
    from pipelines.inference.job_spec import job_spec
    from pipelines.inference.plan import BATCHES_PER_BLOCK, prepare_rows
    from pipelines.inference.preprocess import preprocessor_for
    from pipelines.results.run_record import RunRecord

    job = BenchmarkJob.of(config)
    job.begin(RunRecord("loop"))
    spec = job_spec([job], threads=os.cpu_count())
    tracker = FailureTracker()
    preprocessor_for(spec.config)
    answer = worker(spec, tracker)
    torch.set_num_threads(os.cpu_count() or 1)  # the preprocessor sets one, as in a task
    rows = job.missing().append_column("benchmark_index", [[0] * len(job.index)])
    for block in prepare_rows(rows, spec, tracker, BATCHES_PER_BLOCK * spec.batch_size):
        answer(block)


def idle_worker() -> Any:
    """A worker class without a model: it unpacks the inputs and answers nothing."""
    from pipelines.inference.engines.transformers import TransformersEngine
    from pipelines.inference.worker import InferenceWorker

    class IdleEngine(TransformersEngine):
        def load(self) -> None:
            pass

        def answer(self, config: Any, method: Any, rows: Sequence[Any], *_: Any) -> list[Any]:
            return [{"prediction": "", "visual_tokens_in": 0} for _ in rows]

    return type("IdleWorker", (InferenceWorker,), {"engine_class": IdleEngine})


def write_images(folder: Path, count: int) -> Path:
    """Write image files of a photo's usual size, and return their manifest."""
    names = [f"{number:05}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        write_photo(folder / name, seed=number)
    return write_manifest(
        folder, ({"id": name[:-4], "media": name, "question": QUESTION} for name in names)
    )


def measure_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of the driver: many rows about one picture, answered by an idle worker."""
    import resource

    from PIL import Image

    from pipelines.config.eval_config import EvalConfig
    from pipelines.job import run

    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (32, 32), "grey").save(Path(folder, "grey.png"))
        data = write_manifest(
            Path(folder),
            (
                {"id": f"row-{number:09}", "media": "grey.png", "question": QUESTION}
                for number in range(args.rows)
            ),
        )
        config = EvalConfig.of(
            "image",
            model=args.model,
            data=str(data),
            methods=("vanilla",),
            output=f"{folder}/out",
            batch_size=64,
        )
        if run(config, idle_worker()):
            raise SystemExit("the job failed")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": args.rows, "mib": peak, "wall_s": time.time() - began}


CHILDREN = {
    **{
        f"{part}-{variant}": (
            lambda args, part=part, variant=variant: measure_rate(args, part, variant)
        )
        for part in ("idle", "model")
        for variant in ACTORS
    },
    "memory": measure_memory,
}


if __name__ == "__main__":
    main()
