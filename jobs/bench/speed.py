"""How fast is it, against what is possible? One command for the whole table; every line says its bar.

    python jobs/bench/speed.py                      # everything: on a GPU about 20 minutes, on two CPU cores five
    python jobs/bench/speed.py --only prefill,job   # in pieces
    python jobs/bench/speed.py --profile            # and where the time of a prefill goes

  prefill   pixels to first logits, and the decoder alone: ApET against vanilla on LLaVA-1.5 (64 tokens), Qwen2.5-VL
            (10 %) and Video-LLaVA (256 of 2,048); beside each what the floating-point operations allow over the same
            span; the share of compression; operations a second against a large matrix product's, the mean of one before
            and one after; bytes of the KV cache
  rivals    every other method's prefill on LLaVA-1.5 at the same budget
  job       whole jobs on image files with questions like POPE's and answers of two tokens, through the pipeline:
            rows a second, ApET against vanilla, and against `generate` on one row after the other; how busy the GPU was
  video     the same on video files: how busy the GPU was

Real shapes on a GPU, in bfloat16 with random weights; small ones in float32 on a CPU, for which the bars are not meant.
Ways are timed in turn in one process; jobs have a process each, on the same device. A JSON line comes behind each part,
and one of all parts last. A part that fails says why and ends alone; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from apet import METHODS
from apet.methods import build
from jobs.bench.compress import median_ms
from jobs.bench.models import HEAD, SUBJECTS, Point, line, measure, report

Row = dict[str, Any]
BARS = {  # budget, prefill to reach, and the paper's
    "llava-1.5-7b": ("64", 3.5, 1.38),
    "qwen2.5-vl-7b": ("10%", 2.2, 1.51),
    "video-llava-7b": ("256", 4.4, None),
}
PARTS = ("prefill", "rivals", "job", "video")


def bar(
    what: str,
    found: float,
    sign: str = ">=",
    wanted: float | None = None,
    unit: str = "x",
    **more: Any,
) -> Row:
    """A line of the table; without `wanted` a figure that stands beside the others."""
    reached = (
        None
        if wanted is None
        else {">=": found >= wanted, "<=": found <= wanted, "=": found == wanted}[sign]
    )
    return {
        "what": what,
        "found": found,
        "sign": sign,
        "bar": wanted,
        "unit": unit,
        "reached": reached,
        **more,
    }


TITLE = f"{'':60}{'found':>10}{'bar':>11}{'limit':>9}{'paper':>9}  reached"


def shown(row: Row, gpu: bool) -> str:
    def number(value: float | None, sign: str = "") -> str:
        return (
            "-"
            if value is None
            else f"{sign}{value:.{1 if row['unit'] == '%' else 2}f} {row['unit']}".rstrip()
        )

    wanted = number(row["bar"], f"{row['sign']} ")
    verdict = "-" if row["reached"] is None or not gpu else "yes" if row["reached"] else "NO"
    cells = f"{number(row['found']):>10}{wanted:>11}{number(row.get('limit')):>9}{number(row.get('paper')):>9}"
    return f"{row['what']:60}{cells}  {verdict}"


def prefill(given: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    failed: list[str] = []
    for name in SUBJECTS:
        with ended(name, failed):
            yield from _prefill(name, given, device)
        forget(device.type == "cuda")
    if failed:
        raise RuntimeError(f"without {', '.join(failed)}")


def _prefill(name: str, given: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    subject, (budget, wanted, paper) = SUBJECTS[name], BARS[name]
    before = matmul_flops(device)
    model = subject.make(given.size, device, given.attn)
    batch = given.batch if name != "video-llava-7b" else max(1, given.batch // 4)
    points = [Point(build("vanilla"), "full"), Point(build("apet", budget=budget), budget)]
    measure(model, points, subject.prompts(batch, model), given.repeat)
    after = matmul_flops(device)
    vanilla, ours = report(subject, model, points)
    print(
        f"\n{name}, {batch} rows, {given.attn}\n{HEAD}\n{line(vanilla)}\n{line(ours)}",
        file=sys.stderr,
    )
    title = f"{name} at {budget}"
    if "refused" in ours:
        raise RuntimeError(f"{title}: {ours['refused']}")
    for when, flops in (("before", before), ("after", after)):
        yield bar(f"a large matrix product {when} {name}, TFLOP/s", flops / 1e12, unit="")
    fast = (before + after) / 2
    spans = ours["prefill"], ours["decoder"]
    yield bar(
        f"{title}, prefill", spans[0]["speedup"], ">=", wanted, limit=spans[0]["limit"], paper=paper
    )
    yield bar(f"{title}, decoder alone", spans[1]["speedup"], limit=spans[1]["limit"])
    yield bar(f"{title}, compression of the prefill", ours["compress_share"], "<=", 1.0, "%")
    for who, row, least in (("vanilla", vanilla, 75.0), ("compressed", ours, 60.0)):
        rate = 1e3 * batch * row["flops"] / row["prefill"]["ms"]
        yield bar(f"{title}, {who}, of that product's rate", 100 * rate / fast, ">=", least, "%")
    planned = subject.kv_bytes(model, points[1].method, batch)
    yield bar(
        f"{title}, KV bytes, of the schedule's", 100 * ours["kv_bytes"] / planned, "=", 100.0, "%"
    )
    yield bar(
        f"{title}, KV bytes, of vanilla's", 100 * ours["kv_bytes"] / vanilla["kv_bytes"], unit="%"
    )


def rivals(given: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    subject, (budget, *_) = SUBJECTS["llava-1.5-7b"], BARS["llava-1.5-7b"]
    model = subject.make(given.size, device, given.attn)
    points = [Point(build("vanilla"), "full")]
    points += [Point(build(name, budget=budget), budget) for name in METHODS if name != "vanilla"]
    measure(model, points, subject.prompts(given.batch, model), given.repeat)
    rows = report(subject, model, points)
    print("\n".join(["", HEAD, *map(line, rows)]), file=sys.stderr)
    for row in rows[1:]:
        if "refused" not in row:
            span = row["prefill"]
            yield bar(
                f"{subject.name} at {budget}, {row['method']}, prefill",
                span["speedup"],
                limit=span["limit"],
            )


def job(given: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    from jobs.bench.whole_job import checkpoint, one_by_one, questions
    from jobs.bench.whole_job import job as answered

    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        here = Path(place)
        model = checkpoint("image", given.job_size, here / "model", device)
        data = questions("image", given.rows, here / "files")
        ways: dict[str, Row] = {}
        for name in ("vanilla", "apet"):
            found = ways[name] = answered("image", model, data, name, "64", given.attn, here / name)
            yield bar(
                f"images, {name}, rows/s, batches of {found['batch_rows']}",
                found["rows_per_s"],
                unit="",
                **found,
            )
        alone = one_by_one(model, data, min(given.rows, given.alone), device)
    yield bar("images, transformers' generate at batch 1, rows/s", alone, unit="")
    ours = ways["apet"]["rows_per_s"]
    yield bar(
        "images, whole job, ApET at 64 against vanilla",
        ours / ways["vanilla"]["rows_per_s"],
        ">=",
        3.0,
        paper=1.46,
    )
    yield bar("images, whole job, against generate at batch 1", ours / alone, ">=", 15.0)
    yield busy("images, apet", ways["apet"], 95.0)


def video(given: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    from jobs.bench.whole_job import checkpoint, questions
    from jobs.bench.whole_job import job as answered

    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        here = Path(place)
        model = checkpoint("video", given.job_size, here / "model", device)
        data = questions("video", given.clips, here / "files")
        found = answered("video", model, data, "apet", "256", given.attn, here / "out")
    yield bar(
        f"videos, apet, rows/s, batches of {found['batch_rows']}",
        found["rows_per_s"],
        unit="",
        **found,
    )
    yield busy("videos, apet", found, 90.0)


def busy(title: str, found: Row, least: float) -> Row:
    who = "GPU" if "gpu_busy" in found else "worker"
    return bar(
        f"{title}, {who} busy",
        100 * found.get("gpu_busy", found.get("worker_busy", 0.0)),
        ">=",
        least,
        "%",
    )


def matmul_flops(device: torch.device) -> float:
    """Operations a second of one large matrix product, on a GPU at the clock that long work leaves it."""
    gpu = device.type == "cuda"
    side, dtype, warm, turns = (
        (8192, torch.bfloat16, 50, 200) if gpu else (2048, torch.float32, 0, 10)
    )
    one = torch.randn(side, side, device=device, dtype=dtype)
    for _ in range(warm):
        one @ one
    took = median_ms({"product": lambda: one @ one}, turns, device)["product"]
    return 2 * side**3 / (took / 1e3)


def profiled(given: argparse.Namespace, device: torch.device) -> list[Row]:
    from jobs.bench.profile import shares

    subject, (budget, *_) = SUBJECTS["llava-1.5-7b"], BARS["llava-1.5-7b"]
    model = subject.make(given.size, device, given.attn)
    inputs, rows = subject.prompts(given.batch, model), []
    print(
        f"\n{'operations of a prefill':28}{'ms':>9}   matmul  attention  compression   copy   other"
    )
    for method in (build("vanilla"), build("apet", budget=budget)):
        took, parts = shares(model, method, inputs)
        cells = "".join(
            f"{100 * parts[name]:{wide}.1f} %"
            for name, wide in zip(parts, (7, 9, 11, 5, 6), strict=True)
        )
        print(f"{subject.name + ', ' + method.name:28}{took:9.1f}{cells}")
        rows.append({"method": method.name, "ms": took, **parts})
    return rows


def forget(gpu: bool) -> None:
    """Give the memory of models that are gone back to the device: the next one, or a job's worker, wants it."""
    gc.collect()
    if gpu:
        with contextlib.suppress(
            RuntimeError
        ):  # of a device that has failed; who comes next says so
            torch.cuda.empty_cache()


def most_rows() -> int:
    """Of a prefill: as many as fill the first GPU's kernels and still fit beside a model of 14 GB, caches and all."""
    return 128 if torch.cuda.get_device_properties(0).total_memory > 100e9 else 64


def arguments(gpu: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", help=f"of {','.join(PARTS)} (default: all)")
    add("--attn", default="packed", help="attention kernel, of all ways (default %(default)s)")
    add(
        "--size",
        default="7b" if gpu else "small",
        help="of the models that are prefilled: 7b, small (%(default)s)",
    )
    add(
        "--job-size",
        default="7b" if gpu else "tiny",
        help="of those that answer: 7b, small, tiny (%(default)s)",
    )
    add(
        "--batch",
        type=int,
        default=most_rows() if gpu else 1,
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
        help="of them answered one by one (%(default)s)",
    )
    add("--clips", type=int, default=512 if gpu else 40, help="videos of a job (%(default)s)")
    add(
        "--folder",
        help="where checkpoints of 14 GB and files lie for a while (default: the system's)",
    )
    add("--profile", action="store_true", help="where the time goes; with --only '' that alone")
    given = parser.parse_args()
    given.parts = PARTS if given.only is None else tuple(filter(None, given.only.split(",")))
    if wrong := set(given.parts) - set(PARTS):
        parser.error(
            f"--only {given.only}: {', '.join(sorted(wrong))} is none of {', '.join(PARTS)}"
        )
    return given


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    given = arguments(gpu)
    where = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {where}, load {os.getloadavg()[0]:.1f}\n{TITLE}")
    parts: dict[str, Callable[..., Iterator[Row]]] = {
        "prefill": prefill,
        "rivals": rivals,
        "job": job,
        "video": video,
    }
    about = {
        "bench": "speed",
        "torch": torch.__version__,
        "where": where,
        "size": given.size,
        "batch": given.batch,
    }
    about["attn"] = given.attn
    rows, failed = [], []
    for name in given.parts:
        made: list[Row] = []
        with ended(name, failed):
            for row in parts[name](given, device):
                made.append({"part": name, **row})
                print(shown(row, gpu), flush=True)
        print(json.dumps({**about, "part": name, "rows": made}), flush=True)
        rows += made
        forget(gpu)
    profile: list[Row] = []
    if given.profile:
        with ended("profile", failed):
            profile = profiled(given, device)
    print(json.dumps({**about, "rows": rows, "profile": profile, "failed": failed}))
    if failed:
        raise SystemExit(1)


@contextlib.contextmanager
def ended(name: str, failed: list[str]) -> Iterator[None]:
    """Whatever ends a part ends it alone: what was measured before and what comes after it is worth a GPU's hour."""
    try:
        yield
    except (Exception, SystemExit):  # a job that fails exits
        traceback.print_exc()
        print(f"{name} failed; see above", file=sys.stderr, flush=True)
        failed.append(name)


if __name__ == "__main__":
    main()
