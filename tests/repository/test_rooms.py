"""The rooms of the house: jobs -> pipelines -> apet, never backwards, and who may import what from outside."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

ROOMS = ("apet", "pipelines", "jobs")  # each may import itself and those before it
OUTSIDE = {  # what a room may import beside the standard library; `jobs` may import anything
    "apet": {"torch", "transformers", "triton"},
    "pipelines": {
        "torch",
        "transformers",
        "ray",
        "pyarrow",
        "mlflow",
        "av",
        "PIL",
        "numpy",
        "yaml",
        "matplotlib",
    }
    | {"safetensors", "tokenizers", "huggingface_hub"},
}
ONLY = {  # what few files may import, so that the others stay plain functions
    "ray": {
        "pipelines/inference/worker.py",
        "pipelines/inference/cluster.py",
        "pipelines/inference/failure_tracker.py",
        "pipelines/inference/plan.py",
    },
    "mlflow": {"demo/training/__main__.py", "pipelines/results/mlflow_experiment.py"},
    "triton": {"apet/core/kernels.py"},  # torch's builds without a GPU come without it
}
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            found.add(node.module or "")
    return {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    above = set(ROOMS[ROOMS.index(room) + 1 :])
    assert not imports(path) & above
    foreign = imports(path) - set(ROOMS) - sys.stdlib_module_names
    assert foreign <= OUTSIDE.get(room, foreign)


@pytest.mark.parametrize("package", ONLY)
def test_a_few_files_know_of(package: str) -> None:
    known = {
        str(path.relative_to(ROOT))
        for path in FILES
        if package in imports(path) and "bench" not in path.name
    }
    assert {path for path in known if not path.startswith("pipelines/judge/")} == ONLY[package]


def test_the_core_needs_torch_alone() -> None:
    core = ["basis", "compression", "error", "fused", "gram", "merge", "release"]
    foreign = {name for module in core for name in imports(ROOT / "apet" / f"{module}.py")}
    assert foreign - sys.stdlib_module_names == {"torch", "apet"}


def test_the_kernels_are_imported_when_they_are_used() -> None:
    """Inside functions: where Triton is missing, all else works."""
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            assert "apet import kernels" not in ast.unparse(node) or isinstance(
                node, ast.FunctionDef
            ), path


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 5
    assert imports(ROOT / "jobs" / "bench_compress.py") >= {"apet", "torch"}
