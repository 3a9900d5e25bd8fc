"""Manifest, images and answers on an object store, through the S3 protocol of moto."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.fs
import pytest

from pipelines.benchmarks import benchmark
from pipelines.data.manifest import Manifest
from pipelines.results.lock import Lock, Locked
from pipelines.results.storage import Folder, locate
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


def test_manifest_reads_media_beside_it_on_s3(bucket: str) -> None:
    """tests/security/test_secrets.py runs a whole job on S3."""
    system, _ = locate(f"s3://apet/x?{bucket}")
    row = {"id": "a", "media": "images/a.png", "question": "What is this?"}
    for name, data in (("rows.jsonl", json.dumps(row).encode()), ("images/a.png", b"a picture")):
        with system.open_output_stream(f"apet/data/{name}") as stream:
            stream.write(data)
    manifest = Manifest.of(f"s3://apet/data/rows.jsonl?{bucket}")
    [read] = manifest.read(manifest.index())
    [medium] = read.media
    assert manifest.fetch(medium) == b"a picture"
