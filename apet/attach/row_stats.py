"""Statistics of the rows of a compressed batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from apet.models.base import Medium


@dataclass(frozen=True)
class RowStats:
    """Statistics of a row's visual tokens. Times and bytes are the batch's divided by its rows."""

    visual_tokens: int  # tokens that the decoder would see without compression
    kept: dict[str, int]  # counts after each site, by its name in a schedule: "encoder", "16"
    budget: float  # the achieved average over the decoder's layers
    index: dict[str, Tensor] | None  # tokens left after each site, ascending; None: not requested
    compress_ms: float
    cache_bytes: int  # keys and values of all layers after the last call
    media: Sequence[Medium] = field(repr=False, compare=False)  # in the order of `index`
