"""ApET: approximation-error guided compression of visual tokens, and what it takes to compare it with its rivals."""

from apet.attach.prefill import RowStats
from apet.attach.session import Attachment, attach
from apet.core.compression import Compressed, compress
from apet.decoding.decode import Decode
from apet.flops import SHAPES, Flops, ModelShape, prefill_flops
from apet.methods import METHODS
from apet.methods.apet import ApET
from apet.schedule import Budget, Schedule, Site
from apet.towers.shared_outputs import Towers

__all__ = [
    "METHODS",
    "SHAPES",
    "ApET",
    "Attachment",
    "Budget",
    "Compressed",
    "Decode",
    "Flops",
    "ModelShape",
    "RowStats",
    "Schedule",
    "Site",
    "Towers",
    "attach",
    "compress",
    "prefill_flops",
]
