"""Data sets in every format: equal rows, bad ones included, and nothing outside the media root."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data import manifest as manifests
from pipelines.data.formats import base, jsonl
from pipelines.data.manifest import Manifest
from pipelines.data.media import root as roots
from pipelines.data.row_index import INDEX
from pipelines.data.rows import Kind, Medium, Row

ROWS = [
    {
        "id": f"r{number}",
        "media": f"pictures/{number % 7}.jpg",
        "question": f'Wörter,\n"in quotes" {number}?',
        "answers": ["one", "a one"],
        "options": ["one", "two"],
        "type": "count",
    }
    for number in range(50)
]
EXPECTED = [
    Row(
        str(row["id"]),
        (Medium("image", str(row["media"])),),
        str(row["question"]),
        ("one", "a one"),
        ("one", "two"),
        "count",
    )
    for row in ROWS
]


def write_jsonl(folder: Path) -> Path:
    (folder / "m.jsonl").write_text(
        "\ufeff" + "\r\n\n".join(map(json.dumps, ROWS)), encoding="utf-8"
    )
    return folder / "m.jsonl"


def write_array(folder: Path) -> Path:
    (folder / "m.json").write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8")
    return folder / "m.json"


def write_csv(folder: Path, name: str = "m.csv") -> Path:
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",")
        writer.writerow(ROWS[0])
        for row in ROWS:
            writer.writerow(
                [json.dumps(cell) if isinstance(cell, list) else cell for cell in row.values()]
            )
    return folder / name


def write_parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "m.parquet", row_group_size=16)
    return folder / "m.parquet"


WRITERS = [
    write_jsonl,
    write_array,
    write_csv,
    lambda folder: write_csv(folder, "m.tsv"),
    write_parquet,
]


@pytest.fixture(params=[1 << 20, 61], ids=["one chunk", "small chunks"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHUNK", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("write", WRITERS, ids=["jsonl", "array", "csv", "tsv", "parquet"])
def test_rows_are_equal_in_every_format(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    manifest = pickle.loads(pickle.dumps(Manifest.of(str(write(tmp_path)))))
    index = manifest.index()
    assert index.schema == INDEX
    assert manifest.read(index) == EXPECTED
    some = [40, 3, 3 + 1, 17, 49, 0]
    assert manifest.read(index.take(some)) == [EXPECTED[place] for place in some]
    assert manifest.index(limit=5)["row_id"].to_pylist() == [row.row_id for row in EXPECTED[:5]]


def test_folder_of_shards_is_read_in_order_and_by_pattern(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = pa.Table.from_pylist(ROWS)
    for shard in range(5):
        name = f"data/{'test' if shard < 3 else 'train'}-{shard}.parquet"
        pq.write_table(table.slice(shard * 10, 10), tmp_path / name)
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "README.md").write_text("about")
    every = Manifest.of(str(tmp_path))
    assert every.read(every.index()) == EXPECTED
    test = Manifest.of(f"{tmp_path}/data/test-*.parquet")
    assert test.read(test.index()) == EXPECTED[:30]
    assert test.digest() != every.digest()
    (tmp_path / "more.csv").write_text("id,image,question\n")
    with pytest.raises(
        ValueError,
        match=r"several kinds of data: more.csv \(CSV\), data/test-0.parquet \(Parquet\)",
    ):
        Manifest.of(str(tmp_path))


def test_embedded_media_of_hub_datasets_are_read(tmp_path: Path) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "question_id": pa.array([7, 8, 9]),
            "image": pa.array(
                [{"bytes": b"jpeg", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None],
                struct,
            ),
            "images": pa.array([None, None, [{"bytes": b"1"}, {"bytes": b"2"}]], pa.list_(struct)),
            "question": ["a?", "b?", "c?"],
            "answer": ["yes", None, "no"],
            "embedding": [[0.0] * 8] * 3,
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    (tmp_path / "b.jpg").write_bytes(b"file")
    manifest = Manifest.of(str(tmp_path / "m.parquet"))
    rows = manifest.read(manifest.index())
    assert [row.row_id for row in rows] == ["7", "8", "9"]
    fetched = [[manifest.fetch(medium) for medium in row.media] for row in rows]
    assert fetched == [[b"jpeg"], [tmp_path / "b.jpg"], [b"1", b"2"]]
    assert [row.answers for row in rows] == [("yes",), (), ("no",)]


def test_column_aliases_and_kinds_are_recognized(tmp_path: Path) -> None:
    lines = [
        {
            "question_id": 1,
            "image": "thumb.jpg",
            "video": "a.mp4",
            "text": "q",
            "answer": 3,
            "category": "c",
        },
        {"id": "2", "media": ["a.mp4", "b.mp4"], "question": "q", "choices": {"A": "x", "B": "y"}},
        {
            "id": "3",
            "image_path": "a.jpg",
            "question": "q",
            "answers": [{"answer": "yes", "confidence": 1}],
        },
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    manifest = Manifest.of(str(tmp_path / "m.jsonl"), kind="video")
    assert manifest.read(manifest.index()) == [
        Row("1", (Medium("video", "a.mp4"),), "q", ("3",), (), "c"),
        Row("2", (Medium("video", "a.mp4"), Medium("video", "b.mp4")), "q", (), ("x", "y")),
        Row("3", (Medium("image", "a.jpg"),), "q", ("yes",)),
    ]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_folder_of_media_has_one_row_a_file(tmp_path: Path, kind: Kind) -> None:
    for name in ("b.jpg", "a/1.PNG", "c.mp4", "notes.txt", ".hidden.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    manifest = Manifest.of(str(tmp_path), kind=kind)
    rows = manifest.read(manifest.index())
    assert [row.row_id for row in rows] == (["a/1.PNG", "b.jpg"] if kind == "image" else ["c.mp4"])
    assert {row.question for row in rows} == {f"Describe the {kind}."}
    assert manifest.fetch(rows[0].media[0]) == tmp_path / rows[0].row_id
    with_question = Manifest.of(str(tmp_path), kind=kind, question="Why?")
    assert with_question.read(with_question.index())[0].question == "Why?"
    before = manifest.digest()
    assert with_question.digest() != before
    (tmp_path / ("d.jpg" if kind == "image" else "d.mp4")).write_bytes(b"")
    assert manifest.digest() != before


def test_circular_links_are_visited_once(tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "a.jpg").write_bytes(b"x")
    for name in ("one", "two"):
        (tmp_path / "data" / "sub" / name).symlink_to(tmp_path / "data")
    (tmp_path / "data" / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert Manifest.of(str(tmp_path / "data")).index()["row_id"].to_pylist() == ["sub/a.jpg"]


def pack(path: Path, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_webdataset_groups_members_by_stem(tmp_path: Path, format: int) -> None:
    long = "w" * 200 + "ö"
    for shard in range(2):
        members = {
            "./000.jpg": b"first" * 3000,
            "./000.json": json.dumps(
                {"id": "other", "image": "x.jpg", "question": "q0", "answers": ["a"]}
            ).encode(),
            "001.png": b"second",
            "001.txt": b"q1\n",
            f"{long}.jpg": b"third",
            f"{long}.txt": b"q2",
            "003.cls": b"1",
        }
        pack(tmp_path / f"shard-{shard}.tar", members, format)
    manifest = Manifest.of(str(tmp_path))
    index = manifest.index()
    assert index["row_id"].to_pylist() == [
        f"shard-{s}/{stem}" for s in (0, 1) for stem in ("000", "001", long, "003")
    ]
    rows = manifest.read(index.take([6, 5, 4, 0, 3]))
    assert [[medium.data for medium in row.media] for row in rows[:4]] == [
        [b"third"],
        [b"second"],
        [b"first" * 3000],
        [b"first" * 3000],
    ]
    assert [row.question for row in rows[:3]] == ["q2", "q1", "q0"]
    assert (rows[2].answers, rows[2].media[0].name) == (("a",), "shard-1.tar/./000.jpg")
    assert rows[4].error is not None
    assert "the row has no image" in rows[4].error


def test_cut_tar_has_an_error_row_for_the_lost_rows(tmp_path: Path) -> None:
    complete = pack(
        tmp_path / "a.tar", {f"{n}.{end}": b"y" * 2000 for n in range(5) for end in ("jpg", "txt")}
    ).read_bytes()
    (tmp_path / "a.tar").write_bytes(complete[:13_000])
    manifest = Manifest.of(str(tmp_path / "a.tar"))
    rows = manifest.read(manifest.index())
    assert [row.error is None for row in rows] == [True, True, False]
    assert "cut or damaged" in str(rows[-1].error)
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(ValueError, match="not a plain tar"):
        manifest.index()


def test_bad_rows_become_error_rows(tmp_path: Path) -> None:
    good = {"id": "good", "image": "a.jpg", "question": "q"}
    lines = [
        b"not json",
        json.dumps(good).encode(),
        b"[1, 2]",
        b'{"id": "open", "image": "a.jpg"',
        b'{"id": "bytes", "image": "a.jpg", "question": "\xff"}',
        b'{"id": "half", "image": "a.jpg", "question": "\\ud800"}',
        b'{"id": "\\ud800", "image": "a.jpg", "question": "q"}',
        b'{"image": "a.jpg", "question": "q"}',
        b'{"id": null, "image": "a.jpg", "question": "q"}',
        b'{"id": "empty", "image": "a.jpg", "question": " "}',
        b'{"id": "none", "image": [], "question": "q"}',
        b'{"id": "number", "image": 3, "question": "q"}',
        b"[" * 100_000,
    ]
    (tmp_path / "m.jsonl").write_bytes(b"\n".join(lines))
    manifest = Manifest.of(str(tmp_path / "m.jsonl"))
    rows = manifest.read(manifest.index())
    found = {row.row_id: row.error for row in rows}
    assert len(found) == len(lines)
    assert found.pop("good") is None
    for row_id, text in {
        "line-1": "ValueError: the line is not valid JSON: Expecting value at character 1",
        "line-3": "this line is a list",
        "line-4": "not valid JSON",
        "line-5": "not UTF-8",
        "half": "half a character",
        "line-7": "no id",
        "line-8": "no id",
        "line-9": "no id",
        "empty": "the question is empty",
        "none": "the row has no image",
        "number": "the row has 3",
        "line-13": "nested too deeply",
    }.items():
        assert text in str(found.pop(row_id)), row_id
    assert not found
    with_question = Manifest.of(str(tmp_path / "m.jsonl"), question="What?")
    assert {row.row_id: row.question for row in with_question.read(with_question.index())}[
        "empty"
    ] == "What?"


def test_line_over_the_limit_becomes_an_error_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_ROW", 1000)
    monkeypatch.setattr(base, "CHUNK", 300)
    rows = [
        {"id": name, "image": "a.jpg", "question": text}
        for name, text in (("a", "q"), ("b", "q" * 5000), ("c", "q"))
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = Manifest.of(str(tmp_path / "m.jsonl"))
    assert [(row.row_id, row.error is None) for row in manifest.read(manifest.index())] == [
        ("a", True),
        ("line-2", False),
        ("c", True),
    ]


def test_unusable_data_is_refused_with_its_reason(tmp_path: Path) -> None:
    def refused(
        name: str, content: str | bytes, text: str, error: type[Exception] = ValueError
    ) -> None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(error, match=text):
            Manifest.of(str(tmp_path / name)).index()

    refused(
        "a.csv",
        "name,image,question\nx,y,z\n",
        "a.csv has no column id or question_id; it has name, image, question",
    )
    columns = "no column media or image or .* and no column question or text; it has id, pic"
    refused("a.jsonl", '{"id": 1, "pic": "a"}', columns)
    refused("b.jsonl", "", "no column .*; it has none")
    refused("b.csv", "id,image,question\n", "has no rows")
    refused(
        "c.csv",
        'id,image,question\n1,a,"q\n2,b,q\n',
        r"record at byte 18 \(line 3\) is not valid CSV",
    )
    refused(
        "a.json",
        '[{"id": 1, "image": "a", "question": "q"}, {"id"',
        "row 2 .* is not valid JSON",
    )
    refused("a.parquet", b"PAR1 no", "not a readable Parquet")
    refused("a.txt", "x", "is not a data set: expected a file that ends in .jsonl")
    same = '{"id": "x", "image": "a", "question": "q"}\n'
    refused(
        "d.jsonl",
        same + same.replace("x", "y") + same,
        r"1 ids of .*d.jsonl occur more than once: 'x'; every row needs its own id",
    )
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        Manifest.of(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has nothing that matches"):
        Manifest.of(str(tmp_path / "empty"))


def test_changed_file_changes_digest_and_gives_error_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path)
    manifest = Manifest.of(str(path))
    index, digest = manifest.index(), manifest.digest()
    path.write_bytes(path.read_bytes().replace(b'"r17"', b'"r71"'))
    assert manifest.digest() != digest
    assert "the data has changed" in str(manifest.read(index)[17].error)
    path.write_text("")
    assert all(row.error for row in manifest.read(index))
    path.unlink()
    assert "FileNotFoundError" in str(manifest.read(index)[0].error)


def test_damaged_parquet_page_costs_only_its_row_group(tmp_path: Path) -> None:
    path = write_parquet(tmp_path)
    manifest = Manifest.of(str(path))
    index = manifest.index()
    chunk = next(
        column
        for place in range(6)
        if (column := pq.read_metadata(path).row_group(1).column(place)).path_in_schema
        == "question"
    )
    data = bytearray(path.read_bytes())
    data[chunk.dictionary_page_offset : chunk.dictionary_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    rows = manifest.read(index)
    assert [row.error is None for row in rows] == [True] * 16 + [False] * 16 + [True] * 18


def test_fetch_refuses_paths_outside_the_media_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "in.jpg").write_bytes(b"in")
    (outside / "out.jpg").write_bytes(b"out")
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "near.jpg").write_bytes(b"near")
    (root / "link.jpg").symlink_to(outside / "out.jpg")
    (root / "dir").symlink_to(outside)
    (root / "fine.jpg").symlink_to("in.jpg")
    (root / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(root / "pipe.jpg")
    (root / "m.jsonl").write_text('{"id": 1, "image": "in.jpg", "question": "q"}')
    untrusted = Manifest.of(str(root / "m.jsonl"))
    trusted = Manifest.of(str(root / "m.jsonl"), allow_outside=True)

    for path in ("in.jpg", "./x/../in.jpg", "fine.jpg", str(root / "in.jpg")):
        assert untrusted.fetch(Medium("image", path)) == root / "in.jpg"
    for path in (
        "../outside/out.jpg",
        "../root2/near.jpg",
        str(outside / "out.jpg"),
        "link.jpg",
        "dir/out.jpg",
        f"file://{outside}/out.jpg",
        f"FILE://{root}/in.jpg",
        "s3://bucket/key.jpg",
    ):
        with pytest.raises(PermissionError, match="outside the media root"):
            untrusted.fetch(Medium("image", path))
    for path in (
        "../outside/out.jpg",
        "link.jpg",
        str(outside / "out.jpg"),
        f"file://{outside}/out.jpg",
    ):
        assert trusted.fetch(Medium("image", path)) == outside / "out.jpg"
    for manifest in (untrusted, trusted):
        for path in ("http://127.0.0.1/a.jpg", "https://user:secret@host/a.jpg"):
            with pytest.raises(ValueError, match="nothing is fetched over http") as caught:
                manifest.fetch(Medium("image", path))
            assert "secret" not in str(caught.value)
        for path, error in (("missing.jpg", FileNotFoundError), ("loop.jpg", FileNotFoundError)):
            with pytest.raises(error):
                manifest.fetch(Medium("image", path))
        for path in ("pipe.jpg", ".", "a\0b", "", "s3://bucket/key?endpoint_override=evil.example"):
            with pytest.raises(ValueError, match=r"is not|after a \?"):
                manifest.fetch(Medium("image", path))
    moved = Manifest.of(str(root / "m.jsonl"), media_root=str(outside))
    assert moved.fetch(Medium("image", "out.jpg")) == outside / "out.jpg"


def test_parquet_extension_types_are_refused(tmp_path: Path) -> None:
    class Hostile(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.binary(), "tests.hostile")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Hostile:
            return cls()

    pa.register_extension_type(Hostile())
    try:
        image = pa.ExtensionArray.from_storage(Hostile(), pa.array([b"x"], pa.binary()))
        pq.write_table(
            pa.table({"id": ["1"], "image": image, "question": ["q"]}), tmp_path / "m.parquet"
        )
        with pytest.raises(ValueError, match=r"column 'image' is of type .* pickled"):
            Manifest.of(str(tmp_path / "m.parquet")).index()
    finally:
        pa.unregister_extension_type("tests.hostile")


def test_remote_files_are_read_as_bytes_within_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of an object store are restricted to the root like paths."""
    (tmp_path / "bucket" / "set").mkdir(parents=True)
    write_jsonl(tmp_path / "bucket" / "set")
    (tmp_path / "bucket" / "set" / "a.jpg").write_bytes(b"inside")
    (tmp_path / "bucket" / "other.jpg").write_bytes(b"other")
    remote = pa.fs.SubTreeFileSystem(str(tmp_path), pa.fs.LocalFileSystem())
    for module in (base, manifests, roots):
        monkeypatch.setattr(
            module, "locate", lambda uri: (remote, uri.removeprefix("s3://").split("?")[0])
        )
    monkeypatch.setattr(roots, "URI_SCHEMES", {remote.type_name: ("s3",)})
    manifest = Manifest.of("s3://bucket/set/m.jsonl?region=x")
    assert manifest.read(manifest.index()) == EXPECTED
    for path in ("a.jpg", "s3://bucket/set/a.jpg", "b/../a.jpg"):
        assert manifest.fetch(Medium("image", path)) == b"inside"
    for path in (
        "../other.jpg",
        "s3://bucket/other.jpg",
        "s3://bucket/set/../other.jpg",
        "/bucket/other.jpg",
    ):
        with pytest.raises(PermissionError):
            manifest.fetch(Medium("image", path))
    trusted = Manifest.of("s3://bucket/set/m.jsonl", allow_outside=True)
    assert trusted.fetch(Medium("image", "s3://bucket/other.jpg")) == b"other"
    complete = Manifest.of("s3://bucket/set", media_root="s3://bucket")
    assert complete.read(complete.index()) == EXPECTED
    assert complete.fetch(Medium("image", "other.jpg")) == b"other"
    monkeypatch.setattr(roots, "MAX_BYTES", 5)
    with pytest.raises(ValueError, match="6 bytes; at most 5"):
        manifest.fetch(Medium("image", "a.jpg"))


def test_repr_and_errors_have_no_secrets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bucket") as caught:
        Manifest.of("ftp://user:secret@bucket/x.jsonl")
    manifest = Manifest(
        "s3://user:secret@bucket/x.jsonl",
        "s3://user:secret@bucket",
        "JSON",
        (base.DataFile("s3://a:secret@b", "b/x", "image"),),
        "image",
    )
    assert "secret" not in f"{caught.value} {manifest!r}"


def test_memory_of_the_driver_grows_with_the_index_alone(tmp_path: Path) -> None:
    """With eight times the rows only the table itself takes more memory."""
    peaks = []
    for rows in (1_000, 8_000):
        path = tmp_path / f"{rows}.jsonl"
        path.write_text(
            "".join(
                json.dumps({**ROWS[0], "id": f"row-{n:06d}", "type": "x" * 200}) + "\n"
                for n in range(rows)
            )
        )
        manifest = Manifest.of(str(path))
        tracemalloc.start()
        index = manifest.index()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(index) == rows
        assert index.nbytes < 40 * rows
    assert peaks[1] - 40 * 8_000 < peaks[0] + (4 << 20)


def test_named_list_is_the_one_of_the_outer_object(tmp_path: Path) -> None:
    """VQA's files describe themselves before their list."""
    rows = {"info": {"rows": [{"id": 1}], "note": '"rows": ['}, "rows": [{"id": 2}, {"id": 3}]}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    file = base.DataFile(str(tmp_path), str(tmp_path / "rows.json"), "image", json_key="rows")
    assert [span.row_id for span in jsonl.index(file)] == ["2", "3"]
