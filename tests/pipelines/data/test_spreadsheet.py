"""Excel files: the cells of other programs, hostile files."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Mapping

import pytest

from pipelines.data import spreadsheet
from pipelines.data.spreadsheet import read_xlsx, to_xlsx

SHEET = "xl/worksheets/sheet1.xml"


def package(parts: Mapping[str, str]) -> bytes:
    """A file of this module in which some parts have other contents."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(to_xlsx(["a"], [[1]]))) as source:
        contents = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (contents | parts).items():
            archive.writestr(name, content)
    return file.getvalue()


def worksheet(rows: str, start: str = "") -> bytes:
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    return package(
        {SHEET: f'{start}<worksheet xmlns="{main}"><sheetData>{rows}</sheetData></worksheet>'}
    )


def text(reference: str, value: str) -> str:
    return f'<c r="{reference}" t="inlineStr"><is><t>{value}</t></is></c>'


def test_cells_are_read_as_they_were_written() -> None:
    rows = [[1, None, "=1+1"], [0.5, "x" * 40_000, "#N/A"], [-3, " a\x00 <b> & c ", "\ud800d"]]
    assert read_xlsx(to_xlsx(["a", "b", "c"], rows)) == [
        {"a": 1, "b": None, "c": "=1+1"},
        {"a": 0.5, "b": "x" * 32_767, "c": "#N/A"},
        {"a": -3, "b": " a <b> & c ", "c": "d"},
    ]


def test_cells_of_other_programs_are_read() -> None:
    """Gaps between cells and rows, integers as floats, formulas with their last value."""
    rows = f'<row r="1">{text("A1", "index")}{text("C1", "text")}</row>'
    rows += f'<row r="4"><c r="A4"><v>3.0</v></c>{text("C4", "ab")}</row><row r="5"/>'
    rows += '<row r="6"><c r="A6"><f>1+1</f><v>2</v></c></row>'
    assert read_xlsx(worksheet(rows)) == [
        {"index": 3, "None": None, "text": "ab"},
        {"index": 2, "None": None, "text": None},
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"nothing",
        worksheet("", start='<!DOCTYPE a [<!ENTITY b "c">]>'),
        worksheet('<row r="1"><c r="A1"><v>seven</v></c></row>'),
        package({"xl/workbook.xml": "<workbook/>"}),
    ],
)
def test_file_that_is_not_a_spreadsheet_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a readable \.xlsx file"):
        read_xlsx(data)


def test_part_that_claims_too_many_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreadsheet, "MAX_PART", 20_000)
    with pytest.raises(ValueError, match=r"sheet1.xml has more than 20,000 bytes"):
        read_xlsx(worksheet(f'<row r="1">{text("A1", "x" * 20_000)}</row>'))


@pytest.mark.parametrize("number", [1_048_576, 10**18])
def test_row_that_claims_any_number_costs_nothing(number: int) -> None:
    rows = f'<row r="1">{text("A1", "a")}</row><row r="{number}">{text(f"A{number}", "b")}</row>'
    assert len(read_xlsx(worksheet(rows))) <= 1


def test_missing_openpyxl_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ValueError, match=r"needs openpyxl: pip install 'apet\[xlsx\]'"):
        read_xlsx(b"")
