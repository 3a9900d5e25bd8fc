"""ApET: visual token compression guided by approximation error, and its rivals for comparison."""

from apet.attach.attachment import Attachment, attach
from apet.attach.row_stats import RowStats
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
