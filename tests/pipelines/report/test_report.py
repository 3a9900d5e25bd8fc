"""Reports: tables agree with metrics and with their queries, and hostile texts stay texts."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import report as job
from jobs import score
from pipelines.benchmarks import benchmark
from pipelines.judge.run_verdicts import SCHEMA
from pipelines.metrics import comparison, significance, summary
from pipelines.report import queries
from pipelines.report.measurements import measure
from pipelines.report.published import with_published
from pipelines.report.runs import Chapter, collect_runs
from pipelines.report.table import Number, Row, Table
from pipelines.report.table_formats import as_csv, as_latex, as_markdown
from pipelines.report.tables import ABLATIONS, make_tables
from pipelines.report.writer import write_report
from pipelines.results import answers
from tests.support import reported
from tests.support.reported import rows_of, run

BENCHMARKS = ("shapes", "pope", "mme", "mmbench", "scienceqa")
"""One benchmark for each kind of headline."""


def write_runs(output: Path | str, benchmark: str, **more: Any) -> None:
    """Writes vanilla, ApET with two budgets, and a down-sampled control."""
    for seed, (method, budget, right) in enumerate(
        [
            ("vanilla", None, 0.9),
            ("apet", "64", 0.7),
            ("apet", "128", 0.8),
            ("downsample", "64", 0.5),
        ]
    ):
        rows = rows_of(benchmark, seed, right)
        run(output, benchmark, method, rows, budget=budget, **more)


def measured(output: Path) -> Chapter:
    [chapter], _ = collect_runs([str(output)])
    return with_published(replace(chapter, studies=tuple(map(measure, chapter.studies))))


def tables_of(chapter: Chapter) -> dict[str, Table]:
    """Tables by name; those of a study also by the first word of their name."""
    tables = {table.name: table for table in make_tables(chapter)}
    return {name.partition("-")[0]: table for name, table in reversed(tables.items())} | tables


def numbers(table: Table, column: str) -> dict[tuple[str, str], float]:
    """Measured values of a column by group and method."""
    index = table.columns.index(column)
    return {
        (row.group, str(row.cells[0])): cell.value
        for row in table.rows
        if isinstance(cell := row.cells[index], Number) and not row.published
    }


def query_rows(output: Path, sql: str) -> list[dict[str, Any]]:
    """Runs a printed query with DuckDB in the folder that the report names."""
    duckdb = pytest.importorskip("duckdb")
    chapters, _ = collect_runs([str(output)])
    setup = queries.setup(chapters)
    with contextlib.chdir(setup.folder), duckdb.connect() as connection:
        connection.execute(setup.sql)
        result = connection.execute(sql)
        names = [column[0] for column in result.description]
        return [dict(zip(names, line, strict=True)) for line in result.fetchall()]


POINTS = {
    ("All visual tokens", "Vanilla"): "vanilla",
    ("Keep 64 tokens", "ApET"): "apet-64",
    ("Keep 128 tokens", "ApET"): "apet-128",
    ("Keep 64 tokens", "downsample"): "downsample-64",
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_accuracy_and_retention_equal_the_metrics_and_the_queries(
    name: str, tmp_path: Path
) -> None:
    write_runs(tmp_path, name)
    chapter = measured(tmp_path)
    bench = benchmark(name)
    tables = {run.name: answers.read(run.folder) for run in chapter.studies[0].runs}
    table = tables_of(chapter)["accuracy"]
    shown = numbers(table, table.columns[1])
    first, average = (f"{part};" for part in table.query.split(";")[:2])
    said = {line["point"]: line["accuracy"] for line in query_rows(tmp_path, first)}
    averages = {line["point"]: line["average"] for line in query_rows(tmp_path, average)}
    kept = tables_of(chapter)["retention"]
    sums = {line["point"]: line for line in query_rows(tmp_path, kept.query)}
    assert shown.keys() == POINTS.keys()
    for place, point in POINTS.items():
        vanilla = None if point == "vanilla" else tables["vanilla"]
        metrics = summary.summarise(tables[point], vanilla, bench)
        scale = bench.headline_max if bench.headline_max > 1 else 100
        assert shown[place] == pytest.approx(scale * metrics["accuracy"])
        assert said[point] == pytest.approx(shown[place])
        if point != "vanilla":
            assert numbers(kept, "Kept %")[place] == pytest.approx(
                100 * metrics["accuracy_retention"]
            )
            assert numbers(table, "Average")[place] == pytest.approx(
                100 * metrics["accuracy_retention"]
            )
            assert averages[point] == pytest.approx(numbers(table, "Average")[place])
            assert sums[point]["kept"] == pytest.approx(100 * metrics["accuracy_retention"])
            assert sums[point]["rows"] == numbers(kept, "Rows")[place] == metrics["rows_compared"]
            assert (sums[point]["lost"], sums[point]["gained"]) == (
                metrics["rows_lost"],
                metrics["rows_gained"],
            )
            assert numbers(kept, "p")[place] == metrics["p_value"]
    found = numbers(kept, "p (Holm)")
    assert list(found.values()) == pytest.approx(
        significance.holm(list(numbers(kept, "p").values()))
    )


def test_other_tables_equal_their_queries(tmp_path: Path) -> None:
    write_runs(tmp_path, "shapes")
    chapter = measured(tmp_path)
    tables = tables_of(chapter)
    table = tables["types"]
    first, second = (f"{part};" for part in table.query.split(";")[:2])
    base = {line["type"]: line for line in query_rows(tmp_path, first)}
    mine = {(line["type"], line["point"]): line for line in query_rows(tmp_path, second)}
    said = {(row.group, row.cells[0]): row.cells[1:] for row in table.rows}
    whole = "All visual tokens"
    for place, kind in enumerate(table.columns[1:]):
        assert said[whole, "Rows"][place].value == base[kind]["rows"]  # type: ignore[union-attr]
        assert said[whole, "Vanilla's accuracy %"][place].value == pytest.approx(
            base[kind]["accuracy"]
        )  # type: ignore[union-attr]
        for (group, method), point in list(POINTS.items())[1:]:
            kept = said[group, f"{method} kept %"][place]
            assert isinstance(kept, Number)
            assert kept.value == pytest.approx(mine[kind, point]["kept"])
    table = tables["changed"]
    for row in table.rows:
        for name, cell in zip(table.columns[1:], row.cells[1:], strict=True):
            kind, what = name.rsplit(" ", 1)
            assert isinstance(cell, Number)
            assert cell.value == mine[kind, POINTS[row.group, str(row.cells[0])]][what]
    table = tables["efficiency"]
    cost = {line["point"]: line for line in query_rows(tmp_path, table.query)}
    columns = {
        "Tokens": "tokens",
        "Share %": "share",
        "Total s": "total_s",
        "Prefill ms": "prefill_ms",
    }
    columns |= {"Memory GiB": "gib", "Compress ms": "compress_ms", "Rows/s": "rows_per_s"}
    for column, name in columns.items():
        for place, value in numbers(table, column).items():
            assert value == pytest.approx(cost[POINTS[place]][name])
    table = tables["slowest"]
    assert [row.cells[:2] for row in table.rows] == [
        (line["row_id"], line["point"]) for line in query_rows(tmp_path, table.query)
    ]
    table = tables["lost"]
    assert [(row.cells[0], str(row.cells[2])) for row in table.rows] == [
        (line["row_id"], f"{line['lost_by']} of 3") for line in query_rows(tmp_path, table.query)
    ]
    table = tables["errors"]
    assert {(row.cells[0], row.cells[1], row.cells[2].value) for row in table.rows} == {
        (line["point"], line["class"], line["rows"]) for line in query_rows(tmp_path, table.query)
    }
    table = tables["hard"]
    said = {
        line["point"]: (line["accuracy"], line["rows"])
        for line in query_rows(tmp_path, table.query)
    }
    found = numbers(table, "On hard rows")
    assert found == pytest.approx(
        {
            ("Keep 64 tokens", "Vanilla"): said["vanilla"][0],
            ("Keep 64 tokens", "ApET"): said["apet-64"][0],
            ("Keep 64 tokens", "downsample"): 0,
        }
    )
    runs = {run.name: answers.read(run.folder) for run in chapter.studies[0].runs}
    split = comparison.hard_split(runs["apet-64"], runs["downsample-64"], benchmark("shapes"))
    assert split is not None
    assert (100 * split.accuracy.value, split.rows) == pytest.approx(said["apet-64"])


def test_score_job_prints_the_reports_intervals_and_p_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for seed, (method, right) in enumerate([("vanilla", 0.9), ("apet", 0.7)]):
        rows = rows_of("pope", seed, right)
        for row in rows:
            [label] = row["reference"]
            row["prediction"] = label if row["correct"] else {"yes": "no", "no": "yes"}[label]
        folders.append(
            str(run(tmp_path, "pope", method, rows, budget="64" if seed else None, seed=7).uri)
        )
    _, result = measured(tmp_path).studies[0].results
    monkeypatch.setattr(sys, "argv", ["score.py", folders[1], "--against", folders[0]])
    assert score.main() == 0
    lines = capsys.readouterr().out.splitlines()
    again = json.loads(lines[-1])["metrics"]
    assert again.items() <= result.metrics.items()
    assert again["accuracy_retention_ci_low"] < again["accuracy_retention"] < 1
    [kept] = [line for line in lines if line.startswith("kept: ")]
    assert f"p = {again['p_value']:.4f}" in kept
    run(tmp_path / "other", "pope", "vanilla", rows_of("pope", 0, 0.9), manifest="another")
    [other] = (tmp_path / "other").iterdir()
    monkeypatch.setattr(sys, "argv", ["score.py", folders[1], "--against", str(other)])
    assert score.main() == 2
    assert "answers other questions" in capsys.readouterr().err


def test_average_is_the_mean_ratio_to_vanilla(tmp_path: Path) -> None:
    write_runs(tmp_path, "shapes")
    write_runs(tmp_path, "pope")
    chapter = measured(tmp_path)
    table = tables_of(chapter)["accuracy"]
    assert table.shown == ("Method", "shapes", "POPE", "Average")
    kept = tables_of(chapter)["retention"]
    each = [row.cells[2].value for row in kept.rows if row.cells[0] == "downsample"]
    assert len(each) == 2
    found = numbers(table, "Average")
    assert found["Keep 64 tokens", "downsample"] == pytest.approx(sum(each) / 2)
    *_, last = table.query.removesuffix(";").split(";")
    said = query_rows(tmp_path, last)
    assert {line["point"]: line["average"] for line in said} == pytest.approx(
        {point: found[place] for place, point in POINTS.items() if point != "vanilla"}
    )
    assert {line["benchmarks"] for line in said} == {2}


def test_notes_name_numbers_without_query(tmp_path: Path) -> None:
    write_runs(tmp_path, "shapes")
    chapter = measured(tmp_path)
    kept = tables_of(chapter)["retention"]
    assert "python jobs/score.py RUN --against VANILLA prints them" in kept.note
    seen, needed, rows = (
        numbers(kept, name) for name in ("Visible points", "Rows for one point", "Rows")
    )
    assert seen == pytest.approx({place: (needed[place] / rows[place]) ** 0.5 for place in seen})
    assert "prefill_tflops in the record.json" in tables_of(chapter)["efficiency"].note


def test_published_figures_are_marked(tmp_path: Path) -> None:
    for name in ("pope", "gqa"):
        write_runs(tmp_path, name, model="llava-1.5-7b-hf")
    chapter = measured(tmp_path)
    table = tables_of(chapter)["accuracy"]
    paper = {(row.group, row.cells[0]): row.cells[1:] for row in table.rows if row.published}
    assert table.columns[1:3] == ("GQA", "POPE")
    [gqa, pope, average, *_] = paper["Keep 64 tokens", "ApET"]
    assert (gqa, pope) == (Number(56.9), Number(84.4))
    assert isinstance(average, Number)
    assert average.value == pytest.approx(100 * (56.9 / 61.9 + 84.4 / 85.9) / 2)
    assert paper["All visual tokens", "Vanilla"][0] == Number(61.9)
    assert ("Keep 128 tokens", "VisionZip") in paper  # not run here
    assert not any("192" in group for group, _ in paper)  # a budget that was not run here
    place = [(row.cells[0], row.published) for row in table.rows if row.group == "Keep 64 tokens"]
    assert place[-3:] == [("VisionZip", 1), ("ApET", 0), ("ApET", 1)]
    assert ("downsample", 0) in place
    lines = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert {line["Source"] for line in lines if line["GQA"] == "56.9"} == {"published"}
    assert "| *ApET* (published) | *56.9* | *84.4* |" in as_markdown(table)
    assert r"\textit{ApET} {\scriptsize (published)} & \textit{56.9}" in as_latex(table)
    speed = tables_of(chapter)["efficiency-pope"]
    cost = {row.cells[0]: row.cells for row in speed.rows if row.published}
    assert cost["ApET"][5] == Number(62.8)
    assert cost["ApET"][4].text == "1.46"  # type: ignore[union-attr]
    assert not tables_of(chapter)["efficiency-gqa"].has_published
    [text] = (tmp_path / "report").glob("*.html") if write_report([str(tmp_path)]) else []
    assert '<tr class="published">' in text.read_text()


@pytest.mark.parametrize(
    ("model", "name", "identity", "note"),
    [
        ("llava-1.5-7b-hf", "pope", {}, ""),
        ("llava-1.5-7b-hf", "pope", {"image_fit": "model"}, "image fit pad there, model here"),
        (
            "llava-1.5-7b-hf",
            "pope",
            {"conversation": "model"},
            "conversation vicuna_v1 there, model here",
        ),
        ("llava-1.5-7b-hf", "vizwiz", {"split": "val"}, "split test there, val here"),
        ("llava-1.5-7b-hf", "mmbench", {"split": "dev"}, ""),
        ("llava-1.5-7b-hf", "pope", {"generation": "official"}, "generation model there, official"),
        (
            "Qwen2.5-VL-7B-Instruct",
            "pope",
            {"conversation": "model", "image_fit": "model"},
            "min pixels 200704 there, not set here, max pixels 1605632 there",
        ),
    ],
)
def test_published_figures_need_the_inputs_of_the_paper(
    tmp_path: Path, model: str, name: str, identity: dict[str, Any], note: str
) -> None:
    write_runs(tmp_path, name, model=model, **identity)
    table = tables_of(measured(tmp_path))["accuracy"]
    assert table.has_published is not bool(note)
    assert note in table.note
    assert ("no published figures, since" in table.note) is bool(note)


def test_figures_of_video_llava_are_not_those_of_its_conversion(tmp_path: Path) -> None:
    notes = {}
    for model in ("Video-LLaVA-7B-hf", "Video-LLaVA-7B"):
        more: Any = {"model": model, "conversation": "llava_v1", "image_fit": "model"}
        write_runs(tmp_path / model, "msvd", **more)
        table = tables_of(measured(tmp_path / model))["accuracy"]
        notes[model] = table.note
    assert "model (this conversion has no temporal" in notes["Video-LLaVA-7B-hf"]
    assert "no published figures" not in notes["Video-LLaVA-7B"]


def test_budgets_that_the_paper_lacks_are_named(tmp_path: Path) -> None:
    for seed, budget in enumerate(("64", "100")):
        rows = rows_of("pope", seed, 0.8)
        run(tmp_path, "pope", "apet", rows, budget=budget, model="llava-1.5-7b-hf")
    table = tables_of(measured(tmp_path))["accuracy"]
    assert table.has_published
    assert "POPE: the paper has no figures for the budget 100." in table.note


def test_notes_name_runs_with_fewer_rows(tmp_path: Path) -> None:
    good = [
        {"row_id": f"{number:02}", "media": [f"{number}.png"], "correct": number % 3 > 0}
        for number in range(30)
    ]
    more: Any = {"model": "llava-1.5-7b-hf"}
    for name in ("pope", "gqa"):
        rows = [{**row, "type": "random", "reference": ["yes"]} for row in good]
        torn = [
            {**row, "status": "error", "error": "OSError: torn", "correct": None}
            for row in rows[:4]
        ]
        run(tmp_path, name, "vanilla", rows, **more)
        short = [*torn, *rows[4:12]] if name == "gqa" else rows
        run(tmp_path, name, "apet", short, budget="64", limit=12 if name == "gqa" else 1000, **more)
    chapter = measured(tmp_path)
    table = tables_of(chapter)["accuracy"]
    assert "GQA: the runs have 12 to 30 rows each;" in table.note
    assert (
        "GQA: rows that ended in an error, up to 4 per run, are excluded from all numbers."
        in table.note
    )
    limited = "GQA: 1 of 2 runs cover only the first 12 questions; published figures cover all"
    assert limited in table.note
    # A limit above the number of questions excludes none.
    assert "POPE: " not in table.note
    lines = list(csv.DictReader(io.StringIO(as_csv(table))))
    [line] = [line for line in lines if line["Source"] == "ours" and line["Method"] == "ApET"]
    assert [line[f"{name} {what}"] for name in ("GQA", "POPE") for what in ("rows", "errors")] == [
        "12",
        "4",
        "30",
        "0",
    ]
    assert {line["GQA rows"] for line in lines if line["Source"] == "published"} == {""}
    assert "GQA rows" not in as_markdown(table)
    assert "GQA: the runs have 12 to 30 rows" in tables_of(chapter)["efficiency"].note


def test_ablations_vary_a_single_option_of_apet(tmp_path: Path) -> None:
    run(tmp_path, "pope", "vanilla", rows_of("pope", 0, 0.9), model="llava-1.5-7b-hf")
    for seed, options in enumerate([{}, {"basis": 5}, {"basis": 14}, {"sampling": "dpc"}]):
        more: Any = {"budget": "64", "options": options, "model": "llava-1.5-7b-hf"}
        run(tmp_path, "pope", "apet", rows_of("pope", seed, 0.8), **more)
    run(
        tmp_path, "gqa", "apet", rows_of("gqa", 1, 0.8), budget="64", model="llava-1.5-7b-hf"
    )  # in no ablation
    tables = tables_of(measured(tmp_path))
    sampling, basis = tables["ablation-sampling"], tables["ablation-basis"]
    ours = [row.cells[0] for row in basis.rows if not row.published]
    assert ours == ["5", "10 (ApET's own)", "14"]
    assert next(row.cells for row in basis.rows if row.published) == ("6", Number(83.5))
    assert [row.cells[0] for row in sampling.rows] == [
        "dpc",
        "fps (ApET's own)",
        "dpc",
        "fps (ApET's own)",
        "random",
    ]
    assert "ApET basis=5" in [row.cells[0] for row in tables["accuracy"].rows]


def test_ablation_defaults_equal_those_of_apet() -> None:
    from apet.methods.apet import ApET

    assert {option: default for option, (default, _) in ABLATIONS.items()} == {
        option: str(getattr(ApET, option)) for option in ABLATIONS
    }


def test_random_runs_of_both_ways_to_draw_have_a_row_each(tmp_path: Path) -> None:
    labels = []
    for name, identity in (("old", {}), ("new", {"draws": "once for each medium"})):
        rows = rows_of("pope", 1, 0.7)
        run(tmp_path / name, "pope", "random", rows, budget="64", **identity)
        [chapter], _ = collect_runs([str(tmp_path / name)])
        labels.append(chapter.studies[0].runs[0].point.label)
    assert labels == ["random draws=once for each question", "random"]


def test_published_figures_are_mentioned_only_where_there_are_some(tmp_path: Path) -> None:
    more = {"model": "llava-1.5-7b-hf", "limit": 40}
    for method, budget in (("vanilla", None), ("apet", "64")):
        run(tmp_path, "gqa", method, rows_of("gqa", 0, 0.8), budget=budget, **more)
    tables = tables_of(measured(tmp_path))
    sentence = "published figures cover all questions"
    assert sentence in tables["accuracy"].note
    assert "runs cover only the first" in tables["efficiency"].note
    assert sentence not in tables["efficiency"].note


def test_same_answers_give_the_same_bytes(tmp_path: Path) -> None:
    """Order, parts and times differ, as they do after a job was killed and resumed."""
    for name in ("shapes", "pope"):
        write_runs(tmp_path / "one", name)
        for seed, (method, budget, right) in enumerate(
            [
                ("vanilla", None, 0.9),
                ("apet", "64", 0.7),
                ("apet", "128", 0.8),
                ("downsample", "64", 0.5),
            ]
        ):
            rows = [{**row, "decode_ms": 7.0} for row in reversed(rows_of(name, seed, right))]
            run(tmp_path / "two", name, method, rows, budget=budget, parts=5)
    for output in ("one", "two"):
        write_report([str(tmp_path / output)])
    one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / each / "report" / "tables").iterdir()}
        for each in ("one", "two")
    )
    assert one.keys() == two.keys()
    timed = {name for name in one if name.startswith(("efficiency", "slowest"))}
    assert {name for name in one if one[name] != two[name]} == timed
    assert {
        "accuracy.csv",
        "retention.md",
        "types-pope.tex",
        "hard.csv",
        "lost-shapes.md",
    } < one.keys()
    before = (tmp_path / "one" / "report" / "report.html").read_bytes()
    write_report([str(tmp_path / "one")])
    assert (tmp_path / "one" / "report" / "report.html").read_bytes() == before


EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'


class MarkupCollector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]


def test_hostile_texts_are_neither_markup_nor_formulas(tmp_path: Path) -> None:
    evil = {
        "question": EVIL,
        "prediction": f"={EVIL}|`x`",
        "type": EVIL,
        "media": [EVIL],
        "reference": [EVIL],
    }
    good = [{"row_id": f"=cmd|{number}", "correct": True, **evil} for number in range(6)]
    bad = [{**row, "correct": number > 2} for number, row in enumerate(good)]
    torn = {"row_id": "+1", "status": "error", "error": f"{EVIL}: =HYPERLINK(1)\nnext", "media": []}
    run(tmp_path, "manifest", "vanilla", good, model="m")
    run(tmp_path, "manifest", "apet", [*bad, torn], budget="64", model="m", question=EVIL)
    run(tmp_path, "manifest", "apet", [*bad, torn], budget="64", model="m")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (3, 3)).save(pictures / "a.png")
    (pictures / "pictures.json").write_text(
        json.dumps([{"file": "a.png", "title": EVIL, "caption": EVIL}])
    )
    write_report([str(tmp_path)])
    seen = MarkupCollector()
    text = (tmp_path / "report" / "report.html").read_text()
    seen.feed(text)
    assert "script" not in seen.tags
    assert not {name for name in seen.attributes if name.startswith("on")}
    assert all(
        link.startswith(("#", "data:image/png;base64,", "data:image/svg+xml;base64,"))
        for link in seen.links
    )
    assert "default-src 'none'" in text
    assert "http" not in re.sub(r'http-equiv="', "", text)
    tables = tmp_path / "report" / "tables"
    for file in tables.glob("*.csv"):
        for line in csv.reader(io.StringIO(file.read_text())):
            for cell in line:
                assert not cell.startswith(("=", "+", "@", "\t")), (file.name, cell)
                assert not cell.startswith("-") or float(cell) < 0
    [file] = tables.glob("lost-*.md")
    for line in file.read_text().splitlines():
        assert "<script" not in line.replace(r"\<script", "")
        if line.startswith("| ="):
            assert len(re.findall(r"(?<!\\)\|", line)) == 8
    [file] = tables.glob("lost-*.tex")
    [line, *_] = re.findall(r"^=cmd.*", file.read_text(), re.MULTILINE)
    assert line.count(" & ") == 6


def test_cells_in_every_format() -> None:
    table = Table(
        "t",
        "A_title",
        ("Method", "Value", "Rows", "Said"),
        (
            Row(("a|b", Number(12.345, 10, 15), Number(1234567, digits=0), "-1+2"), "50%"),
            Row(("c", None, Number(-0.0001), None), "50%", published=1),
        ),
    )
    assert as_csv(table) == (
        "Group,Source,Method,Value,Value low,Value high,Rows,Said\n"
        "50%,ours,a|b,12.345,10,15,1234567,'-1+2\n"
        "50%,published,c,,,,-0.0001,\n"
    )
    assert "| a\\|b | 12.3 \\[10.0 to 15.0\\] | 1,234,567 | -1+2 |" in as_markdown(table)
    assert "| *c* (published) | - | *0.0* | - |" in as_markdown(table)
    interval = r"\shortstack[r]{12.3\\{\scriptsize [10.0 to 15.0]}}"
    assert rf"a\textbar{{}}b & {interval} & 1,234,567 & -1+2 \\" in as_latex(table)
    assert r"\caption{A\_title}" in as_latex(table)


def test_other_settings_get_their_own_tables_and_kernels_a_chart(tmp_path: Path) -> None:
    write_runs(tmp_path, "shapes", attn="sdpa")
    write_runs(tmp_path, "shapes", attn="flash_attention_2")
    write_runs(tmp_path, "shapes", model="other")
    chapters, _ = collect_runs([str(tmp_path)])
    assert [chapter.title for chapter in chapters] == [
        *("demo-llava, attn flash_attention_2", "demo-llava, attn sdpa", "other")
    ]
    write_report([str(tmp_path)])
    text = (tmp_path / "report" / "report.html").read_text()
    assert "prefill with FlashAttention 2 and sdpa</h2>" in text
    assert (tmp_path / "report" / "tables" / "accuracy-other.csv").exists()
    seen = MarkupCollector()
    seen.feed(text)
    assert len([link for link in seen.links if link.startswith("#")]) == 5


def test_report_without_vanilla_has_accuracy_only(tmp_path: Path) -> None:
    run(tmp_path, "shapes", "apet", rows_of("shapes", 0, 0.7), budget="10%")
    write_report([str(tmp_path)])
    tables = {file.stem for file in (tmp_path / "report" / "tables").iterdir()}
    assert "accuracy" in tables
    assert not tables & {"retention", "types-shapes", "lost-shapes", "hard"}
    assert "Keep 10 %" in (tmp_path / "report" / "report.html").read_text()


def test_judge_table_has_accuracy_and_score(tmp_path: Path) -> None:
    tags = {"judge/name": "gpt", "judge/prompt_hash": "abc", "judge/version": "1"}
    for method, budget, right in (("vanilla", None, 8), ("apet", "256", 6)):
        rows = rows_of("msvd", 0, 0.5, count=12)
        more: Any = {"budget": budget, "model": "Video-LLaVA-7B", "tags": tags}
        more |= {"conversation": "llava_v1", "image_fit": "model"}
        folder = run(tmp_path, "msvd", method, rows, **more)
        ids = [row["row_id"] for row in rows][:10]
        table = pa.table(
            {
                "row_id": ids,
                "correct": [place < right for place in range(10)],
                "score": pa.array([4 if place < right else 1 for place in range(10)], pa.int8()),
                "reply": ["{}"] * 10,
                "error": [None] * 10,
            },
            schema=SCHEMA.with_metadata(tags),
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as file:
            file.write_table(table)
        folder.write("verdicts-gpt-abc.arrow", sink.getvalue().to_pybytes())
    table = tables_of(measured(tmp_path))["judged"]
    assert "Judged by gpt." in table.note
    assert not table.query
    assert "python jobs/judge.py RUN" in table.note
    shown = numbers(table, "MSVD Acc"), numbers(table, "MSVD Score"), numbers(table, "Average Acc")
    ours = ("Keep 256 tokens", "ApET")
    assert [each[ours] for each in shown] == pytest.approx([60, 2.8, 75])
    assert numbers(table, "Average Score")[ours] == pytest.approx(100 * 2.8 / 3.4)
    [paper] = [row for row in table.rows if row.published and (row.group, row.cells[0]) == ours]
    assert paper.cells[1:3] == (Number(70.4), Number(3.94, digits=2))


def test_charts_are_svg_files_with_a_legend(tmp_path: Path) -> None:
    write_runs(tmp_path, "shapes", question=EVIL)
    folder, names = write_report([str(tmp_path)])
    [name] = [name for name in names if name.startswith("figures/")]
    assert name == "figures/accuracy-shapes.svg"
    svg = folder.read(name)
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"ApET", "downsample", "Vanilla", "Accuracy (%)", "64", "128"} <= texts
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert width >= 640
    assert height >= 370
    assert b"<script" not in svg
    page = folder.read("report.html").decode()
    assert f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" in page


def test_chart_labels_are_escaped_texts(tmp_path: Path) -> None:
    """Labels are neither markup nor TeX formulas."""
    label = "<script>$x^2$&"
    write_runs(tmp_path, "shapes")
    run(tmp_path, "shapes", label, rows_of("shapes", 5, 0.6), budget="64")
    folder, _ = write_report([str(tmp_path)])
    root = ElementTree.fromstring(folder.read("figures/accuracy-shapes.svg"))
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert label in texts
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))


def test_unusable_pictures_are_listed(tmp_path: Path) -> None:
    write_runs(tmp_path, "shapes")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.jpg").write_text("<html>")
    listed = [
        {"file": name, "title": "t", "caption": "c"}
        for name in ("a.jpg", "../secret.png", "gone.png")
    ]
    (pictures / "pictures.json").write_text(json.dumps(listed))
    write_report([str(tmp_path)])
    text = (tmp_path / "report" / "report.html").read_text()
    assert "a.jpg is left out: neither PNG nor JPEG" in text
    assert "../secret.png is left out" in text
    assert "gone.png is left out" in text
    assert "data:image/jpeg" not in text
    assert "data:image/png" not in text
    (pictures / "pictures.json").write_text("[{}]")
    write_report([str(tmp_path)])
    text = (tmp_path / "report" / "report.html").read_text()
    assert "Cannot read " in text
    assert "pictures.json: " in text


def test_unfinished_runs_are_listed(tmp_path: Path) -> None:
    write_runs(tmp_path, "shapes")
    run(tmp_path, "shapes", "fastv", [], budget="64")
    run(tmp_path, "shapes", "dart", rows_of("shapes", 9, 0.6), budget="64", state="killed")
    _, notes = collect_runs([str(tmp_path)])
    assert [note.partition(" ")[0] for note in notes] == [
        *("shapes-demo-llava-dart-64-0a1b2c3d", "shapes-demo-llava-fastv-64-0a1b2c3d")
    ]
    assert "is killed, not finished" in notes[0]
    assert "has no answers yet" in notes[1]


def test_runs_skipped_by_a_sweep_are_listed(tmp_path: Path) -> None:
    write_runs(tmp_path, "shapes")
    done = "shapes-demo-llava-apet-64-0a1b2c3d"
    gone = {"shapes-demo-llava-pdrop-2-12345678": "pdrop cannot keep 2 tokens of 64"}
    others = {
        "pope-demo-llava-pdrop-2-12345678": "of a benchmark that is not here",
        done: "done since",
    }
    (tmp_path / "left_out.json").write_text(
        json.dumps({"git_commit": "x", "runs": {**others, **gone}})
    )
    [(name, reason)] = gone.items()
    said = f"{name} was skipped by its sweep: {reason}"
    for uris in ([str(tmp_path)], [str(tmp_path / done)]):
        _, notes = collect_runs(uris)
        assert notes == [said]
    write_report([str(tmp_path)])
    assert said in (tmp_path / "report" / "report.html").read_text()
    (tmp_path / "left_out.json").write_text("[]")
    _, [note] = collect_runs([str(tmp_path)])
    assert note.startswith("Cannot read ")
    assert "left_out.json" in note


def test_view_reads_parts_of_several_versions(tmp_path: Path) -> None:
    """The first part lacks columns that the second one has."""
    run(tmp_path, "shapes", "vanilla", rows_of("shapes", 0, 0.9))
    [folder] = tmp_path.iterdir()
    first, *_ = sorted(folder.glob("*.parquet"))
    pq.write_table(pq.read_table(first).drop_columns(["options", "batch_rows"]), first)
    chapter = measured(tmp_path)
    table = tables_of(chapter)["accuracy"]
    [line] = query_rows(tmp_path, table.query)
    assert line["accuracy"] == pytest.approx(
        numbers(table, "shapes")["All visual tokens", "Vanilla"]
    )
    assert len(query_rows(tmp_path, queries.query("slowest", chapter.studies[0]))) == 10


def test_usage_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def error_of(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
        assert job.main() == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    assert "no runs in" in error_of(str(tmp_path / "nowhere"))
    folder = run(tmp_path / "a", "shapes", "vanilla", rows_of("shapes", 0, 0.5))
    run(tmp_path / "b", "shapes", "vanilla", rows_of("shapes", 0, 0.5))
    assert "are copies of the same run" in error_of(str(tmp_path))
    folder.write("record.json", b"{")
    assert "record.json in" in error_of(str(tmp_path / "a"))
    run(tmp_path / "c", "shapes", "vanilla", [])
    assert "no answers in any run of" in error_of(str(tmp_path / "c"))


def test_job_writes_to_the_output_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_runs(tmp_path / "runs", "shapes")
    folders = [str(folder) for folder in (tmp_path / "runs").iterdir()]
    monkeypatch.setattr(sys, "argv", ["report.py", *folders, "--output", str(tmp_path / "out")])
    assert job.main() == 0
    assert str(tmp_path / "out" / "report.html") in capsys.readouterr().out
    assert (tmp_path / "out" / "queries.sql").read_text().count("-- ") > 8
    assert not (tmp_path / "runs" / "report").exists()


@pytest.mark.usefixtures("subprocesses")
def test_report_imports_no_model_library(tmp_path: Path, subprocesses: None) -> None:
    write_runs(tmp_path, "shapes")
    code = (
        "import sys; from pipelines.report.writer import write_report;"
        "print('matplotlib' in sys.modules); write_report([sys.argv[1]]);"
        "print([name for name in ('torch', 'ray', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n[]\n"


def test_made_up_answers_cover_every_headline() -> None:
    """Each headline is tested and has a query; made-up answers are repeatable."""
    from pipelines import benchmarks

    every = {benchmark(name).headline for name in benchmarks.BENCHMARKS}
    assert every == {benchmark(name).headline for name in BENCHMARKS}
    assert reported.rows_of("pope", 1, 0.5) == reported.rows_of("pope", 1, 0.5)


def test_report_on_an_object_store(bucket: str, tmp_path: Path) -> None:
    """No file contains the address or keys of the store."""
    write_runs(tmp_path / "here", "shapes")
    write_runs(f"s3://apet/results?{bucket}", "shapes")
    write_report([str(tmp_path / "here")])
    there, _ = write_report([f"s3://apet/results?{bucket}"])
    names = there.child("tables").names()
    assert "accuracy.csv" in names
    for name in names:
        assert (
            there.child("tables").read(name)
            == (tmp_path / "here" / "report" / "tables" / name).read_bytes()
        )
    for name in ("report.html", "queries.sql"):
        text = there.read(name).decode()
        assert "endpoint_override" not in text
        assert "s3://apet/results/" in text
