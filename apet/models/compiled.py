"""Vision towers whose blocks are compiled by torch.compile.

    compile_towers(model)

A block's `forward` is compiled once for any number of images. Its hooks stay outside, so that methods drop tokens
before a compiled block and `Towers` remembers what it made; a method that looks inside a block (hooks on its parts) has
the block run as it is. Sums are made in another order: features differ in the last digits.

Qwen's towers are refused: their blocks walk over windows, and each new number of them would be compiled anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from apet.models import family_of
from apet.towers.tile_tower import TileTower


def compile_towers(model: PreTrainedModel) -> None:
    """Compile the blocks of the model's vision towers; the first images of a job then take a while."""
    towers = family_of(model).towers.values()
    if not towers or not all(isinstance(tower, TileTower) for tower in towers):
        raise ValueError(
            f"the vision tower of {model.config.model_type} is not compiled: its blocks walk over windows, whose number"
            " differs between images; leave it as it is (--no-compile)"
        )
    for tower in towers:
        for block in tower.layers:
            if "forward" in block.__dict__:
                raise ValueError(
                    "a model that is spread over devices is not compiled; give it one GPU, or leave it as it is"
                    " (--no-compile)"
                )
            plain = block.forward
            block.__dict__["forward"] = partial(
                _forward, block, plain, torch.compile(plain, dynamic=True)
            )


def _forward(
    block: nn.Module, plain: Callable[..., Any], fast: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    # Hooks on modules with parts are transformers' own, which collect attention for who asks for it.
    leaves = (part for part in block.modules() if next(part.children(), None) is None)
    watched = any(leaf._forward_hooks or leaf._forward_pre_hooks for leaf in leaves)
    return (plain if watched else fast)(*args, **kwargs)
