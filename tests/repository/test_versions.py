"""The pinned versions are those that pyproject.toml and apet/transformers_api.py state."""

from __future__ import annotations

import tomllib

from packaging.requirements import Requirement
from packaging.version import Version

from apet.transformers_api import NEWEST_TESTED
from tests.support import ROOT


def pins(name: str) -> dict[str, set[Version]]:
    """Versions of each package: one, or one for each of several Pythons."""
    versions: dict[str, set[Version]] = {}
    for line in (ROOT / name).read_text().splitlines():
        package, _, version = line.split(" ;")[0].partition("==")
        versions.setdefault(package, set()).add(Version(version))
    return versions


def lower_bounds() -> dict[str, Version]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = map(Requirement, project["dependencies"])
    return {
        requirement.name: Version(specifier.version)
        for requirement in requirements
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }


def test_constraints_oldest_has_the_lower_bounds() -> None:
    """Other packages require a later pyyaml and jinja2."""
    oldest = pins("constraints-oldest.txt")
    wrong = {
        name: sorted(map(str, oldest[name]))
        for name, bound in lower_bounds().items()
        if oldest[name] != {bound} and name not in ("pyyaml", "jinja2")
    }
    assert not wrong, f"remake constraints-oldest.txt (CONTRIBUTING.md, Versions): {wrong}"


def test_newest_tested_transformers_is_the_pinned_one() -> None:
    [version] = pins("constraints.txt")["transformers"]
    assert f"{version.major}.{version.minor}" == NEWEST_TESTED


def test_pins_name_no_index() -> None:
    for name in ("constraints.txt", "constraints-oldest.txt"):
        assert "://" not in (ROOT / name).read_text()
