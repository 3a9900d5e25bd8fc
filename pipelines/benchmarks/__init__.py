"""Benchmarks: where their questions come from and how their answers are scored. One file each, one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pipelines.text import did_you_mean

if TYPE_CHECKING:
    from pipelines.benchmarks.base import Benchmark

SYNTHETIC = ("shapes", "motion")
BENCHMARKS = (  # modules here, imported when asked for
    *("manifest", *SYNTHETIC),
    *("gqa", "mmbench", "mmbench_cn", "mme", "pope", "scienceqa", "vqav2", "textvqa", "vizwiz"),
    *("tgif", "msvd", "msrvtt"),
)

DEFAULT_SPLITS = {
    "mmbench": "dev",
    "mmbench_cn": "dev",
}  # that are asked where nobody says; of the others it is test


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name: `BENCHMARK` in the file of that name."""
    if name not in BENCHMARKS:
        raise ValueError(
            f"there is no benchmark '{name}'{did_you_mean(name, BENCHMARKS)} (there are {', '.join(BENCHMARKS)})"
        )
    room = "benchmarks.synthetic" if name in SYNTHETIC else "benchmarks"
    found: Benchmark = import_module(f"pipelines.{room}.{name}").BENCHMARK
    return found
