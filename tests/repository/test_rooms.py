"""The layout of the code: which room may import which, and limits on the size of a room.

A room is a folder of `apet` or `pipelines`, or a single file beside the folders. Imports are read
with `ast`, wherever they stand: inside functions and under TYPE_CHECKING as well.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support import ROOT

PACKAGES = {
    "apet": set[str](),
    "pipelines": {"apet"},
    "jobs": {"apet", "pipelines"},
    "demo": {"apet", "pipelines"},
}
"""Packages of this repository that each package may import besides itself."""

PIPELINES = (
    *("text", "results", "data", "metrics", "benchmarks", "config", "inference"),
    *("judge", "report", "visualize", "job", "sweep"),
)
"""Rooms of `pipelines`. Each may import the rooms before it, except those in FORBIDDEN."""

FORBIDDEN = {
    "config": {"metrics"},
    "report": {"config", "inference", "judge"},
    "visualize": {"judge"},
}
"""Rooms further down that a room may not import either."""

FORBIDDEN_FILES = {"judge": "pipelines.inference.", "report": "apet"}
"""Start of the names of modules that a room may not import, except those in EXCEPTIONS."""

EXCEPTIONS = {"pipelines.inference.cluster"}

USERS_OF_APET = {"config", "inference", "visualize", "job", "sweep"}

APET = ("base", "core", "attention", "towers", "models", "methods", "attach", "decoding")
"""Rooms of `apet`. Each may import the rooms before it. `base` stands for the loose files."""

OUTSIDE = {
    "apet": {"torch", "transformers", "triton"},
    "pipelines": {
        *("torch", "transformers", "ray", "pyarrow", "mlflow", "av", "PIL", "numpy", "yaml"),
        *("jinja2", "matplotlib", "openpyxl", "psutil", "safetensors", "tokenizers"),
        "huggingface_hub",
    },
}
"""Third-party packages that a package may import; `jobs` and `demo` may import any."""

ONLY_IN = {
    "ray": ("pipelines/inference/", "pipelines/judge/local.py"),
    "mlflow": ("pipelines/results/mlflow_", "demo/training/__main__.py"),
    "triton": ("apet/core/triton_kernels.py",),
}
"""Files that may import a package, by the start of their path. The others stay plain functions."""

MAX_FILES_IN_A_FOLDER = 18
MAX_LOOSE_FILES = {"pipelines": 6, "apet": 10}
ONE_FILE_PER_PLUGIN = {"apet/methods", "apet/models", "pipelines/benchmarks"}
MAX_LINE_LENGTH = 100
MAX_SHARE_OF_QUESTIONS = 0.03

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
"""Path of every module by its dotted name."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def imports(module: str) -> frozenset[str]:
    """Dotted names that a module imports. A name imported from a package may be a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide the direction"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in FILES else str(node.module))
    return frozenset(found)


def package_of(module: str) -> str:
    return module.partition(".")[0]


def room_of(module: str) -> str | None:
    """Room of a module; None for the package itself, which is the public interface."""
    package, *names = module.split(".")
    if not names:
        return None
    folder = ROOT / package / names[0]
    return "base" if package == "apet" and not folder.is_dir() else names[0]


def edges() -> Iterator[tuple[str, str]]:
    for module in FILES:
        for target in sorted(imports(module)):
            yield module, target


def violation_of_rooms(module: str, target: str) -> bool:
    package, room = package_of(module), room_of(module)
    if room is None or package not in ("apet", "pipelines"):
        return False
    prefix = FORBIDDEN_FILES.get(room) if package == "pipelines" else None
    if prefix and target.startswith(prefix) and target not in EXCEPTIONS:
        return True
    if package_of(target) == "apet" and package == "pipelines":
        return room not in USERS_OF_APET
    if package_of(target) != package:
        return False
    order = APET if package == "apet" else PIPELINES
    target_room = room_of(target)
    if room not in order or target_room not in order:
        return True
    if package == "pipelines" and target_room in FORBIDDEN.get(room, set()):
        return True
    return order.index(target_room) > order.index(room)


def test_every_room_imports_only_rooms_below_it() -> None:
    wrong = [f"{module} imports {to}" for module, to in edges() if violation_of_rooms(module, to)]
    assert not wrong, "\n".join(wrong)


def test_packages_import_one_way_and_only_known_third_parties() -> None:
    wrong = []
    for module, target in edges():
        package, other = package_of(module), package_of(target)
        if other in sys.stdlib_module_names or other == package:
            continue
        allowed = PACKAGES[package] | OUTSIDE.get(package, {other} - PACKAGES.keys())
        if other not in allowed:
            wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_by_few_files() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, target in edges()
        if (allowed := ONLY_IN.get(package_of(target)))
        and not name_of(FILES[module]).startswith((*allowed, "jobs/bench/"))
    ]
    assert not wrong, "\n".join(wrong)


def test_core_of_apet_needs_only_torch() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, target in edges()
        if module.startswith("apet.core.")
        and package_of(target) not in {"apet", "torch", "triton", *sys.stdlib_module_names}
    ]
    assert not wrong, "\n".join(wrong)


def test_triton_kernels_are_imported_inside_functions() -> None:
    """Everything else works where Triton is missing."""
    wrong = [
        module
        for module, path in FILES.items()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom) and "triton_kernels" in ast.unparse(node)
    ]
    assert not wrong


def test_no_files_import_each_other_in_a_circle() -> None:
    """Importing a module of a package does not count as importing the package."""
    remaining = {module: set(imports(module)) & FILES.keys() - {module} for module in FILES}
    # Remove modules that import nothing more: what remains lies on circles, or above them.
    while free := {module for module, targets in remaining.items() if not targets}:
        remaining = {module: to - free for module, to in remaining.items() if module not in free}
    # Remove modules that nothing imports any more: what remains lies on circles, or between them.
    while True:
        imported = set().union(*remaining.values()) if remaining else set()
        if imported >= remaining.keys():
            break
        remaining = {module: to for module, to in remaining.items() if module in imported}
    wrong = [f"{module} -> {', '.join(sorted(to))}" for module, to in remaining.items()]
    assert not wrong, "\n".join(wrong)


def test_folders_hold_a_readable_number_of_files() -> None:
    folders = Counter(name_of(path.parent) for path in FILES.values() if path.name != "__init__.py")
    limits = {
        folder: MAX_LOOSE_FILES.get(folder, MAX_FILES_IN_A_FOLDER)
        for folder in folders.keys() - ONE_FILE_PER_PLUGIN
    }
    wrong = {folder: folders[folder] for folder, most in limits.items() if folders[folder] > most}
    assert not wrong


def test_docstrings_open_with_a_verb_or_a_noun() -> None:
    """Not with a question: a docstring that opens with What or Who reads like a riddle."""
    docstrings = [
        (module, getattr(node, "lineno", 1), text)
        for module, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if (text := ast.get_docstring(node))
    ]
    questions = [
        f"{module}:{line}: {text.splitlines()[0]}"
        for module, line, text in docstrings
        if text.split()[0] in {"What", "Of", "Who", "Whose"}
    ]
    assert len(questions) < MAX_SHARE_OF_QUESTIONS * len(docstrings), "\n".join(questions)


def test_lines_are_short() -> None:
    files = [*FILES.values(), *sorted((ROOT / "tests").rglob("*.py"))]
    wrong = [
        f"{name_of(path)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > MAX_LINE_LENGTH
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rules_see_the_imports() -> None:
    """Guards against rules that pass because nothing is found."""
    assert len(FILES) > 100
    assert "pipelines.config.eval_config" in imports("pipelines.job")
    assert violation_of_rooms("pipelines.data.manifest", "pipelines.config.paths")
    assert violation_of_rooms("pipelines.results.storage", "pipelines.metrics.summary")
    assert violation_of_rooms("pipelines.judge.local", "pipelines.inference.plan")
    assert violation_of_rooms("pipelines.data.manifest", "apet.schedule")
    assert violation_of_rooms("apet.core.basis", "apet.models.base")
    assert not violation_of_rooms("pipelines.judge.local", "pipelines.inference.cluster")
    assert not violation_of_rooms("pipelines.sweep", "pipelines.job")
