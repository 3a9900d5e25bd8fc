"""What does a sweep save? Points that share their work, against each point as a run of its own.

    python jobs/bench/sweep.py                     # 6 methods x 3 budgets on 1,000 questions: an hour on two CPU cores
    python jobs/bench/sweep.py --rows 100          # a few minutes
    python jobs/bench/sweep.py --model llava-hf/llava-1.5-7b-hf --data pope.jsonl   # on a GPU

Both ways call the same functions, without Ray: rows are read and prepared, a worker answers them, answers go to disk.
Block by block they take turns, so that a busy moment hits both alike. Start-up is apart: each separate run would load
the model anew, a sweep loads it once. What else can be shared is reading, decoding, preprocessing and the encoder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

METHODS = ("apet", "visionzip", "divprune", "random", "uniform", "downsample")
BUDGETS = ("192", "128", "64")


class Spent:
    """Seconds, by what they went into."""

    def __init__(self) -> None:
        self.reading = self.answering = self.encoding = 0.0

    @property
    def total(self) -> float:
        return self.reading + self.answering

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        setattr(self, what, getattr(self, what) + time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1000, help="questions (default 1000)")
    parser.add_argument("--model", default="demo", help="(default: demo)")
    parser.add_argument("--data", help="a manifest (default: the benchmark shapes)")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help=f"(default: {','.join(METHODS)})"
    )
    parser.add_argument(
        "--budgets", default=",".join(BUDGETS), help=f"(default: {','.join(BUDGETS)})"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="(default 32)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(args, folder)
    points, once, sweep, runs = (found[key] for key in ("points", "once", "sweep", "runs"))
    print(f"\n{args.rows} questions, {points} points     {'sweep':>10}{'separate runs':>16}")
    for name in ("reading", "encoding", "answering", "total"):
        title = {"answering": "answering, encoder and all"}.get(name, name)
        print(f"{title + ', s':34}{sweep[name]:>10.1f}{runs[name]:>16.1f}")
    print(f"{'loading, s':34}{once['loading']:>10.1f}{points * once['loading']:>16.1f}")
    print(
        f"\nthe sweep takes {100 * found['cost']:.0f} % of the time of separate runs (to reach: 50 %; loading apart)"
    )
    print(
        f"it saves {100 * found['saved']:.0f} % of what can be shared (to reach: 90 %; loading apart)"
    )
    print(json.dumps({"bench": "sweep", "rows": args.rows, **found}))


def measured(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    from pipelines.config.eval_config import EvalConfig
    from pipelines.inference.benchmark_job import BenchmarkJob
    from pipelines.inference.failure_tracker import FailureTracker
    from pipelines.inference.job_spec import job_spec
    from pipelines.inference.plan import BATCHES_PER_BLOCK
    from pipelines.inference.preprocess import preprocessor_for
    from pipelines.inference.worker import InferenceWorker
    from pipelines.results.run_record import RunRecord

    def works(output: str) -> BenchmarkJob:
        given = {"data": args.data} if args.data else {"benchmark": "shapes"}
        config = EvalConfig.of(
            "image",
            model=args.model,
            methods=tuple(args.methods.split(",")),
            budgets=tuple(args.budgets.split(",")),
            limit=args.rows,
            batch_size=args.batch_size,
            output=f"{folder}/{output}",
            **given,
        )
        work = BenchmarkJob.of(config)
        work.begin(RunRecord(output))
        return work

    began = time.perf_counter()
    sweep = works("sweep")
    job = job_spec([sweep], threads=None)
    together = InferenceWorker(job, FailureTracker())
    preprocessor_for(job.config)
    loading = time.perf_counter() - began
    alone = []
    for place, unit in enumerate(sweep.runs):
        single = works(f"run-{place}")
        single.open_runs = [run for run in single.open_runs if run.method == unit.method]
        alone.append((job_spec([single], threads=None), single))
    rows = sweep.missing().append_column("benchmark", [[0] * args.rows])
    spent, apart = Spent(), Spent()
    size = args.batch_size * BATCHES_PER_BLOCK
    for start in range(0, len(rows), size):
        answer(together, job, rows.slice(start, size), spent)
        for one, single in alone:
            together.job = one  # a worker of its own, but for loading it again
            mine = single.missing().append_column("benchmark", [[0] * args.rows])
            together.engine.towers.forget()
            answer(together, one, mine.slice(start, size), apart)
        together.job = job
        print(f"{min(start + size, len(rows))}/{len(rows)}", end="\r", flush=True)
    points = len(sweep.runs)
    shared = (apart.reading + apart.encoding) * (points - 1) / points
    return {
        "points": points,
        "once": {"loading": loading},
        "sweep": {**vars(spent), "total": spent.total},
        "runs": {**vars(apart), "total": apart.total},
        "cost": spent.total / apart.total,
        "cost_with_loading": (spent.total + loading) / (apart.total + points * loading),
        "saved": (apart.reading + apart.encoding - spent.reading - spent.encoding) / shared,
    }


def answer(worker: Any, job: Any, rows: Any, spent: Spent) -> None:
    """Prepare a block of rows and answer it, under all points of the job."""
    from pipelines.inference.failure_tracker import FailureTracker
    from pipelines.inference.plan import BATCHES_PER_BLOCK, prepare_rows

    with spent.on("reading"):
        [block] = prepare_rows(rows, job, FailureTracker(), len(rows) or BATCHES_PER_BLOCK)
    towers = worker.engine.model.model.vision_tower
    clock = [0.0]
    before = towers.register_forward_pre_hook(lambda *_: clock.__setitem__(0, time.perf_counter()))
    after = towers.register_forward_hook(
        lambda *_: setattr(spent, "encoding", spent.encoding + time.perf_counter() - clock[0])
    )
    with spent.on("answering"):
        worker(block)
    before.remove()
    after.remove()


if __name__ == "__main__":
    main()
