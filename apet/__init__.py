"""ApET: approximation-error guided compression of visual tokens, free of any model."""

from apet.compression import Compressed, compress
from apet.flops import SHAPES, Flops, ModelShape, prefill_flops
from apet.schedule import Budget, Schedule, Site

__all__ = [
    "SHAPES",
    "Budget",
    "Compressed",
    "Flops",
    "ModelShape",
    "Schedule",
    "Site",
    "compress",
    "prefill_flops",
]
