"""What every layout of a data set shares: a file, where a row lies in it, and reading ranges instead of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from pyarrow import NativeFile, fs

from pipelines.data.rows import Kind
from pipelines.results.storage import split

SUFFIXES: Mapping[Kind, tuple[str, ...]] = {
    "image": (
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".jp2",
        ".ppm",
    ),
    "video": (
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".ts",
        ".flv",
        ".wmv",
        ".3gp",
        ".gif",
    ),
}
CHUNK = 1 << 20  # bytes that a scan reads at once
NEAR = 4 << 10  # spans this close are read in one go
MERGED = 16 << 20  # and no more than this in one go

NUMBER = "row number"  # in `File.keys`: of a table whose rows have no ids
RawRecord = Mapping[str, Any]  # one row as its file has it, under the file's own column names


ALIASES: Mapping[str, tuple[str, ...]] = {  # the first of them that a row has counts
    "id": ("id", "question_id"),
    "media": (
        "media",
        "image",
        "images",
        "video",
        "videos",
        "image_path",
        "video_path",
        "file_name",
    ),
    "question": ("question", "text"),
    "answers": ("answers", "answer"),
    "options": ("options", "choices"),
    "type": ("type", "category"),
}


def identity(record: RawRecord) -> str | None:
    """The row's own id; None if it has none that can be written down."""
    for name in ALIASES["id"]:
        value = record.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value) if encodable(str(value)) else None
    return None


def encodable(text: str) -> bool:
    """Half a surrogate pair is JSON, and can be neither stored nor tokenised."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Span(NamedTuple):
    """Where one row lies in its file: bytes from `start`, or the row's number where files have rows."""

    row_id: str
    start: int
    length: int


@dataclass(frozen=True)
class DataFile:
    """One file of a data set, or the folder itself where the files are the rows."""

    uri: str = field(repr=False)  # of the data set: says the file system, and may hold a password
    path: str  # within the file system
    kind: Kind
    prefix: str = (
        ""  # before the ids of rows that have none of their own, where there are several files
    )
    under: str = ""  # of JSON: the key that the list of rows is under; "*": the rows are the values of one object
    identity: Callable[[RawRecord], str | None] = identity
    keys: tuple[
        str, ...
    ] = ()  # the columns `identity` reads; none: the first of ALIASES["id"] that is there
    columns: tuple[str, ...] = ()  # that rows are made of beside those of ALIASES

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def system(self) -> fs.FileSystem:
        return locate(self.uri)[0]

    def info(self) -> fs.FileInfo:
        return self.system.get_file_info(self.path)

    def open(self) -> NativeFile:
        return self.system.open_input_file(self.path)

    def chunks(self) -> Iterator[bytes]:
        with self.system.open_input_stream(self.path, compression=None) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk


@dataclass(frozen=True)
class Format:
    """How one kind of file holds rows. A new one is a file here and a line in `LAYOUTS`."""

    suffixes: tuple[str, ...]
    columns: Callable[
        [DataFile], list[str] | None
    ]  # what its rows can hold; None: whatever the layout itself gives them
    index: Callable[[DataFile], Iterator[Span]]  # streams: holds one row at a time
    read: Callable[
        [DataFile, Sequence[Span]], Iterator[RawRecord | Exception]
    ]  # spans by position; one result each
    digest: Callable[[DataFile], Iterator[bytes]]  # what must change when the rows do


@lru_cache(maxsize=64)
def locate(uri: str) -> tuple[fs.FileSystem, str]:
    """`storage.split`, once a process: connecting to an object store takes longer than reading a row."""
    return split(uri)


def lines(file: DataFile, longest: int) -> Iterator[tuple[int, int, bytes]]:
    """Start, length with its line end, and text of each line; the text of one over `longest` is left out."""
    start, rest, dropped = 0, b"", 0
    for chunk in file.chunks():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            length = dropped + len(line) + 1
            yield start, length, b"" if length > longest else line
            start, dropped = start + length, 0
        if len(rest) + dropped > longest:
            dropped, rest = dropped + len(rest), b""
    if rest or dropped:
        yield start, dropped + len(rest), b"" if dropped else rest


def ranges(file: DataFile, spans: Sequence[Span], largest: int) -> Iterator[bytes | ValueError]:
    """The bytes of each span, neighbours read together; an error in place of one over `largest`."""
    with file.open() as stream:
        first = 0
        while first < len(spans):
            if spans[first].length > largest:
                yield ValueError(
                    f"it has {spans[first].length:,} bytes in {file.name}; at most {largest:,} are read"
                )
                first += 1
                continue
            last, end = first, spans[first].start + spans[first].length
            while last + 1 < len(spans):
                after = spans[last + 1]
                if (
                    after.start - end > NEAR
                    or after.start + after.length - spans[first].start > MERGED
                ):
                    break
                last, end = last + 1, after.start + after.length
            stream.seek(spans[first].start)
            block = memoryview(stream.read(end - spans[first].start))
            for span in spans[first : last + 1]:
                begin = span.start - spans[first].start
                yield bytes(block[begin : begin + span.length])
            first = last + 1


def digest(file: DataFile) -> Iterator[bytes]:
    """All of it: what a manifest says is what the run answers."""
    return file.chunks()


def size(file: DataFile) -> Iterator[bytes]:
    """Name and size: media are too many bytes to be read once more than needed."""
    yield f"{file.name} {file.info().size}".encode()


def attempt(parse: Callable[[bytes], RawRecord], data: bytes | ValueError) -> RawRecord | Exception:
    """A bad row is data: what goes wrong with one is returned, so that its neighbours are read."""
    if isinstance(data, ValueError):
        return data
    try:
        return parse(data)
    except (ValueError, RecursionError) as error:
        return (
            error
            if isinstance(error, ValueError)
            else ValueError("it is nested too deeply to be read")
        )
