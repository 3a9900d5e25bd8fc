"""State of an interrupted training: one file a stage, replaced atomically."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def save(file: Path, **parts: Any) -> None:
    """Save what `load` returns, and the state of the random generators of torch and Python."""
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


def step_rng(*numbers: int) -> np.random.Generator:
    """Random generator of one step: a step repeated after an interruption is the same."""
    return np.random.default_rng(list(numbers))
