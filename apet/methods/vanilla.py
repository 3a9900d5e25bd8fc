"""The unmodified model: every visual token through every layer. The yardstick of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from apet.methods.base import Kept, Method, Model
from apet.schedule import Schedule
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class Vanilla(Method):
    """No sites. A budget is allowed, so that one loop can run all methods, and says nothing."""

    name: ClassVar[str] = "vanilla"

    def __post_init__(self) -> None:
        pass

    def plan(self, visual_tokens: int, model: Model) -> Schedule:
        return Schedule.full(visual_tokens=visual_tokens, layers=model.layers)

    def select(self, view: View) -> Kept:
        raise AssertionError("vanilla has no sites")
