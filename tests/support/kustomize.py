"""Renders a folder as `kubectl kustomize` does, for the few features that cluster/kuberay uses.

Other features, and references to missing objects, are an AssertionError. kustomize itself is not
installed on every machine.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "patches", "replacements"}


def render(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    return _applied(folder, [])


def _applied(folder: Path, objects: list[Object]) -> list[Object]:
    """Apply a kustomization to objects: resources, components, patches, then replacements."""
    file = folder / "kustomization.yaml"
    assert file.is_file(), f"{folder} has no kustomization.yaml"
    said = yaml.safe_load(file.read_text())
    assert said.keys() <= KNOWN, f"{file}: {said.keys() - KNOWN} is not known here"
    for name in said.get("resources", []):
        path = (folder / name).resolve()
        assert path.exists(), f"{file}: {name} is not there"
        new = render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
        names = {_name(each) for each in objects}
        assert not names & {_name(each) for each in new}, (
            f"{file}: {name} has objects that are there already"
        )
        objects = objects + new
    for name in said.get("components", []):
        objects = _applied((folder / name).resolve(), objects)
    for patch in said.get("patches", []):
        targets = [
            each
            for each in objects
            if _name(each) == (patch["target"]["kind"], patch["target"]["name"])
        ]
        assert len(targets) == 1, (
            f"{file}: the patch of {patch['target']} fits {len(targets)} objects"
        )
        change = yaml.safe_load(patch["patch"])
        if isinstance(change, list):
            for step in change:
                _step(targets[0], step)
        else:
            assert change.pop("$patch") == "delete"
            assert _name(change) == _name(targets[0])
            objects = [each for each in objects if each is not targets[0]]
    for replacement in said.get("replacements", []):
        source = replacement["source"]
        [found] = [each for each in objects if _name(each) == (source["kind"], source["name"])]
        for target in replacement["targets"]:
            [into] = [
                each
                for each in objects
                if _name(each) == (target["select"]["kind"], target["select"]["name"])
            ]
            for place in target["fieldPaths"]:
                *above, last = place.split(".")
                holder = _at(into, above)
                assert last in holder, f"{file}: {place} is not there"
                holder[last] = deepcopy(_at(found, source["fieldPath"].split(".")))
    if "namespace" in said:
        for each in objects:
            if each["kind"] != "Namespace":
                each["metadata"]["namespace"] = said["namespace"]
    return objects


def _step(target: Object, step: Object) -> None:
    """One step of a JSON patch."""
    *above, last = step["path"].strip("/").split("/")
    holder = _at(target, above)
    key: Any = int(last) if isinstance(holder, list) else last
    there = key < len(holder) if isinstance(holder, list) else key in holder
    assert there or step["op"] == "add", f"{step['path']} is not there"
    if step["op"] == "remove":
        del holder[key]
    else:
        assert step["op"] in ("add", "replace")
        holder[key] = step["value"]


def _at(holder: Any, path: list[str]) -> Any:
    for part in path:
        holder = holder[int(part)] if isinstance(holder, list) else holder[part]
    return holder


def _name(each: Object) -> tuple[str, str]:
    return each["kind"], each["metadata"]["name"]
