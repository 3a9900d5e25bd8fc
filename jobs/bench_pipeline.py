"""What does the pipeline cost? Rows a second through Ray Data, against a plain loop over the same functions.

    python jobs/bench_pipeline.py                 # a table, and one JSON line last
    python jobs/bench_pipeline.py --rows 500 --no-memory

(a) a worker that answers nothing, on image files: what reading, preparing, moving and writing cost;
(b) the demo model: what is left of its own speed. Start-up is shown apart: rates are from the first answer on.
The plain loop runs in one process, without Ray, on all the cores that the pipeline has.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MEMORY = (1_000, 10_000, 100_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="images that the idle worker is given (default 2000)")
    parser.add_argument("--model", default="demo", help="of part (b) (default: demo)")
    parser.add_argument("--model-rows", type=int, default=400, help="questions that the model is asked (default 400)")
    parser.add_argument("--memory", type=int, nargs="*", default=MEMORY, help="manifest lengths; none: leave it out")
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
            print(f"{'    ' + name:34}{each['rate']:10.1f}{100 * share:12.0f} %{each['startup_s']:12.1f}")
    if args.memory:
        print(f"\n{'manifest rows':>14}{'driver MiB':>12}{'more':>8}{'wall s':>9}")
        found["memory"] = []
        for rows in args.memory:
            each = child("memory", argparse.Namespace(**{**vars(args), "rows": rows}))
            found["memory"].append(each)
            first = found["memory"][-2]["mib"] if len(found["memory"]) > 1 else each["mib"]
            print(f"{rows:>14,}{each['mib']:12.0f}{100 * (each['mib'] / first - 1):7.1f}%{each['wall_s']:9.0f}")
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
    """Rows a second from the end of the first batch to the end of the last, by the answers' own times."""
    from pipelines import answers
    from pipelines.config import EvalConfig
    from pipelines.run import run

    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        data = images(Path(folder), args.rows) if part == "idle" else None
        config = EvalConfig.of(
            "image",
            model=args.model,
            data=str(data) if data else None,
            methods=("vanilla",),
            limit=None if data else args.model_rows,
            output=f"{folder}/out",
            actors={"one": (1, 1), "two": (2, 2)}.get(way),
            cpus_per_actor={"one": 1.0, "two": 0.5}.get(way),
            **({"benchmark": "shapes"} if part == "model" else {}),
        )
        worker = idle() if part == "idle" else None
        if way == "loop":
            loop(config, worker)
        elif run(config, worker):
            raise SystemExit("the job failed")
        tables = [answers.read(each) for each in runs(Path(folder, "out"))]
        times = sorted(moment.timestamp() for table in tables for moment in table["answered_at"].to_pylist())
    first = times[0]
    steady = [moment for moment in times if moment > first + 0.05]
    return {"rate": len(steady) / (times[-1] - first), "startup_s": first - began, "rows": len(times)}


def runs(output: Path) -> list[Any]:
    from pipelines.storage import Folder

    return [Folder.of(str(path.parent)) for path in output.glob("*/config.yaml")]


def loop(config: Any, worker: Any) -> None:
    """The same functions one after the other in this process: read, prepare, answer, write."""
    import pyarrow as pa
    import torch

    from pipelines import run as job
    from pipelines.answerer import Answerer, Run
    from pipelines.ledger import Book
    from pipelines.paths import resolve_paths
    from pipelines.plan import job_of, prepared
    from pipelines.prepare import preparer

    config = resolve_paths(config)
    bench = job.benchmark(config.benchmark)
    manifest = job._manifest(config, bench)
    units = job._units(config, bench, manifest)
    index = manifest.index(config.limit)
    todo = job._missing(units, index)
    for unit in units:
        unit.folder.write("config.yaml", b"")
    plan = job_of(config, [Run(unit.point, unit.run_id, unit.folder) for unit in units], threads=os.cpu_count())
    book = Book()
    answerer = (worker or Answerer)(plan, book)
    preparer(plan.recipe)
    torch.set_num_threads(os.cpu_count() or 1)  # in a task it takes one
    for start in range(0, len(todo), 4 * config.batch_size):
        block: pa.Table = prepared(todo.slice(start, 4 * config.batch_size), plan.recipe, manifest, book)
        answerer(block)


def idle() -> Any:
    """A worker that takes rows, makes the model's inputs of them and says nothing."""
    from pipelines.answerer import Answerer

    class Idle(Answerer):
        def load(self) -> None:
            pass

        def generate(self, method: Any, rows: Sequence[Any], inputs: Any, tokens: int | None = None) -> list[Any]:
            return [{"prediction": "", "visual_tokens_in": 0} for _ in rows]

    return Idle


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
            Image.fromarray(soft).resize((640, 480), Image.Resampling.BICUBIC).save(folder / name, quality=85)
            manifest.write(json.dumps({"id": f"{number:05}", "media": name, "question": "What is this?"}) + "\n")
    return folder / "rows.jsonl"


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """The driver's peak memory on a manifest of so many rows, without media, answered by an idle worker."""
    import resource

    from PIL import Image

    from pipelines.config import EvalConfig
    from pipelines.run import run

    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        Image.new("RGB", (32, 32), "grey").save(path.with_name("grey.png"))
        with path.open("w") as manifest:
            for number in range(args.rows):
                row = {"id": f"row-{number:09}", "media": "grey.png", "question": "What is this?"}
                manifest.write(json.dumps(row) + "\n")
        config = EvalConfig.of(
            "image", model=args.model, data=str(path), methods=("vanilla",), output=f"{folder}/out", batch_size=64
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
