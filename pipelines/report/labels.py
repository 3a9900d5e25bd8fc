"""Names for readers: those of the paper where it has one."""

from functools import cache
from importlib.resources import files
from typing import Any, cast

import yaml


@cache
def texts() -> dict[str, dict[str, Any]]:
    """Labels of `benchmarks` and `methods`; title and note of `tables`."""
    content = files(__package__).joinpath("texts.yaml").read_text(encoding="utf-8")
    return cast("dict[str, dict[str, Any]]", yaml.safe_load(content))


def method_label(method: str) -> str:
    """Label of a method, which may be followed by its options: `apet basis=6`."""
    name, _, options = method.partition(" ")
    return f"{texts()['methods'].get(name, name)} {options}".strip()


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
    return str(texts()["benchmarks"].get(name, name)) + comma + settings
