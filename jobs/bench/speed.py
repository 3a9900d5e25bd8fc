"""Measure speed against what is possible: one command for the whole table of docs/speed.md.

    python jobs/bench/speed.py    # on a GPU about 20 minutes, on two CPU cores five
    python jobs/bench/speed.py --only prefill,job
    python jobs/bench/speed.py --profile    # and where the time of a prefill goes

  prefill   pixels to first logits, and the decoder alone: ApET against vanilla on LLaVA-1.5 (64
            tokens), Qwen2.5-VL (10 %) and Video-LLaVA (256 of 2,048); beside each the limit that
            the floating-point operations set over the same span; the share of compression;
            operations a second against a large matrix product's, the mean of one before and one
            after; bytes of the KV cache
  rivals    the prefill of every other method on LLaVA-1.5 at the same budget
  job       whole jobs on image files with questions like POPE's and answers of two tokens, through
            the pipeline: rows a second, ApET against vanilla, and against `generate` on one row
            after the other; how busy the GPU was
  video     the same on video files: how busy the GPU was

On a GPU the models have real shapes and random weights in bfloat16. On a CPU they are small, in
float32, and the bars do not apply. Methods are timed in turn in one process. Jobs have their own
processes on the same device. A JSON line follows each part, and one of all parts comes last. A part
that fails is reported without ending the others; the exit status is then 1.
"""

import argparse
import contextlib
import gc
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from apet import METHODS
from apet.methods import build
from jobs.bench.common import argument_parser, print_json
from jobs.bench.prefill_models import HEAD, SUBJECTS, Measurement, format_row, measure, summarise
from jobs.bench.timing import default_device, describe, median_ms, title

Row = dict[str, Any]

TARGETS = {  # budget, speed-up of the prefill to reach, and the paper's
    "llava-1.5-7b": ("64", 3.5, 1.38),
    "qwen2.5-vl-7b": ("10%", 2.2, 1.51),
    "video-llava-7b": ("256", 4.4, None),
}
TABLE_HEAD = f"{'':60}{'found':>10}{'bar':>11}{'limit':>9}{'paper':>9}  reached"
LARGE_GPU_BYTES = 100e9


def bar(
    what: str,
    found: float,
    sign: str = ">=",
    target: float | None = None,
    unit: str = "x",
    **columns: Any,
) -> Row:
    """A line of the table: a number and the bar that it should reach, if there is one."""
    reached = None
    if target is not None:
        reached = {">=": found >= target, "<=": found <= target, "=": found == target}[sign]
    return {
        "what": what,
        "found": found,
        "sign": sign,
        "bar": target,
        "unit": unit,
        "reached": reached,
        **columns,
    }


def format_bar(row: Row, gpu: bool) -> str:
    """A line of the table as text. Without a GPU no bar counts as reached or missed."""
    digits = 1 if row["unit"] == "%" else 2

    def number(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{sign}{value:.{digits}f} {row['unit']}".rstrip()

    target = number(row["bar"], f"{row['sign']} ")
    verdict = "-" if row["reached"] is None or not gpu else "yes" if row["reached"] else "NO"
    limit, paper = number(row.get("limit")), number(row.get("paper"))
    cells = f"{number(row['found']):>10}{target:>11}{limit:>9}{paper:>9}"
    return f"{row['what']:60}{cells}  {verdict}"


def prefill(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    failed: list[str] = []
    for name in SUBJECTS:
        with reported_failure(name, failed):
            yield from prefill_of(name, args, device)
        free_memory(device)
    if failed:
        raise RuntimeError(f"failed: {', '.join(failed)}")


def prefill_of(name: str, args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    subject, (budget, target, paper) = SUBJECTS[name], TARGETS[name]
    before = matmul_flops(device)
    model = subject.make(args.size, device, args.attn)
    batch = args.batch if name != "video-llava-7b" else max(1, args.batch // 4)
    measurements = [
        Measurement(build("vanilla"), "full"),
        Measurement(build("apet", budget=budget), budget),
    ]
    measure(model, measurements, subject.prompts(batch, model), args.repeat)
    after = matmul_flops(device)
    vanilla, ours = summarise(subject, model, measurements)
    lines = [f"\n{name}, {batch} rows, {args.attn}", HEAD, format_row(vanilla), format_row(ours)]
    print("\n".join(lines), file=sys.stderr)
    label = f"{name} at {budget}"
    if "refused" in ours:
        raise RuntimeError(f"{label}: {ours['refused']}")
    for moment, flops in (("before", before), ("after", after)):
        yield bar(f"a large matrix product {moment} {name}, TFLOP/s", flops / 1e12, unit="")
    whole, decoder = ours["prefill"], ours["decoder"]
    limits = {"limit": whole["limit"], "paper": paper}
    yield bar(f"{label}, prefill", whole["speedup"], ">=", target, **limits)
    yield bar(f"{label}, decoder alone", decoder["speedup"], limit=decoder["limit"])
    yield bar(f"{label}, compression of the prefill", ours["compress_share"], "<=", 1.0, "%")
    for variant, row, least in (("vanilla", vanilla, 75.0), ("compressed", ours, 60.0)):
        flops = 1e3 * batch * row["flops"] / row["prefill"]["ms"]
        share = 100 * flops / ((before + after) / 2)
        yield bar(f"{label}, {variant}, of that product's rate", share, ">=", least, "%")
    planned = subject.kv_bytes(model, measurements[1].method, batch)
    share = 100 * ours["kv_bytes"] / planned
    yield bar(f"{label}, KV bytes, of the schedule's", share, "=", 100.0, "%")
    share = 100 * ours["kv_bytes"] / vanilla["kv_bytes"]
    yield bar(f"{label}, KV bytes, of vanilla's", share, unit="%")


def rivals(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    subject, (budget, *_) = SUBJECTS["llava-1.5-7b"], TARGETS["llava-1.5-7b"]
    model = subject.make(args.size, device, args.attn)
    measurements = [Measurement(build("vanilla"), "full")]
    measurements += [
        Measurement(build(name, budget=budget), budget) for name in METHODS if name != "vanilla"
    ]
    measure(model, measurements, subject.prompts(args.batch, model), args.repeat)
    rows = summarise(subject, model, measurements)
    print("\n".join(["", HEAD, *map(format_row, rows)]), file=sys.stderr)
    for row in rows[1:]:
        if "refused" not in row:
            span, label = row["prefill"], f"{subject.name} at {budget}, {row['method']}, prefill"
            yield bar(label, span["speedup"], limit=span["limit"])


def job(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    # Jobs import Ray and av, which the other parts do without.
    from jobs.bench.generated_jobs import (
        rows_per_s_one_by_one,
        run_job,
        write_checkpoint,
        write_questions,
    )

    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        model = write_checkpoint("image", args.job_size, folder / "model", device)
        data = write_questions("image", args.rows, folder / "files")
        results: dict[str, Row] = {}
        for name in ("vanilla", "apet"):
            result = run_job("image", model, data, name, "64", args.attn, folder / name)
            results[name] = result
            yield rows_per_s(f"images, {name}", result)
        one_by_one = rows_per_s_one_by_one(model, data, min(args.rows, args.alone), device)
    yield bar("images, transformers' generate at batch 1, rows/s", one_by_one, unit="")
    ours, vanilla = results["apet"]["rows_per_s"], results["vanilla"]["rows_per_s"]
    label = "images, whole job, ApET at 64 against vanilla"
    yield bar(label, ours / vanilla, ">=", 3.0, paper=1.46)
    yield bar("images, whole job, against generate at batch 1", ours / one_by_one, ">=", 15.0)
    yield busy("images, apet", results["apet"], 95.0)


def video(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    from jobs.bench.generated_jobs import run_job, write_checkpoint, write_questions

    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        model = write_checkpoint("video", args.job_size, folder / "model", device)
        data = write_questions("video", args.clips, folder / "files")
        result = run_job("video", model, data, "apet", "256", args.attn, folder / "out")
    yield rows_per_s("videos, apet", result)
    yield busy("videos, apet", result, 90.0)


PARTS: dict[str, Callable[[argparse.Namespace, torch.device], Iterator[Row]]] = {
    "prefill": prefill,
    "rivals": rivals,
    "job": job,
    "video": video,
}


def rows_per_s(label: str, result: Row) -> Row:
    label = f"{label}, rows/s, batches of {result['batch_rows']}"
    return bar(label, result["rows_per_s"], unit="", **result)


def busy(label: str, result: Row, least: float) -> Row:
    device = "GPU" if "gpu_busy" in result else "worker"
    share = result.get("gpu_busy", result.get("worker_busy", 0.0))
    return bar(f"{label}, {device} busy", 100 * share, ">=", least, "%")


def matmul_flops(device: torch.device) -> float:
    """Operations a second of one large matrix product, on a GPU at its clock under long work."""
    if device.type == "cuda":
        side, dtype, warm_up, repeat = 8192, torch.bfloat16, 50, 200
    else:
        side, dtype, warm_up, repeat = 2048, torch.float32, 0, 10
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    for _ in range(warm_up):
        matrix @ matrix
    ms = median_ms({"product": lambda: matrix @ matrix}, repeat, device)["product"]
    return 2 * side**3 / (ms / 1e3)


def profile(args: argparse.Namespace, device: torch.device) -> list[Row]:
    from jobs.bench.profile_prefill import shares

    subject, (budget, *_) = SUBJECTS["llava-1.5-7b"], TARGETS["llava-1.5-7b"]
    model = subject.make(args.size, device, args.attn)
    inputs, rows = subject.prompts(args.batch, model), []
    print(
        f"\n{'operations of a prefill':28}{'ms':>9}   matmul  attention  compression   copy   other"
    )
    for method in (build("vanilla"), build("apet", budget=budget)):
        ms, groups = shares(model, method, inputs)
        cells = "".join(
            f"{100 * groups[name]:{width}.1f} %"
            for name, width in zip(groups, (7, 9, 11, 5, 6), strict=True)
        )
        print(f"{subject.name + ', ' + method.name:28}{ms:9.1f}{cells}")
        rows.append({"method": method.name, "ms": ms, **groups})
    return rows


def free_memory(device: torch.device) -> None:
    """Return the memory of deleted models to the device, for the next model or a job's worker."""
    gc.collect()
    if device.type == "cuda":
        # After an error of the device this fails, too; the next call on it reports that.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def max_prefill_rows() -> int:
    """Rows that fill the first GPU's kernels and fit beside a model of 14 GB, caches included."""
    memory = torch.cuda.get_device_properties(0).total_memory
    return 128 if memory > LARGE_GPU_BYTES else 64


def parse_arguments(gpu: bool) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add("--only", help=f"of {','.join(PARTS)} (default: all)")
    add("--attn", default="packed", help="attention kernel of all methods (default %(default)s)")
    add(
        "--size",
        default="7b" if gpu else "small",
        help="of the models in prefills: 7b, small (%(default)s)",
    )
    add(
        "--job-size",
        default="7b" if gpu else "tiny",
        help="of the models in jobs: 7b, small, tiny (%(default)s)",
    )
    add(
        "--batch",
        type=int,
        default=max_prefill_rows() if gpu else 1,
        help="rows of a prefill; videos a quarter (%(default)s)",
    )
    add(
        "--repeat",
        type=int,
        default=10 if gpu else 3,
        help="turns, of which the median counts (%(default)s)",
    )
    add("--rows", type=int, default=3072 if gpu else 64, help="questions of a job (%(default)s)")
    add(
        "--alone",
        type=int,
        default=96 if gpu else 8,
        help="questions answered one by one (%(default)s)",
    )
    add("--clips", type=int, default=512 if gpu else 40, help="videos of a job (%(default)s)")
    add("--folder", help="for checkpoints of 14 GB and media files (default: the system's)")
    add("--profile", action="store_true", help="where the time goes; with --only '' only that")
    args = parser.parse_args()
    args.parts = list(PARTS) if args.only is None else list(filter(None, args.only.split(",")))
    if unknown := sorted(set(args.parts) - set(PARTS)):
        parser.error(
            f"--only {args.only}: unknown {', '.join(unknown)}; expected some of {', '.join(PARTS)}"
        )
    return args


def main() -> None:
    device = default_device()
    gpu = device.type == "cuda"
    args = parse_arguments(gpu)
    print(f"{title(device)}\n{TABLE_HEAD}")
    settings = {
        "torch": torch.__version__,
        "where": describe(device),
        "size": args.size,
        "batch": args.batch,
        "attn": args.attn,
    }
    rows: list[Row] = []
    failed: list[str] = []
    for name in args.parts:
        part: list[Row] = []
        with reported_failure(name, failed):
            for row in PARTS[name](args, device):
                part.append({"part": name, **row})
                print(format_bar(row, gpu), flush=True)
        print_json("speed", **settings, part=name, rows=part)
        rows += part
        free_memory(device)
    profile_rows: list[Row] = []
    if args.profile:
        with reported_failure("profile", failed):
            profile_rows = profile(args, device)
    print_json("speed", **settings, rows=rows, profile=profile_rows, failed=failed)
    if failed:
        raise SystemExit(1)


@contextlib.contextmanager
def reported_failure(name: str, failed: list[str]) -> Iterator[None]:
    """Report what ends a part, and go on: the other measurements cost an hour of a GPU."""
    try:
        yield
    except (Exception, SystemExit):  # a failed job exits
        traceback.print_exc()
        print(f"{name} failed; see above", file=sys.stderr, flush=True)
        failed.append(name)


if __name__ == "__main__":
    main()
