"""Benchmarks: the source of their questions and the scoring of their answers. One file each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pipelines.text import did_you_mean

if TYPE_CHECKING:
    from pipelines.benchmarks.base import Benchmark

SYNTHETIC = ("shapes", "motion")
BENCHMARKS = (  # modules of this package, imported when needed
    *("manifest", *SYNTHETIC),
    *("gqa", "mmbench", "mmbench_cn", "mme", "pope", "scienceqa", "vqav2", "textvqa", "vizwiz"),
    *("tgif", "msvd", "msrvtt"),
)
DEFAULT_SPLITS = {"mmbench": "dev", "mmbench_cn": "dev"}  # without --split; otherwise test


def benchmark(name: str) -> Benchmark:
    """Return `BENCHMARK` of the module of that name."""
    if name not in BENCHMARKS:
        raise ValueError(
            f"not a benchmark: '{name}'{did_you_mean(name, BENCHMARKS)};"
            f" expected one of {', '.join(BENCHMARKS)}"
        )
    package = "benchmarks.synthetic" if name in SYNTHETIC else "benchmarks"
    found: Benchmark = import_module(f"pipelines.{package}.{name}").BENCHMARK
    return found
