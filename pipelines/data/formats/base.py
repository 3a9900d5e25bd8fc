"""Shared by all formats: a data file, the position of a row in it, and reading ranges of bytes."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pyarrow import NativeFile, fs

from pipelines.data.rows import Kind
from pipelines.results.storage import locate

_IMAGES = ".jpg .jpeg .png .webp .gif .bmp .tif .tiff .avif .jp2 .ppm"
_VIDEOS = ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .flv .wmv .3gp .gif"
_MEDIA_COLUMNS = "media image images video videos image_path video_path file_name"
SUFFIXES: Mapping[Kind, tuple[str, ...]] = {
    "image": tuple(_IMAGES.split()),
    "video": tuple(_VIDEOS.split()),
}
# Names under which a record may have a field. The first one that a record has counts.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "question_id"),
    "media": tuple(_MEDIA_COLUMNS.split()),
    "question": ("question", "text"),
    "answers": ("answers", "answer"),
    "options": ("options", "choices"),
    "type": ("type", "category"),
}
# Names under which benchmarks' own files have their media.
MEDIA_IDS = ("imageId", "image_id", "video_id", "video_name")
ROW_NUMBER = "row number"  # in `DataFile.keys`, for tables whose rows have no ids
CHUNK = 1 << 20  # bytes that are read at once
MAX_GAP = 4 << 10  # bytes between two spans that are read in one request
MAX_READ = 16 << 20  # bytes of one request for several spans

RawRecord = Mapping[str, Any]  # one row under the column names of its file


def identity(record: RawRecord) -> str | None:
    """The row's own id; None if it has none that can be stored."""
    for name in ALIASES["id"]:
        value = record.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value) if is_encodable(str(value)) else None
    return None


def is_encodable(text: str) -> bool:
    """Whether a text can be stored. Half a surrogate pair cannot, although it is valid JSON."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Span(NamedTuple):
    """Position of one row in its file: bytes from `start`, or the row's number in a table."""

    row_id: str
    start: int
    length: int
    media: int = 0  # a number that rows with the same media share; 0 if they are not known


def media_number(record: RawRecord) -> int:
    """`Span.media` of a row. It only decides which rows are read together."""
    names = (*ALIASES["media"], *MEDIA_IDS)
    values = (_path_of(record.get(name)) for name in names)
    value = next((value for value in values if value), None)
    return 0 if value is None else zlib.crc32(repr(value).encode(errors="replace")) or 1


def _path_of(value: Any) -> Any:
    """Embedded media have a path beside their bytes, or none."""
    return value.get("path") if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class DataFile:
    """One file of a data set, or the folder itself where every file is a row."""

    uri: str = field(repr=False)  # of the data set: names the file system, may contain a password
    path: str  # within the file system
    kind: Kind
    prefix: str = ""  # of ids that are made up, if there are several files
    # For JSON: the key of the list of rows; "*": the rows are the values of one object.
    json_key: str = ""
    identity: Callable[[RawRecord], str | None] = identity
    keys: tuple[str, ...] = ()  # columns that `identity` reads; empty: the first of ALIASES["id"]
    columns: tuple[str, ...] = ()  # columns that rows need, apart from ALIASES

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
    """A file format. To add one, write a file in this package and add it to `FORMATS`.

    columns     the columns of a file's rows; None if the format itself defines them
    index       yields the span of every row; holds one row at a time
    read        yields the record of every span, in the order of the file, or what is wrong with it
    digest      yields bytes that change when the rows do
    """

    index: Callable[[DataFile], Iterator[Span]]
    read: Callable[[DataFile, Sequence[Span]], Iterator[RawRecord | Exception]]
    digest: Callable[[DataFile], Iterator[bytes]] = DataFile.chunks
    suffixes: tuple[str, ...] = ()
    columns: Callable[[DataFile], list[str] | None] = lambda file: None


def read_lines(file: DataFile, max_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Start, length with line end, and text of each line; no text if over `max_bytes`."""
    start, rest, dropped = 0, b"", 0
    for chunk in file.chunks():
        *complete, rest = (rest + chunk).split(b"\n")
        for line in complete:
            length = dropped + len(line) + 1
            yield start, length, b"" if length > max_bytes else line
            start, dropped = start + length, 0
        if len(rest) + dropped > max_bytes:
            dropped, rest = dropped + len(rest), b""
    if rest or dropped:
        yield start, dropped + len(rest), b"" if dropped else rest


def read_spans(
    file: DataFile, spans: Sequence[Span], max_bytes: int, parse: Callable[[bytes], RawRecord]
) -> Iterator[RawRecord | Exception]:
    """The record of each span, or what is wrong with it. Neighbors are read in one request."""
    with file.open() as stream:
        for group in _neighbors(spans):
            if group[0].length > max_bytes:  # then it is alone: max_bytes is at least MAX_READ
                yield ValueError(
                    f"it has {group[0].length:,} bytes in {file.name}; at most {max_bytes:,} are"
                    " read"
                )
                continue
            first = group[0].start
            stream.seek(first)
            block = memoryview(stream.read(group[-1].start + group[-1].length - first))
            for span in group:
                begin = span.start - first
                yield try_parse(parse, bytes(block[begin : begin + span.length]))


def _neighbors(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """The spans in groups that lie close together: an object store is slow per request."""
    group: list[Span] = []
    for span in spans:
        end = span.start + span.length
        if group and (
            span.start - (group[-1].start + group[-1].length) > MAX_GAP
            or end - group[0].start > MAX_READ
        ):
            yield group
            group = []
        group.append(span)
    if group:
        yield group


def try_parse(parse: Callable[[bytes], RawRecord], data: bytes) -> RawRecord | Exception:
    """The record, or what is wrong with it: a bad row must not stop the rows after it."""
    try:
        return parse(data)
    except ValueError as error:
        return error
    except RecursionError:
        return ValueError("it is nested too deeply to be read")
