"""A point: one way of compressing, as a user names it. Every method at every budget is one.

    apet                        with each --budget
    apet:basis=5,sampling=dpc   options of the method
    fastv:budget=128            a budget of its own
    apet:schedule=encoder=96,16=32

Nothing here imports torch until a point is built.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

from pipelines.config.parsers import budget, scalar, schedule
from pipelines.text import did_you_mean

if TYPE_CHECKING:
    from apet.methods.base import Method, Model

Option = str | int | float | bool
MANY = 1024  # visual tokens, of which any share is a whole number or nearly
LONGEST = 80  # characters of a name: it becomes part of a folder's


@dataclass(frozen=True)
class MethodSpec:
    """A method and its options, its budget or schedule among them. Equal points have the same answers."""

    method: str
    options: tuple[tuple[str, Option], ...] = ()  # sorted by name

    @classmethod
    def of(cls, method: str, **options: Option) -> MethodSpec:
        return cls(method, tuple(sorted(options.items())))

    @property
    def name(self) -> str:
        """Short and always the same, for people, folders and filters: `apet-10pct-basis5`."""
        options = dict(self.options)
        spent = "-".join(str(options.pop(key)) for key in ("budget", "schedule") if key in options)
        exact = [key + _shown(value) for key, value in options.items()]
        plain = [re.sub(r"[^A-Za-z0-9_.=]", "_", part) for part in exact]
        name = "-".join(
            [self.method, *filter(None, [spent.replace("%", "pct").replace(",", "_")]), *plain]
        )
        if plain != exact or len(name) > LONGEST:  # another point could look like it
            return f"{name[: LONGEST - 9]}-{hashlib.sha256(json.dumps(self.options).encode()).hexdigest()[:8]}"
        return name

    @property
    def _is_share(self) -> bool:
        """Does what it keeps grow with the image?"""
        given = dict(self.options)
        sites = str(given.get("schedule", given.get("budget", ""))).split(",")
        return all(site.endswith("%") for site in sites)

    def build(self, model: Model | None = None, visual_tokens: int | None = None) -> Method:
        """The method itself, from `apet`; a ValueError says which option is wrong, or out of the model's reach.

        model, visual_tokens: what is known of the model and of an image or video in it (`pipelines.config.model_info`)
        """
        from apet.methods import METHODS, build  # torch comes with it

        hints = get_type_hints(METHODS[self.method])
        known = {field.name: hints[field.name] for field in fields(METHODS[self.method])}
        for key, value in self.options:
            if key in known and not _fits(value, known[key]):
                near_by = did_you_mean(str(value), _words(known[key]))
                raise ValueError(
                    f"{self.method} has no {key} {value!r}; it takes {_said(known[key])}{near_by}"
                )
        method = build(self.method, **dict(self.options))
        if model is not None and (visual_tokens or self._is_share):
            try:
                method.plan(visual_tokens or MANY, model)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from None
        return method


def parse_method(given: str) -> MethodSpec:
    """A method as a user types it: `apet`, `apet:basis=5,sampling=dpc`."""
    method, _, rest = given.strip().partition(":")
    if method not in known_methods():
        raise ValueError(
            f"there is no method '{method}'{did_you_mean(method, known_methods())} (there are {', '.join(known_methods())})"
        )
    options: dict[str, Option] = {}
    # a comma starts a new option, but not the next site of a schedule
    for item in re.split(r",(?=\s*(?!encoder\s*=)[a-z_]+\s*=)", rest) if rest else ():
        key, mark, value = (part.strip() for part in item.partition("="))
        if not (mark and key and value):
            raise ValueError(
                f"cannot read '{item}' in '{given}'; options are key=value: {method}:budget=64,basis=5"
            )
        if key in options:
            raise ValueError(f"'{given}' gives {key} twice; give it once")
        readers = {"budget": budget, "schedule": schedule}
        try:
            options[key] = readers.get(key, scalar)(value)
        except ValueError as error:
            raise ValueError(f"{key} in '{given}': {error}") from None
    if method == "vanilla" and options:
        raise ValueError(
            f"'{given}': vanilla is the unmodified model and has no options; write --method vanilla"
        )
    if {"budget", "schedule"} <= set(options):
        raise ValueError(f"'{given}' gives a budget and a schedule; give one of the two")
    return MethodSpec.of(method, **options)


def expand_methods(
    methods: Sequence[str], budgets: Sequence[str], plan: str | None
) -> tuple[MethodSpec, ...]:
    """Every method with every budget, or with the schedule; vanilla once, and what has a budget of its own once."""
    found: list[MethodSpec] = []
    for given in methods:
        point = parse_method(given)
        options = dict(point.options)
        if point.method == "vanilla" or {"budget", "schedule"} & set(options):
            found.append(point)
        elif plan is not None:
            found.append(MethodSpec.of(point.method, schedule=plan, **options))
        elif not budgets:
            raise ValueError(
                f"{given} has no budget; give --budget 64, --budget 10% or --schedule encoder=96,16=32"
            )
        else:
            found += [MethodSpec.of(point.method, budget=each, **options) for each in budgets]
    _once(point.name for point in found)
    return tuple(found)


def _once(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(
                f"{name} is asked for twice; name each method with its options and each budget once"
            )
        seen.add(name)


@cache
def known_methods() -> tuple[str, ...]:
    """The names in `apet.METHODS`, read from its files, one a method: importing them would take torch's seconds."""
    found = find_spec("apet")
    assert found is not None
    assert found.submodule_search_locations is not None
    files = sorted((Path(found.submodule_search_locations[0]) / "methods").glob("*.py"))
    named = (
        re.search(r'^    name: ClassVar\[str\] = "(\w+)"', file.read_text(encoding="utf-8"), re.M)
        for file in files
    )
    names = {match[1] for match in named if match}
    return tuple(
        sorted(names, key=lambda name: (name != "vanilla", not name.startswith("apet"), name))
    )


def _shown(value: Option) -> str:
    """After an option's name: numbers follow it, words after a sign."""
    if isinstance(value, bool):
        return f"={str(value).lower()}"
    return f"={value}" if isinstance(value, str) else str(value)


def _fits(value: Option, hint: object) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    kinds = get_args(hint) or (hint,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type))) or (
        float in kinds and isinstance(value, int)
    )


def _words(hint: object) -> list[str]:
    return [str(word) for word in get_args(hint)] if get_origin(hint) is Literal else []


def _said(hint: object) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    return " or ".join(names.get(kind, str(kind)) for kind in kinds)
