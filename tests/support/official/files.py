"""Writers of the files of benchmarks: pictures, clips, tables and lists."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support import tiny

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (12, 8), (shade, 0, 0)).save(sink, format="PNG")
    return sink.getvalue()


def media(folder: Path, *names: str) -> None:
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(index))


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_json(path: Path, value: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, **options))


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    table = {
        name: pa.array(found, PICTURE) if name == "image" else pa.array(found)
        for name, found in columns.items()
    }
    pq.write_table(pa.table(table), path)


def embedded(shade: int) -> dict[str, Any]:
    return {"bytes": png(shade), "path": "image.png"}


def clip(path: Path, seed: int) -> None:
    """Write nine small frames. An AVI file begins with RIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10, width=48, height=32)
        stream.pix_fmt = "yuv420p"
        for frame in tiny.video(9, 48, 32, seed=seed):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        out.mux(stream.encode(None))
