"""Names for readers: those of the paper where it has one."""

from __future__ import annotations

BENCHMARKS = {
    "gqa": "GQA",
    "mmbench": "MMB",
    "mmbench_cn": "MMB-CN",
    "mme": "MME",
    "pope": "POPE",
    "scienceqa": "SQA",
    "vqav2": "VQAv2",
    "textvqa": "VQA-Text",
    "vizwiz": "VizWiz",
    "tgif": "TGIF",
    "msvd": "MSVD",
    "msrvtt": "MSRVTT",
}
METHODS = {
    "vanilla": "Vanilla",
    "apet": "ApET",
    "tome": "ToMe",
    "fastv": "FastV",
    "sparsevlm": "SparseVLM",
    "pdrop": "PDrop",
    "visionzip": "VisionZip",
    "divprune": "DivPrune",
    "dart": "DART",
}
INTERVALS_NOTE = "Ranges are 95 % intervals."


def method_label(method: str) -> str:
    """Label of a method, which may be followed by its options: `apet basis=6`."""
    name, _, options = method.partition(" ")
    return f"{METHODS.get(name, name)} {options}".strip()


def budget_label(budget: str) -> str:
    """Heading above the rows of one budget."""
    if not budget:
        return "All visual tokens"
    if "=" in budget:
        return f"Schedule {budget}"
    return f"Keep {budget.replace('%', ' %')}" + ("" if "%" in budget else " tokens")


def benchmark_label(benchmark: str) -> str:
    """Label of a benchmark, which may be followed by settings: `gqa, split test`."""
    name, comma, settings = benchmark.partition(", ")
    return BENCHMARKS.get(name, name) + comma + settings
