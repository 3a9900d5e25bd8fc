"""Manifest, images and answers on an object store, through the S3 protocol of moto."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs
import pytest

from pipelines.benchmarks import benchmark
from pipelines.config.eval_config import EvalConfig
from pipelines.job import run
from pipelines.results.lock import Lock, Locked
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder, locate
from tests.support import tiny
from tests.support.official import LAYOUTS


def test_folder_lists_reads_and_deletes_on_s3(bucket: str) -> None:
    folder = Folder.of(f"s3://apet/here?{bucket}").child("deep")
    assert folder.names() == []
    folder.write("b", b"two")
    folder.write("a", b"one")
    folder.write("a", b"new")
    assert folder.names() == ["a", "b"]
    assert folder.read("a") == b"new"
    assert folder.exists("b")
    folder.rename("b", "c")
    folder.delete("a")
    folder.delete("a")
    assert folder.names() == ["c"]
    assert folder.local is None


def test_lock_admits_one_writer_on_s3(bucket: str) -> None:
    folder = Folder.of(f"s3://apet/locked?{bucket}")
    with Lock(folder), pytest.raises(Locked), Lock(folder):
        pass
    assert folder.names() == []


@pytest.mark.parametrize("name", ["gqa", "gqa of the hub", "mmbench", "mme", "scienceqa", "msvd"])
def test_official_layout_reads_the_same_rows_from_s3(
    name: str, bucket: str, tmp_path: Path
) -> None:
    """One of each layout: rows and media are the same as in a local folder."""
    bench, split_of_it, write = LAYOUTS[name]
    write(tmp_path)
    system, _ = locate(f"s3://apet/x?{bucket}")
    pyarrow.fs.copy_files(str(tmp_path), "apet/data", destination_filesystem=system)
    here = benchmark(bench).load(str(tmp_path), split_of_it).require_media()
    there = benchmark(bench).load(f"s3://apet/data?{bucket}", split_of_it).require_media()
    rows = here.read(here.index())
    assert there.read(there.index()) == rows
    for medium in (medium for row in rows for medium in row.media):
        data, original = there.fetch(medium), here.fetch(medium)
        assert data == (original.read_bytes() if isinstance(original, Path) else original)


def test_job_reads_and_writes_on_s3(
    cluster: str, checkpoint: Callable[[str], Path], bucket: str, tmp_path: Path
) -> None:
    system, _ = locate(f"s3://apet/x?{bucket}")
    assert isinstance(system, pyarrow.fs.S3FileSystem)
    lines = []
    for number in range(6):
        picture = io.BytesIO()
        tiny.image(30 + number, 24, seed=number).save(picture, format="PNG")
        with system.open_output_stream(f"apet/data/images/{number}.png") as stream:
            stream.write(picture.getvalue())
        lines.append(
            json.dumps(
                {"id": f"{number}", "media": f"images/{number}.png", "question": "What is this?"}
            )
        )
    with system.open_output_stream("apet/data/rows.jsonl") as stream:
        stream.write("\n".join(lines).encode())
    job = EvalConfig.of(
        "image",
        model=str(checkpoint("llava")),
        data=f"s3://apet/data/rows.jsonl?{bucket}",
        output=f"s3://apet/results?{bucket}",
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        methods=("vanilla",),
        max_new_tokens=2,
        actors=(1, 1),
    )
    assert run(job) == 0
    infos = system.get_file_info(pyarrow.fs.FileSelector("apet/results", recursive=True))
    parts = [info.path for info in infos if info.path.endswith(".parquet")]
    ids = [
        row
        for part in parts
        for row in pyarrow.parquet.read_table(part, filesystem=system)["row_id"].to_pylist()
    ]
    assert sorted(ids) == [str(number) for number in range(6)]
    [run_folder] = {part.rpartition("/")[0].rpartition("/")[2] for part in parts}
    record = RunRecord.load(Folder.of(f"s3://apet/results?{bucket}").child(run_folder))
    assert record.state == "finished"
    assert record.rows == {"wanted": 6, "done": 6, "error": 0}
    assert "endpoint_override" not in json.dumps(record.snapshot())
    assert run(job) == 0  # finished: nothing to do
