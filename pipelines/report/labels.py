"""What things are called in a report: the paper's names where it has some."""

from __future__ import annotations

from pipelines.report.runs import Study

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
INTERVALS = "Ranges are 95 % intervals."


def method_label(label: str) -> str:
    name, _, rest = label.partition(" ")
    return f"{METHODS.get(name, name)} {rest}".strip()


def budget_label(budget: str) -> str:
    """What rows of a budget stand below."""
    if not budget:
        return "All visual tokens"
    if "=" in budget:
        return f"Schedule {budget}"
    return f"Keep {budget.replace('%', ' %')}" + ("" if "%" in budget else " tokens")


def benchmark_label(study: Study) -> str:
    name, _, rest = study.column.partition(", ")
    return ", ".join(filter(None, [BENCHMARKS.get(name, name), rest]))
