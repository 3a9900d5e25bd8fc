"""The compression methods, by name. One file each."""

from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches

from apet.methods.apet import ApET
from apet.methods.apet_greedy import ApETGreedy
from apet.methods.base import Method
from apet.methods.dart import DART
from apet.methods.divprune import DivPrune
from apet.methods.downsample import Downsample
from apet.methods.fastv import FastV
from apet.methods.pdrop import PDrop
from apet.methods.random import Random
from apet.methods.sparsevlm import SparseVLM
from apet.methods.tome import ToMe
from apet.methods.uniform import Uniform
from apet.methods.vanilla import Vanilla
from apet.methods.visionzip import VisionZip

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Vanilla,
        ApET,
        ApETGreedy,
        ToMe,
        FastV,
        SparseVLM,
        PDrop,
        VisionZip,
        DivPrune,
        DART,
        Random,
        Uniform,
        Downsample,
    )
}


def build(name: str, /, **options: object) -> Method:
    """Build a method from its name and options: `build("apet", budget=64, basis=20)`."""
    if name not in METHODS:
        known = "\n".join(f"  {method}: {', '.join(options_of(method))}" for method in METHODS)
        raise ValueError(
            f"'{name}' is not a valid method{_hint(name, METHODS)}; methods and their options"
            f" are\n{known}"
        )
    allowed = options_of(name)
    for option in options:
        if option not in allowed:
            raise ValueError(
                f"{name} has no option '{option}'{_hint(option, allowed)}; its options are"
                f" {', '.join(allowed)}"
            )
    return METHODS[name](**options)  # type: ignore[arg-type]


def options_of(name: str) -> list[str]:
    return [field.name for field in fields(METHODS[name])]


def _hint(name: str, valid: Iterable[str]) -> str:
    close = get_close_matches(name, list(valid), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
