"""The formats of data sets, one file each."""

from pipelines.data.formats.base import Format
from pipelines.data.formats.folder import FOLDER
from pipelines.data.formats.jsonl import JSONL
from pipelines.data.formats.pairs import PAIRS
from pipelines.data.formats.parquet import PARQUET
from pipelines.data.formats.table import CSV
from pipelines.data.formats.webdataset import WEBDATASET

# The names are part of data set digests.
FORMATS: dict[str, Format] = {
    "JSON": JSONL,
    "CSV": CSV,
    "Parquet": PARQUET,
    "WebDataset": WEBDATASET,
    "folder": FOLDER,  # if a folder has none of the formats above
    "pairs": PAIRS,  # only for benchmarks, which ask for it by name
}
