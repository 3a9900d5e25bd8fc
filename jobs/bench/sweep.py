"""Measure what a sweep saves: methods that share their work, against one run for each method.

    python jobs/bench/sweep.py    # 6 methods x 3 budgets, 1,000 questions: an hour on two cores
    python jobs/bench/sweep.py --rows 100    # a few minutes
    python jobs/bench/sweep.py --model llava-hf/llava-1.5-7b-hf --data pope.jsonl    # on a GPU

Both ways call the same functions, without Ray: rows are read and prepared, a worker answers them,
answers go to disk. They take turns block by block, so that other load hits both alike. Loading is
shown apart: each separate run would load the model again, a sweep loads it once. A sweep also
shares reading, decoding, preprocessing and the encoder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs.bench.common import argument_parser, print_json

METHODS = "apet,visionzip,divprune,random,uniform,downsample"
BUDGETS = "192,128,64"


class Seconds:
    """Seconds by what they were spent on. `encoding` is a part of `answering`."""

    def __init__(self) -> None:
        self.reading = self.answering = self.encoding = 0.0

    @property
    def total(self) -> float:
        return self.reading + self.answering

    @property
    def shareable(self) -> float:
        return self.reading + self.encoding

    @contextmanager
    def spent_on(self, activity: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.add(activity, time.perf_counter() - began)

    def add(self, activity: str, seconds: float) -> None:
        setattr(self, activity, getattr(self, activity) + seconds)


def main() -> None:
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add("--rows", type=int, default=1000, help="questions (default 1000)")
    add("--model", default="demo", help="(default: demo)")
    add("--data", help="a manifest (default: the benchmark shapes)")
    add("--methods", default=METHODS, help="(default: %(default)s)")
    add("--budgets", default=BUDGETS, help="(default: %(default)s)")
    add("--batch-size", type=int, default=32, help="(default 32)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, folder)
    points, loading = result["points"], result["once"]["loading"]
    sweep, runs = result["sweep"], result["runs"]
    print(f"\n{args.rows} questions, {points} points     {'sweep':>10}{'separate runs':>16}")
    for name in ("reading", "encoding", "answering", "total"):
        label = {"answering": "answering, with encoding"}.get(name, name)
        print(f"{label + ', s':34}{sweep[name]:>10.1f}{runs[name]:>16.1f}")
    print(f"{'loading, s':34}{loading:>10.1f}{points * loading:>16.1f}")
    print(
        f"\nthe sweep takes {100 * result['cost']:.0f} % of the time of separate runs"
        " (to reach: 50 %; without loading)"
    )
    print(
        f"it saves {100 * result['saved']:.0f} % of what can be shared"
        " (to reach: 90 %; without loading)"
    )
    print_json("sweep", rows=args.rows, **result)


def measure(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Answer all blocks of rows as a sweep and as separate runs, and compare the times."""
    from pipelines.config.eval_config import EvalConfig
    from pipelines.inference.benchmark_job import BenchmarkJob
    from pipelines.inference.failure_tracker import FailureTracker
    from pipelines.inference.job_spec import job_spec
    from pipelines.inference.plan import BATCHES_PER_BLOCK
    from pipelines.inference.preprocess import preprocessor_for
    from pipelines.inference.worker import InferenceWorker
    from pipelines.results.run_record import RunRecord

    def begin_job(output: str) -> BenchmarkJob:
        source = {"data": args.data} if args.data else {"benchmark": "shapes"}
        config = EvalConfig.of(
            "image",
            model=args.model,
            methods=tuple(args.methods.split(",")),
            budgets=tuple(args.budgets.split(",")),
            limit=args.rows,
            batch_size=args.batch_size,
            output=f"{folder}/{output}",
            **source,
        )
        job = BenchmarkJob.of(config)
        job.begin(RunRecord(output))
        return job

    began = time.perf_counter()
    sweep = begin_job("sweep")
    sweep_spec = job_spec([sweep], threads=None)
    worker = InferenceWorker(sweep_spec, FailureTracker())
    preprocessor_for(sweep_spec.config)
    loading = time.perf_counter() - began
    separate = []
    for number, run in enumerate(sweep.runs):
        single = begin_job(f"run-{number}")
        single.open_runs = [other for other in single.open_runs if other.method == run.method]
        separate.append((job_spec([single], threads=None), single))
    rows = sweep.missing().append_column("benchmark_index", [[0] * args.rows])
    sweep_s, separate_s = Seconds(), Seconds()
    size = args.batch_size * BATCHES_PER_BLOCK
    for start in range(0, len(rows), size):
        answer(worker, sweep_spec, rows.slice(start, size), sweep_s)
        for spec, single in separate:
            # The same worker as if it were a new one: without the outputs that methods share.
            worker.job = spec
            single_rows = single.missing().append_column("benchmark_index", [[0] * args.rows])
            worker.engine.towers.forget()
            answer(worker, spec, single_rows.slice(start, size), separate_s)
        worker.job = sweep_spec
        print(f"{min(start + size, len(rows))}/{len(rows)}", end="\r", flush=True)
    points = len(sweep.runs)
    most_to_save = separate_s.shareable * (points - 1) / points
    return {
        "points": points,
        "once": {"loading": loading},
        "sweep": {**vars(sweep_s), "total": sweep_s.total},
        "runs": {**vars(separate_s), "total": separate_s.total},
        "cost": sweep_s.total / separate_s.total,
        "cost_with_loading": (sweep_s.total + loading) / (separate_s.total + points * loading),
        "saved": (separate_s.shareable - sweep_s.shareable) / most_to_save,
    }


def answer(worker: Any, spec: Any, rows: Any, seconds: Seconds) -> None:
    """Prepare a block of rows and answer it under all methods of the job."""
    from pipelines.inference.failure_tracker import FailureTracker
    from pipelines.inference.plan import BATCHES_PER_BLOCK, prepare_rows

    with seconds.spent_on("reading"):
        [block] = prepare_rows(rows, spec, FailureTracker(), len(rows) or BATCHES_PER_BLOCK)
    tower = worker.engine.model.model.vision_tower
    began = 0.0

    def start(*_: Any) -> None:
        nonlocal began
        began = time.perf_counter()

    def stop(*_: Any) -> None:
        seconds.add("encoding", time.perf_counter() - began)

    hooks = [tower.register_forward_pre_hook(start), tower.register_forward_hook(stop)]
    with seconds.spent_on("answering"):
        worker(block)
    for hook in hooks:
        hook.remove()


if __name__ == "__main__":
    main()
