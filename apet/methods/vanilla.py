"""The unmodified model: every visual token in every layer. The reference of every comparison."""

from dataclasses import dataclass
from typing import ClassVar

from apet.methods.base import Kept, Method, ModelLayout
from apet.schedule import Schedule
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class Vanilla(Method):
    """Has no sites. A budget is accepted and ignored, so that one loop can run all methods."""

    name: ClassVar[str] = "vanilla"

    def __post_init__(self) -> None:
        pass

    def plan(self, visual_tokens: int, model: ModelLayout) -> Schedule:
        return Schedule.full(visual_tokens=visual_tokens, layers=model.layers)

    def select(self, view: View) -> Kept:
        raise AssertionError("vanilla has no sites")
