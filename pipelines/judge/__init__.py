"""Judges of open answers, one file each: who says whether an answer means what the correct one does.

    from pipelines.judge import Item, judge
    with_whom = judge("endpoint", url="http://localhost:8000/v1", model="my-model")
    for verdict in with_whom.judge([Item("What is he doing?", ("cook",), "He is preparing food.")]):
        verdict.correct, verdict.score

`pipelines.judge.run_verdicts` does this for the answers of a run.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pipelines.metrics.verdicts import Item, Judge, Unavailable, Verdict

__all__ = ["JUDGES", "Item", "Judge", "Unavailable", "Verdict", "judge"]
JUDGES = {
    "offline": "Offline",
    "endpoint": "Endpoint",
    "local": "Local",
}  # modules here, imported when asked for


def judge(kind: str, **options: Any) -> Judge:
    """The judge of that kind, with its own options."""
    if kind not in JUDGES:
        raise ValueError(f"there is no judge '{kind}'; there are {', '.join(JUDGES)}")
    found: Judge = getattr(import_module(f"pipelines.judge.{kind}"), JUDGES[kind])(**options)
    return found
