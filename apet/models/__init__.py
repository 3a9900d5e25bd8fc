"""The model families that can be compressed, by transformers' `model_type`. One file each."""

from __future__ import annotations

from transformers import PreTrainedModel

from apet.models.base import Family
from apet.models.llava import Llava

FAMILIES: dict[str, type[Family]] = {
    "llava": Llava,
}


def family_of(model: PreTrainedModel) -> Family:
    """The description of a loaded model."""
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise ValueError(f"models of type {kind!r} are not supported; these are: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind](model)
