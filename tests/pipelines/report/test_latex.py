"""Tables in LaTeX: they compile, and no text is taken for a command."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipelines.report.table import Number, Row, Table
from pipelines.report.table_formats import as_latex
from pipelines.report.writer import write_report
from tests.support.reported import rows_of, run

SPECIAL = r"""a_b & 50% of $5 #1 {x} \input{/etc/passwd} ^ ~ <tag> | "said" [0] * `it's` -- é"""
PATH = "s3://bucket/" + "a_very_long_folder/" * 5 + "100%.jpg"
PAGE = r"""\documentclass{article}
\usepackage{array,booktabs,graphicx}
\begin{document}
%s
\end{document}
"""
COMMANDS = {
    r"\\allowbreak\{\}": "",
    r"\\symbol\{34\}": '"',
    r"\\textasciitilde\{\}": "~",
    r"\\textasciicircum\{\}": "^",
    r"\\textless\{\}": "<",
    r"\\textgreater\{\}": ">",
    r"\\textbar\{\}": "|",
    r"\\textbackslash\{\}": r"\\",
    r"\{([*[])\}": r"\1",
    r"\\([&%$#_{}])": r"\1",
}


def read(latex: str) -> str:
    """The text that a reader sees. Fails at a character that is not escaped."""
    out = ""
    while latex:
        for command, text in COMMANDS.items():
            if found := re.match(command, latex):
                out, latex = out + found.expand(text), latex[found.end() :]
                break
        else:
            assert latex[0] not in '&%$#_{}~^\\<>|"[*', latex
            out, latex = out + latex[0], latex[1:]
    return out


@pytest.mark.parametrize("text", [SPECIAL[:20], SPECIAL, PATH, "[0]", "*", "\x00\x07\x7f\u200b"])
def test_texts_are_escaped(text: str) -> None:
    latex = as_latex(Table("t", "T", ("Row", "Said"), (Row((text, "x")),)))
    [line] = [line for line in latex.splitlines() if line.endswith(r" & x \\")]
    assert read(line.removesuffix(r" & x \\")) == ("????" if "\x00" in text else text)


def test_intervals_stand_below_their_numbers() -> None:
    latex = as_latex(Table("t", "T", ("Method", "a"), (Row(("x", Number(50.0, 40.0, 60.0))),)))
    assert r"x & \shortstack[r]{50.0\\{\scriptsize [40.0 to 60.0]}} \\" in latex


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """LaTeX files of a report that has every table, with hostile texts in them."""
    output = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("gqa", "mme", "pope", "shapes")):
        model: Any = {"model": "demo_llava" if name == "shapes" else "llava-1.5-7b-hf"}
        asked = {"question": SPECIAL, "prediction": PATH}
        for place, (method, budget) in enumerate(
            [("vanilla", None), ("apet", "64"), ("fastv", "64"), ("apet", "192")]
        ):
            rows = rows_of(name, 10 * seed + place, 0.9 if place == 0 else 0.6)
            errors = [
                {**row, "error": f"OSError: {PATH}"} if row.get("error") else row for row in rows
            ]
            run(output, name, method, [{**row, **asked} for row in errors], budget=budget, **model)
    write_report([str(output)])
    return sorted((output / "report" / "tables").glob("*.tex"))


@pytest.mark.usefixtures("latex")
def test_every_table_compiles_and_fits(tables: list[Path], tmp_path: Path, latex: str) -> None:
    assert {"accuracy", "retention", "lost", "errors", "slowest", "types", "efficiency"} <= {
        path.stem.partition("-")[0] for path in tables
    }
    (tmp_path / "all.tex").write_text(
        PAGE % "\n\\clearpage\n".join(path.read_text() for path in tables)
    )
    command = [latex, "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "all.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert f"({len(tables)} pages" in done.stdout
    assert not re.findall(r"(?:Overfull|Warning: Float too large|Missing character).*", done.stdout)
