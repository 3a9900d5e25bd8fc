"""The answers of one run on disk: Parquet parts that are whole or not there, and each row once.

A part is written in one act, so whoever is killed leaves no half answers; what is answered is what can be read.
A run goes on from there (`settle`), under its lock (pipelines.results.lock).
"""

from __future__ import annotations

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
from pipelines.text import describe_error
from pipelines.results.storage import AT_ONCE, Folder, run_concurrently
from pipelines.text import redacted

Mask = NDArray[np.bool_]
TORN = ".torn"  # what a part that cannot be read is renamed to end in


class Block:
    """The answers to one block of rows, in parts that are numbered, so that a second attempt finds the first's."""

    def __init__(self, folder: Folder, row_ids: Sequence[str]) -> None:
        self.folder = folder
        self._name = hashlib.sha256("\n".join(row_ids).encode()).hexdigest()[:16]
        self._next = 0

    def answered(self) -> set[str]:
        """Rows that an earlier attempt, whose actor died, has written already."""
        found: set[str] = set()
        while self.folder.exists(self._part()):
            rows = _whole(self.folder, self._part(), ["row_id"])
            if not isinstance(rows, Torn):  # by a machine that went down: its rows are not answered
                found.update(rows["row_id"].to_pylist())
            self._next += 1
        return found

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the next part."""
        while self.folder.exists(self._part()):  # an earlier part was torn: those after it stay
            self._next += 1
        if rows:
            self.folder.write(self._part(), _parquet(pa.Table.from_pylist(list(rows), schema=ANSWER_SCHEMA)))
            self._next += 1

    def _part(self) -> str:
        return f"answers-{self._name}-{self._next}.parquet"


def compact(folder: Folder, *, retry_errors: bool = False) -> pa.Array:
    """Make a run's folder sound and say which rows are answered: (row_id, ...).

    Only under the run's lock. Parts that cannot be read are set aside, and of rows that are there twice, which a
    worker cut off from the cluster can cause, one is kept. `retry_errors` forgets the rows that ended in an error.
    """
    for name in folder.names():
        if name.startswith(".answers-") and name.endswith(".tmp"):
            folder.delete(name)
    columns = ("row_id", "status") if retry_errors else ("row_id",)
    names = parts_of(folder)
    parts: list[tuple[str, Mask]] = []  # name, and which of its rows stay
    seen: list[pa.Array] = []  # the row ids of those
    for name, rows in zip(names, run_concurrently(lambda name: _whole(folder, name, columns), names), strict=True):
        if isinstance(rows, Torn):
            print(f"{name} in {redacted(folder.uri)} cannot be read, its rows are asked again: {describe_error(rows)}")
            folder.rename(name, name + TORN)
            continue
        keep = np.asarray(pc.equal(rows["status"], "ok") if retry_errors else np.ones(len(rows)), dtype=bool)
        ids = rows["row_id"].combine_chunks()
        parts.append((name, keep))
        seen.append(ids if keep.all() else ids.filter(pa.array(keep)))
    found = pa.chunked_array(seen, pa.string())
    first, start = ~_repeated(found), 0
    for name, keep in parts:
        end = start + int(keep.sum())
        keep[keep], start = first[start:end], end
        if not keep.all():
            rest = _table(folder, name, None).filter(pa.array(keep))
            folder.write(name, _parquet(rest)) if rest.num_rows else folder.delete(name)
    return (found if first.all() else found.filter(pa.array(first))).combine_chunks()


def _repeated(ids: pa.ChunkedArray) -> Mask:
    """Which ids were there before. Only those whose hashes meet are compared: a set of ten million takes gigabytes."""
    hashes = np.fromiter((hash(text) for chunk in ids.chunks for text in chunk.to_pylist()), np.int64, len(ids))
    ordered = np.sort(hashes)
    meeting = np.isin(hashes, ordered[1:][ordered[1:] == ordered[:-1]])
    found, known = np.zeros(len(ids), dtype=bool), set()
    for place in np.flatnonzero(meeting):
        row_id = ids[int(place)].as_py()
        found[place] = row_id in known
        known.add(row_id)
    return found


def read(folder: Folder, columns: Sequence[str] | None = None) -> pa.Table:
    """All answers of a run, sorted by row_id."""
    parts = run_concurrently(lambda name: _table(folder, name, columns), parts_of(folder))
    table = pa.concat_tables([_no_answers(columns), *parts])
    return table.sort_by("row_id") if "row_id" in table.column_names else table


def batches(folder: Folder, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The answers part by part, for what must not hold all of them."""
    names = parts_of(folder)
    for start in range(0, len(names), AT_ONCE):
        yield from run_concurrently(lambda name: _table(folder, name, columns), names[start : start + AT_ONCE])


def sample(folder: Folder, parts: int = 16) -> pa.Table:
    """All columns of some of the answers, from parts all over the run."""
    names = parts_of(folder)
    places = sorted({round(at * (len(names) - 1) / (parts - 1)) for at in range(parts)}) if names else []
    return pa.concat_tables([_no_answers(None), *run_concurrently(lambda at: _table(folder, names[at], None), places)])


def parts_of(folder: Folder) -> list[str]:
    """The files that hold a run's answers: all of its Parquet files."""
    return [name for name in folder.names() if name.endswith(".parquet")]


def _table(folder: Folder, name: str, columns: Sequence[str] | None) -> pa.Table:
    """A part; null is what it has no column for."""
    found = _columns(folder, name, columns or ANSWER_SCHEMA.names)
    return pa.concat_tables([_no_answers(columns), found], promote_options="default")


def _columns(folder: Folder, name: str, columns: Sequence[str]) -> pa.Table:
    """Those that a part has. `read_table` would import pandas, which a finished run need not."""
    with folder.open(name) as file:
        return pq.ParquetFile(file, pre_buffer=True).read(columns=list(columns))


def _no_answers(columns: Sequence[str] | None) -> pa.Table:
    return pa.Table.from_batches([], schema=pa.schema([ANSWER_SCHEMA.field(name) for name in columns or ANSWER_SCHEMA.names]))


class Torn(Exception):
    """A part that is no Parquet, or only the beginning of one. (A store that does not answer is an OSError.)"""


def _whole(folder: Folder, name: str, columns: Sequence[str]) -> pa.Table | Torn:
    """Columns of a part, if it is one."""
    try:
        return _columns(folder, name, columns)
    except pa.ArrowInvalid as error:
        return Torn(str(error))
    except OSError as error:
        if "deserialize" in str(error).lower():  # what pyarrow says of a damaged footer
            return Torn(str(error))
        raise


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
