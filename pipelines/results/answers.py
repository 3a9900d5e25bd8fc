"""The answers of one run on disk: Parquet files that are complete or absent, with each row once.

A file is written in one step, so a killed process leaves no partial answers, and a row is answered
if it can be read. A run resumes from there (`compact`), under its lock (`pipelines.results.lock`).
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.results.answer_schema import ANSWER_SCHEMA
from pipelines.results.storage import MAX_REQUESTS, Folder, run_concurrently
from pipelines.text import describe_error

DAMAGED_SUFFIX = ".torn"  # appended to the name of a file that cannot be read
SAMPLE_FILES = 16


class AnswerParts:
    """The answers to one block of rows, in numbered files.

    The names depend on the rows alone, so a second attempt at the block finds the files of the
    first.
    """

    def __init__(self, folder: Folder, row_ids: Sequence[str]) -> None:
        self.folder = folder
        self._block = hashlib.sha256("\n".join(row_ids).encode()).hexdigest()[:16]
        self._number = 0

    def answered(self) -> set[str]:
        """Ids of the rows that an earlier attempt, whose actor died, has already written."""
        row_ids: set[str] = set()
        while self.folder.exists(self._name()):
            rows = _read_undamaged(self.folder, self._name(), ["row_id"])
            if rows is not None:
                row_ids.update(rows["row_id"].to_pylist())
            self._number += 1
        return row_ids

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the next file."""
        # Files may exist after a damaged one, which was renamed: they must not be overwritten.
        while self.folder.exists(self._name()):
            self._number += 1
        if rows:
            table = pa.Table.from_pylist(list(rows), schema=ANSWER_SCHEMA)
            self.folder.write(self._name(), _to_parquet(table))
            self._number += 1

    def _name(self) -> str:
        return f"answers-{self._block}-{self._number}.parquet"


def compact(folder: Folder, *, retry_errors: bool = False) -> pa.Array:
    """Repair a run's folder and return the ids of the answered rows: (row_id, ...).

    Call it only while holding the run's lock. Files that cannot be read are renamed. Duplicate
    rows, written by a worker that was cut off from the cluster, are reduced to the first one.
    `retry_errors` removes the rows that ended in an error.
    """
    for name in folder.names():
        if name.startswith(".answers-") and name.endswith(".tmp"):
            folder.delete(name)
    columns = ("row_id", "status") if retry_errors else ("row_id",)
    names = answer_files(folder)
    tables = run_concurrently(lambda name: _read_undamaged(folder, name, columns), names)
    masks: dict[str, NDArray[np.bool_]] = {}  # by file: the rows to keep
    chunks: list[pa.Array] = []  # and their ids
    for name, rows in zip(names, tables, strict=True):
        if rows is None:
            continue
        keep = pc.equal(rows["status"], "ok") if retry_errors else np.ones(len(rows))
        masks[name] = np.asarray(keep, dtype=bool)
        chunks.append(rows["row_id"].combine_chunks().filter(pa.array(masks[name])))
    row_ids = pa.chunked_array(chunks, pa.string()).combine_chunks()
    # Arrow numbers the ids: a Python set of ten million would take gigabytes.
    codes = np.asarray(row_ids.dictionary_encode().indices)
    first = np.zeros(len(codes), bool)
    first[np.unique(codes, return_index=True)[1]] = True
    start = 0
    for name, keep in masks.items():
        end = start + int(keep.sum())
        keep[keep], start = first[start:end], end
        if not keep.all():
            rows = _read_part(folder, name, None).filter(pa.array(keep))
            folder.write(name, _to_parquet(rows)) if rows.num_rows else folder.delete(name)
    return row_ids.filter(pa.array(first))


def read(folder: Folder, columns: Sequence[str] | None = None) -> pa.Table:
    """All answers of a run, sorted by row_id."""
    table = pa.concat_tables([_empty(columns), *batches(folder, columns)])
    return table.sort_by("row_id") if "row_id" in table.column_names else table


def batches(folder: Folder, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The answers file by file, for callers that must not hold all of them."""
    names = answer_files(folder)
    for start in range(0, len(names), MAX_REQUESTS):
        group = names[start : start + MAX_REQUESTS]
        yield from run_concurrently(lambda name: _read_part(folder, name, columns), group)


def sample(folder: Folder) -> pa.Table:
    """All columns of some answers, from files spread evenly over the run."""
    names = answer_files(folder)
    indices = np.unique(np.linspace(0, len(names) - 1, SAMPLE_FILES).round().astype(int))
    spread = [names[index] for index in indices if names]
    parts = run_concurrently(lambda name: _read_part(folder, name, None), spread)
    return pa.concat_tables([_empty(None), *parts])


def answer_files(folder: Folder) -> list[str]:
    """Names of the files with a run's answers: all of its Parquet files."""
    return [name for name in folder.names() if name.endswith(".parquet")]


def _read_undamaged(folder: Folder, name: str, columns: Sequence[str]) -> pa.Table | None:
    """Columns of a file. One that the crash of a machine has damaged is renamed: None."""
    try:
        return _read_columns(folder, name, columns)
    except (pa.ArrowInvalid, OSError) as error:
        # "deserialize" is pyarrow's word for a damaged footer; else the store does not respond
        if isinstance(error, OSError) and "deserialize" not in str(error).lower():
            raise
        print(
            f"cannot read {name} in {folder}; its rows will be answered again:"
            f" {describe_error(error)}"
        )
        folder.rename(name, name + DAMAGED_SUFFIX)
        return None


def _read_part(folder: Folder, name: str, columns: Sequence[str] | None) -> pa.Table:
    """A file with exactly these columns: null where an earlier version did not write one."""
    rows = _read_columns(folder, name, columns or ANSWER_SCHEMA.names)
    return pa.concat_tables([_empty(columns), rows], promote_options="default")


def _read_columns(folder: Folder, name: str, columns: Sequence[str]) -> pa.Table:
    """Those of the columns that the file has."""
    # `pq.read_table` would import pandas, which takes longer than all a finished run needs.
    with folder.open(name) as file:
        return pq.ParquetFile(file, pre_buffer=True).read(columns=list(columns))


def _empty(columns: Sequence[str] | None) -> pa.Table:
    fields = [ANSWER_SCHEMA.field(name) for name in columns or ANSWER_SCHEMA.names]
    return pa.Table.from_batches([], pa.schema(fields))  # `empty_table` would import pandas


def _to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
