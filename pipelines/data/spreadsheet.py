"""The one kind of spreadsheet that is written and read here: an .xlsx with a header and a row of cells a line."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from xml.etree import ElementTree
from xml.sax.saxutils import escape

Cell = str | int | float | None

_LARGEST = 1 << 30  # bytes of one unpacked part: a zip file can claim anything
_LONGEST = 32_767  # characters of a cell that spreadsheets open
_FORBIDDEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]"
)  # no XML can hold them
_LETTERS = re.compile(r"[A-Z]{1,3}")  # of a column
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_REL = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
    f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_TYPE}.worksheet+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_REL}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_REL}">'
    '<sheets><sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_REL}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
}


def written(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> bytes:
    """An .xlsx file of one sheet; the same bytes for the same cells."""
    lines = [f"<row>{''.join(map(_cell, cells))}</row>" for cells in ([*header], *rows)]
    sheet = f'<worksheet xmlns="{_MAIN}"><sheetData>{"".join(lines)}</sheetData></worksheet>'
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**_PARTS, "xl/worksheets/sheet1.xml": sheet}.items():
            part = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            part.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(
                part, f'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n{content}'.encode()
            )
    return sink.getvalue()


def _cell(value: Cell) -> str:
    if value is None or value == "":
        return "<c/>"
    if isinstance(value, int | float):
        return f"<c><v>{value}</v></c>"
    text = escape(_FORBIDDEN.sub("", value)[:_LONGEST])
    return f'<c t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'


def read(data: bytes) -> Iterator[dict[str, Cell]]:
    """The rows of the first sheet, by the names in its header."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            shared = archive.namelist()
            texts = (
                list(_shared(_part(archive, "xl/sharedStrings.xml")))
                if "xl/sharedStrings.xml" in shared
                else []
            )
            sheet = ElementTree.fromstring(_part(archive, "xl/worksheets/sheet1.xml"))
    except ValueError:
        raise
    except Exception as error:  # what zipfile and zlib raise on damaged bytes has no common name
        raise ValueError(f"this is no readable .xlsx file: {error}") from error
    header: list[str] = []
    for line in sheet.iter(f"{{{_MAIN}}}row"):
        cells: dict[int, Cell] = {}
        for place, cell in enumerate(line):
            cells[_column(cell.get("r"), place)] = _value(cell, texts)
        if header:
            yield {name: cells.get(place) for place, name in enumerate(header)}
        else:
            header = [str(cells.get(place)) for place in range(max(cells, default=-1) + 1)]


def _part(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _LARGEST:
        raise ValueError(f"its {name} has more than {_LARGEST:,} bytes")
    data = archive.read(name)
    if b"<!DOCTYPE" in data[:1000]:  # entities that grow without end are declared there
        raise ValueError(f"its {name} declares a document type, which spreadsheets do not")
    return data


def _shared(data: bytes) -> Iterator[str]:
    for item in ElementTree.fromstring(data).iter(f"{{{_MAIN}}}si"):
        yield "".join(text.text or "" for text in item.iter(f"{{{_MAIN}}}t"))


def _column(reference: str | None, place: int) -> int:
    """`AB12` is column 27; cells without a reference follow one another."""
    if not reference:
        return place
    letters = reference.rstrip("0123456789")
    if not _LETTERS.fullmatch(letters):
        raise ValueError(f"a cell stands at {reference[:20]!r}, which is no place in a spreadsheet")
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1


def _value(cell: ElementTree.Element, texts: Sequence[str]) -> Cell:
    if cell.get("t") == "inlineStr":
        return "".join(text.text or "" for text in cell.iter(f"{{{_MAIN}}}t"))
    found = cell.findtext(f"{{{_MAIN}}}v")
    if found is None or cell.get("t") in ("str", "e", "b"):
        return found
    if cell.get("t") == "s":
        place = int(found)
        if not 0 <= place < len(texts):
            raise ValueError(f"a cell names text {place:,}, and there are {len(texts):,}")
        return texts[place]
    number = float(found)
    return int(number) if number.is_integer() else number
