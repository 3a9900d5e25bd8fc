"""Measure what it saves to share a picture's prefill between its questions.

    python jobs/bench/sharing.py                      # pictures: 1, 4, 16 and 32 questions each
    python jobs/bench/sharing.py --kind video --questions 1,24

Rows a second of a worker's whole way (reading, decoding, preprocessing, answering, writing) in one
process on all cores, without Ray, after the model has loaded and answered once. The same rows with
`--share prefix` and `--share none`, and for comparison plain `generate` of transformers, which
shares nothing, in batches of 1 and 16. Each measurement has a process of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.bench.common import ROOT, argument_parser, print_json, write_manifest

BENCHMARKS = {"image": "shapes", "video": "motion"}
METHODS = "vanilla,apet,visionzip,divprune,fastv=96"


def main() -> None:
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add("--kind", choices=BENCHMARKS, default="image", help="(default: image)")
    add("--questions", default="1,4,16,32", help="about each medium (default: 1,4,16,32)")
    add("--rows", type=int, default=96, help="questions in all, at least (default: 96)")
    add("--methods", default=METHODS, help=f"each with a budget, if another (default: {METHODS})")
    add("--budget", default="64", help="(default: 64)")
    add("--model", default="demo", help="(default: demo)")
    add("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(json.loads(args.child))))
        return
    print(
        f"{'questions':>9}  {'':12}{'shared':>9}{'unshared':>10}{'ratio':>8}{'MiB':>7}{'same':>10}"
    )
    results = []
    for questions in map(int, args.questions.split(",")):
        task = {"questions": questions, "rows": args.rows, "kind": args.kind}
        task |= {"model": args.model, "budget": args.budget}
        for method in args.methods.split(","):
            name, _, budget = method.partition("=")
            task |= {"method": name, "budget": budget or args.budget}
            shared, unshared = (run_child({**task, "share": share}) for share in ("prefix", "none"))
            results.append(row := compare(task, method, shared, unshared))
            print(
                f"{questions:9}  {method:12}{row['shared']:9.1f}{row['unshared']:10.1f}"
                f"{row['ratio']:7.1f}x{row['mib']:7.0f}{row['same']:>10}"
            )
        for batch in (1, 16):
            rate = run_child({**task, "generate": batch})["rate"]
            results.append({**task, "method": f"generate, {batch}", "unshared": rate})
            print(f"{questions:9}  {f'generate, {batch}':12}{'':9}{rate:10.1f}")
    print_json("sharing", cores=os.cpu_count(), results=results)


def compare(
    task: Mapping[str, Any], method: str, shared: Mapping[str, Any], unshared: Mapping[str, Any]
) -> dict[str, Any]:
    answers = shared["answers"]
    same = sum(answers[row] == text for row, text in unshared["answers"].items())
    return {
        **task,
        "method": method,
        "shared": shared["rate"],
        "unshared": unshared["rate"],
        "ratio": shared["rate"] / unshared["rate"],
        "mib": shared["mib"],
        "same": f"{same}/{len(answers)}",
    }


def run_child(task: Mapping[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Rows a second, peak memory of the process, and the answers."""
    from pipelines.config.eval_config import EvalConfig

    with tempfile.TemporaryDirectory() as folder:
        config = EvalConfig.of(
            task["kind"],
            model=task["model"],
            data=str(write_questions(task, Path(folder))),
            allow_outside=True,
            methods=(task.get("method", "vanilla"),),
            budgets=(task["budget"],),
            share=task.get("share", "none"),
            output=f"{folder}/out",
            max_new_tokens=16,
        )
        answer = generate_answers(config, task) if "generate" in task else worker_answers(config)
        next(answer)  # the model is loaded and has answered once
        began = time.perf_counter()
        answers = next(answer)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": len(answers) / seconds, "mib": peak, "answers": answers}


def write_questions(task: Mapping[str, Any], folder: Path) -> Path:
    """A manifest with so many questions about each medium, the benchmark's own in turns."""
    from pipelines.benchmarks import benchmark
    from pipelines.benchmarks.synthetic.base import Synthetic
    from pipelines.data.manifest import Manifest

    bench = benchmark(BENCHMARKS[task["kind"]])
    assert isinstance(bench, Synthetic)
    media = max(1, task["rows"] // task["questions"])
    manifest = Manifest.of(str(bench.generate("test", media * bench.questions_per_medium)))
    by_path: dict[str, list[Any]] = {}
    for row in manifest.read(manifest.index()):
        by_path.setdefault(row.media[0].path or "", []).append(row)
    return write_manifest(
        folder,
        (
            {
                "id": f"{path}-{number}",
                "media": f"{manifest.root}/{path}",
                "question": rows[number % len(rows)].question,
            }
            for path, rows in by_path.items()
            for number in range(task["questions"])
        ),
    )


def worker_answers(config: Any) -> Iterator[dict[str, str]]:
    """The answers of a worker that gets all rows, block by block."""
    import torch

    from pipelines.inference.benchmark_job import BenchmarkJob
    from pipelines.inference.failure_tracker import FailureTracker
    from pipelines.inference.job_spec import job_spec
    from pipelines.inference.plan import BATCHES_PER_BLOCK, prepare_rows
    from pipelines.inference.worker import InferenceWorker
    from pipelines.results import answers
    from pipelines.results.run_record import RunRecord

    job = BenchmarkJob.of(config)
    job.begin(RunRecord("bench"))
    spec, tracker = job_spec([job], threads=os.cpu_count()), FailureTracker()
    worker = InferenceWorker(spec, tracker)
    rows = job.missing().append_column("benchmark_index", [[0] * len(job.index)])
    yield {}
    for block in prepare_rows(rows, spec, tracker, BATCHES_PER_BLOCK * spec.batch_size):
        torch.set_num_threads(os.cpu_count() or 1)  # the preprocessor sets one, as in a task
        worker(block)
    table = answers.read(job.runs[0].folder)
    yield dict(zip(table["row_id"].to_pylist(), table["prediction"].to_pylist(), strict=True))


def generate_answers(config: Any, task: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The answers of transformers' own `generate`, with everything done anew for each row."""
    import torch

    from apet.models import load
    from pipelines.config.paths import resolve_paths
    from pipelines.inference.benchmark_job import manifest_of
    from pipelines.inference.preprocess import Collator, Preprocessor

    config = resolve_paths(config)
    manifest, preprocess = manifest_of(config), Preprocessor(config)
    model: Any = load(config.model, attn="sdpa")[0]
    collate = Collator(preprocess.processor)
    torch.set_num_threads(os.cpu_count() or 1)
    rows, size = manifest.read(manifest.index()), task["generate"]

    @torch.inference_mode()
    def batch_answers(batch: list[Any]) -> list[str]:
        inputs = collate.normalise(collate([preprocess(row, manifest)[1] for row in batch]))
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=config.max_new_tokens)
        answers = ids[:, inputs["input_ids"].shape[1] :]
        texts = preprocess.processor.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]

    batch_answers(rows[:1])
    yield {}
    answers: dict[str, str] = {}
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        ids = (row.row_id for row in batch)
        answers |= dict(zip(ids, batch_answers(batch), strict=True))
    yield answers


if __name__ == "__main__":
    main()
