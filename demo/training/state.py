"""What a killed training goes on from: one file a stage, replaced whole."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def save(file: Path, **parts: Any) -> None:
    """Everything that `load` gives back, and where torch's and Python's chance stand."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    torch.save({**parts, "chance": (torch.get_rng_state(), random.getstate())}, part)
    os.replace(part, file)


def load(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    parts: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
    torch_state, python_state = parts.pop("chance")
    torch.set_rng_state(torch_state)
    random.setstate(python_state)
    return parts


def dice(*numbers: int) -> np.random.Generator:
    """Chance for one step: a step that is repeated after an interruption is the same step."""
    return np.random.default_rng(list(numbers))
