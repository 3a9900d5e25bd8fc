"""Judges of open answers: each decides whether an answer means the same as the correct one.

`pipelines.judge.run_verdicts` does this for the answers of a run; docs/judge.md has an example.
"""

from importlib import import_module
from typing import Any

from pipelines.metrics.verdicts import Item, Judge, Unavailable, Verdict

__all__ = ["JUDGES", "Item", "Judge", "Unavailable", "Verdict", "judge"]
# Imported when used: `local` needs Ray and torch.
JUDGES = {
    "offline": ("pipelines.metrics.word_match", "Offline"),
    "endpoint": ("pipelines.judge.endpoint", "Endpoint"),
    "local": ("pipelines.judge.local", "Local"),
}


def judge(kind: str, **options: Any) -> Judge:
    """Create the judge of this kind with its options."""
    if kind not in JUDGES:
        raise ValueError(f"not a judge: {kind!r}; choose one of {', '.join(JUDGES)}")
    module, name = JUDGES[kind]
    created: Judge = getattr(import_module(module), name)(**options)
    return created
