"""Where rows come from: one file a layout, one line here."""

from pipelines.data.formats.base import Format
from pipelines.data.formats.folder import FOLDER
from pipelines.data.formats.jsonl import JSONL
from pipelines.data.formats.pairs import PAIRS
from pipelines.data.formats.parquet import PARQUET
from pipelines.data.formats.table import CSV
from pipelines.data.formats.webdataset import WEBDATASET

FORMATS: dict[str, Format] = {
    "JSON": JSONL,
    "CSV": CSV,
    "Parquet": PARQUET,
    "WebDataset": WEBDATASET,
    "folder": FOLDER,  # what is left when there is none of the others
    "pairs": PAIRS,  # what a benchmark asks for by name
}
