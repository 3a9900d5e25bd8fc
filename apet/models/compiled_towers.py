"""Compile the blocks of vision towers with torch.compile.

    compile_towers(model)

A block's `forward` is compiled once for any number of images. Its hooks stay outside, so that
methods drop tokens before a compiled block and `Towers` stores its output. If a method hooks the
parts of a block, the block runs uncompiled. Sums are computed in another order: features differ in
the last digits.

Qwen's towers are refused: their blocks loop over windows, and each new number of windows would be
compiled again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from apet.models import family_of
from apet.towers.tile_tower import TileTower


def compile_towers(model: PreTrainedModel) -> None:
    """Compile the blocks of the model's towers; a job's first images then take a while."""
    towers = family_of(model).towers.values()
    if not towers or not all(isinstance(tower, TileTower) for tower in towers):
        raise ValueError(
            f"the vision tower of {model.config.model_type} cannot be compiled: its blocks loop"
            " over windows, whose number differs between images; leave it uncompiled (--no-compile)"
        )
    for tower in towers:
        for block in tower.layers:
            if "forward" in block.__dict__:
                raise ValueError(
                    "a model that is spread over devices cannot be compiled; give it one GPU, or"
                    " leave it uncompiled (--no-compile)"
                )
            plain = block.forward
            compiled = torch.compile(plain, dynamic=True)
            block.__dict__["forward"] = partial(_forward, block, plain, compiled)


def _forward(
    block: nn.Module,
    plain: Callable[..., Any],
    compiled: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    # Hooks on modules with children are transformers' own: they collect requested attention.
    leaves = (module for module in block.modules() if next(module.children(), None) is None)
    hooked = any(leaf._forward_hooks or leaf._forward_pre_hooks for leaf in leaves)
    return (plain if hooked else compiled)(*args, **kwargs)
