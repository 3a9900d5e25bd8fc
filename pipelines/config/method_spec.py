"""A compression method with its options and budget, as a user writes it.

    apet                        runs with each --budget
    apet:basis=5,sampling=dpc   options of the method
    fastv:budget=128            a budget of its own
    apet:schedule=encoder=96,16=32

Nothing here imports torch until a method is built.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from pipelines.config.parsers import budget, scalar, schedule
from pipelines.text import did_you_mean

if TYPE_CHECKING:
    from apet.methods.base import Method, ModelLayout

Option = str | int | float | bool
# Stands for an unknown number of visual tokens: any share of it is a whole number, or nearly.
MANY_TOKENS = 1024
MAX_NAME = 80  # characters of a name, which becomes part of a folder's name
# The keys of `apet.METHODS`, whose import would import torch.
METHODS = (
    *("vanilla", "apet", "apet_greedy", "dart", "divprune", "downsample", "fastv"),
    *("pdrop", "random", "sparsevlm", "tome", "uniform", "visionzip"),
)
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class MethodSpec:
    """A method with its options, also budget or schedule. Equal specs give equal answers."""

    method: str
    options: tuple[tuple[str, Option], ...] = ()  # sorted by name

    @classmethod
    def of(cls, method: str, **options: Option) -> MethodSpec:
        return cls(method, tuple(sorted(options.items())))

    @property
    def name(self) -> str:
        """A short and stable name for people, folders and filters: `apet-10pct-basis5`."""
        options = dict(self.options)
        spent = "-".join(str(options.pop(key)) for key in ("budget", "schedule") if key in options)
        exact = [key + _suffix(value) for key, value in options.items()]
        plain = [re.sub(r"[^A-Za-z0-9_.=]", "_", text) for text in exact]
        spent = spent.replace("%", "pct").replace(",", "_")
        name = "-".join([self.method, *filter(None, [spent]), *plain])
        if plain != exact or len(name) > MAX_NAME:  # another spec could get the same name
            digest = hashlib.sha256(json.dumps(self.options).encode()).hexdigest()[:8]
            return f"{name[: MAX_NAME - 9]}-{digest}"
        return name

    def build(self, model: ModelLayout | None = None, visual_tokens: int | None = None) -> Method:
        """The method from `apet`; a ValueError names a wrong option or an impossible budget.

        model, visual_tokens: if known, the budget is checked (`pipelines.inference.model_info`)
        """
        from apet import methods  # imports torch

        options = dict(self.options)
        hints = get_type_hints(methods.METHODS[self.method])
        for name in [name for name in methods.options_of(self.method) if name in options]:
            _check_type(self.method, name, options[name], hints[name])
        method = methods.build(self.method, **options)
        sites = str(options.get("schedule", options.get("budget", ""))).split(",")
        keeps_shares = all(site.endswith("%") for site in sites)
        if model is not None and (visual_tokens or keeps_shares):
            try:
                method.plan(visual_tokens or MANY_TOKENS, model)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from None
        return method


def parse_method(text: str) -> MethodSpec:
    """Parse a method as a user types it: `apet`, `apet:basis=5,sampling=dpc`."""
    method, _, listed = text.strip().partition(":")
    if method not in METHODS:
        hint = did_you_mean(method, METHODS)
        raise ValueError(f"unknown method '{method}'{hint} (available: {', '.join(METHODS)})")
    options: dict[str, Option] = {}
    # A comma starts a new option, unless it starts the next site of a schedule.
    for item in re.split(r",(?=\s*(?!encoder\s*=)[a-z_]+\s*=)", listed) if listed else ():
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (equals and key and value):
            raise ValueError(
                f"cannot read '{item}' in '{text}': expected key=value, e.g."
                f" {method}:budget=64,basis=5"
            )
        if key in options:
            raise ValueError(f"'{text}' sets {key} twice; set it once")
        parse = {"budget": budget, "schedule": schedule}.get(key, scalar)
        try:
            options[key] = parse(value)
        except ValueError as error:
            raise ValueError(f"{key} in '{text}': {error}") from None
    if method == "vanilla" and options:
        raise ValueError(
            f"'{text}': vanilla is the unmodified model and has no options; use --method vanilla"
        )
    if {"budget", "schedule"} <= set(options):
        raise ValueError(f"'{text}' sets a budget and a schedule; set only one of them")
    return MethodSpec.of(method, **options)


def expand_methods(
    methods: Sequence[str], budgets: Sequence[str], plan: str | None
) -> tuple[MethodSpec, ...]:
    """Each method with each budget, or with the schedule `plan`.

    vanilla, and methods with a budget of their own, appear once.
    """
    specs: list[MethodSpec] = []
    for text in methods:
        spec = parse_method(text)
        options = dict(spec.options)
        if spec.method == "vanilla" or {"budget", "schedule"} & set(options):
            specs.append(spec)
        elif plan is not None:
            specs.append(MethodSpec.of(spec.method, schedule=plan, **options))
        elif not budgets:
            raise ValueError(
                f"{text} has no budget; give --budget 64, --budget 10%, or"
                " --schedule encoder=96,16=32"
            )
        else:
            specs += [MethodSpec.of(spec.method, budget=amount, **options) for amount in budgets]
    names = [spec.name for spec in specs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice} is requested twice; give each method and each budget once")
    return tuple(specs)


def _suffix(value: Option) -> str:
    """The value of an option in a name: a number directly after the key, a word after =."""
    if isinstance(value, bool):
        return f"={str(value).lower()}"
    return f"={value}" if isinstance(value, str) else str(value)


def _check_type(method: str, name: str, value: Option, hint: Any) -> None:
    """Raise a ValueError if the value has none of the types, or is none of the words, of a hint."""
    allowed = get_args(hint) or (hint,)
    is_number = float in allowed and type(value) is int
    if value in allowed or type(value) in allowed or is_number:
        return
    expected = " or ".join(TYPE_NAMES.get(item, str(item)) for item in allowed if item != NoneType)
    words = [item for item in allowed if isinstance(item, str)]
    raise ValueError(
        f"{method}: {value!r} is not a valid {name}: expected {expected}"
        f"{did_you_mean(str(value), words)}"
    )
