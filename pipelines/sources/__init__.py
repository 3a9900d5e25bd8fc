"""Where rows come from: one file a layout, one line here."""

from pipelines.sources.base import Layout
from pipelines.sources.folder import FOLDER
from pipelines.sources.jsonl import JSONL
from pipelines.sources.pairs import PAIRS
from pipelines.sources.parquet import PARQUET
from pipelines.sources.table import CSV
from pipelines.sources.webdataset import WEBDATASET

LAYOUTS: dict[str, Layout] = {
    "JSON": JSONL,
    "CSV": CSV,
    "Parquet": PARQUET,
    "WebDataset": WEBDATASET,
    "folder": FOLDER,  # what is left when there is none of the others
    "pairs": PAIRS,  # what a benchmark asks for by name
}
