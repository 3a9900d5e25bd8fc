"""The report's Jinja templates and texts.

Only pages are escaped as HTML; filters escape the other formats. texts.yaml has the names for
readers, those of the paper where it has one, and titles, notes and columns of the tables.
"""

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, cast

import jinja2
import yaml

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__, "."),
    autoescape=jinja2.select_autoescape(["html.j2"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
LATEX_TEMPLATES = TEMPLATES.overlay(  # braces belong to LaTeX
    block_start_string="<%",
    block_end_string="%>",
    variable_start_string="<<",
    variable_end_string=">>",
    comment_start_string="<#",
    comment_end_string="#>",
)


@cache
def texts() -> dict[str, dict[str, Any]]:
    content = files(__package__).joinpath("texts.yaml").read_text(encoding="utf-8")
    return cast("dict[str, dict[str, Any]]", yaml.safe_load(content))


def sentences(name: str, studies: Sequence[Any], *facts: Any) -> str:
    """Sentences about studies: `summary`, `scoring` or `coverage` of notes.j2."""
    macro = getattr(TEMPLATES.get_template("notes.j2").module, name)
    return " ".join(str(macro(studies, *facts)).split())


def method_label(method: str) -> str:
    return str(texts()["methods"].get(method, method))


def benchmark_label(benchmark: str) -> str:
    """Label of a benchmark, which may be followed by settings: `gqa, split test`."""
    name, comma, settings = benchmark.partition(", ")
    return str(texts()["benchmarks"].get(name, name)) + comma + settings


def budget_label(budget: str) -> str:
    """Heading above the rows of one budget."""
    if not budget:
        return "All visual tokens"
    if "=" in budget:
        return f"Schedule {budget}"
    return f"Keep {budget.replace('%', ' %')}" + ("" if "%" in budget else " tokens")


def slug(text: str) -> str:
    """A text as a file name or an anchor."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


TEMPLATES.filters["slug"] = slug
