"""Excel files with one header and one row per line, e.g. submissions to MMBench."""

import io
import re
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

from pipelines.data.memory_limit import bounded

Cell = str | int | float | None

MAX_PART = 1 << 30  # bytes of one unpacked part: a zip file can claim any size
MAX_MEMORY = 4 << 30  # bytes to read a file
MAX_ROWS = 1 << 20  # of an Excel sheet; a row can claim any number
MAX_TEXT = 32_767  # characters of a cell that spreadsheet programs open
_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _openpyxl() -> Any:
    try:
        import openpyxl
    except ImportError as error:
        raise ValueError("an .xlsx file needs openpyxl: pip install 'apet[xlsx]'") from error
    return openpyxl


def to_xlsx(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> bytes:
    """An .xlsx file with one sheet."""
    openpyxl = _openpyxl()
    workbook = openpyxl.Workbook(write_only=True)
    sheet = workbook.create_sheet("Sheet1")
    for row in ([*header], *rows):
        cells = [openpyxl.cell.WriteOnlyCell(sheet) for _ in row]
        for cell, value in zip(cells, row, strict=True):
            cell.value = _NOT_XML.sub("", value)[:MAX_TEXT] if isinstance(value, str) else value
            if isinstance(value, str):
                cell.data_type = "s"  # a text that begins with "=" is not a formula
        sheet.append(cells)
    file = io.BytesIO()
    workbook.save(file)
    return file.getvalue()


def read_xlsx(data: bytes) -> list[dict[str, Cell]]:
    """The rows of the first sheet under the names in its header, without empty rows."""
    openpyxl = _openpyxl()
    try:
        _check_parts(data)
        with bounded(MAX_MEMORY), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions that are not read
            workbook = openpyxl.load_workbook(
                io.BytesIO(data), read_only=True, data_only=True, keep_links=False
            )
            sheet = workbook.worksheets[0]
            sheet.reset_dimensions()  # a sheet can claim any size
            rows = [
                row
                for row in sheet.iter_rows(max_row=MAX_ROWS, values_only=True)
                if any(value is not None for value in row)
            ]
    except Exception as error:  # what openpyxl raises for damaged files has no common base
        raise ValueError(f"it is not a readable .xlsx file: {error}") from error
    header = [str(value) for value in rows[0]] if rows else []
    missing = [None] * len(header)
    return [dict(zip(header, [*map(_value, row), *missing], strict=False)) for row in rows[1:]]


def _check_parts(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for part in archive.infolist():
            if part.file_size > MAX_PART:
                raise ValueError(f"its {part.filename} has more than {MAX_PART:,} bytes")
            with archive.open(part) as stream:
                # A document type could declare entities that expand endlessly.
                if b"<!DOCTYPE" in stream.read(1000):
                    raise ValueError(f"its {part.filename} declares a document type")


def _value(value: Any) -> Cell:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if value is None or isinstance(value, int | float) else str(value)
