"""`jobs/score.py`: runs again from their Parquet, answers from elsewhere in every format, and files for the servers."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import score
from pipelines.benchmarks import benchmark
from pipelines.benchmarks.rescoring import elsewhere
from pipelines.data import spreadsheet
from pipelines.results.answer_schema import ANSWER_SCHEMA
from tests.support import ROOT
from tests.support.official import LAYOUTS, files, folders, hub
from tests.support.official.rows import CLIPS, GQA, MME, SHORT, TEXT, VIZ, VQA


def scored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *given: str
) -> dict[str, Any]:
    """The JSON of the last line."""
    monkeypatch.setattr(sys, "argv", ["score.py", *given])
    status = score.main()
    said = capsys.readouterr()
    assert status == 0, said.err
    found: dict[str, Any] = json.loads(said.out.splitlines()[-1])
    return {**found, "out": said.out}


def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *given: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["score.py", *given])
    assert score.main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def llava(name: str, folder: Path, said: Mapping[str, str] | None = None) -> Path:
    """Answers as LLaVA's scripts write them: the reference, or what `said` has, in a shuffled order."""
    bench, split, write = LAYOUTS[name]
    if not folder.exists():
        write(folder)
    manifest = benchmark(bench).rows(str(folder), split)
    lines = []
    for row in manifest.read(manifest.index()):
        ids: Any = row.meta.get("question_id", row.row_id)
        if bench == "mme":
            ids = "/".join(row.row_id.split("/")[:2]) + ".jpg"
        if name == "textvqa":
            ids = row.row_id.partition("/")[0]
        text = (said or {}).get(row.row_id, row.answers[0] if row.answers else "a thing")
        more = {"prompt": benchmark(bench).prompt(row)} if bench in ("mme", "textvqa") else {}
        if name == "pope of the hub":
            _, ids, question = row.row_id.split("/")
            more = {"category": row.type, "question": question}
        lines.append(
            {
                "question_id": ids,
                **more,
                "text": text,
                "answer_id": "x",
                "model_id": "m",
                "metadata": {},
            }
        )
    random.Random(0).shuffle(lines)
    files.jsonl(folder / "answers.jsonl", lines)
    return folder / "answers.jsonl"


@pytest.mark.parametrize("name", [name for name in LAYOUTS if "test" not in name])
def test_right_answers_get_all_points(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, split, _ = LAYOUTS[name]
    folder = tmp_path / "data"
    file = llava(name, folder)
    given = ["--answers", str(file), "--benchmark", bench, "--data", str(folder), "--split", split]
    found = scored(capsys, monkeypatch, *given)
    assert (found["missing"], found["duplicate"], found["unknown"]) == (0, 0, 0)
    assert found["rows"] == found["matched"] > 1
    if bench == "mme":
        assert found["value"] == 600  # of the three subtasks that there are
        lines = [line.split() for line in found["out"].splitlines() if line.startswith("  mme.")]
        assert [
            "mme.artwork.points",
            "200.00",
        ] in lines  # points are no percentages, and rows are whole
        assert ["mme.artwork.acc_plus", "100.00", "%"] in lines
        assert ["mme.artwork.rows", f"{found['metrics']['mme.artwork.rows']}"] in lines
    elif bench in ("textvqa", "vizwiz", "vqav2"):
        assert found["value"] > 0.7  # people disagree
    else:
        assert found["value"] == 1
    assert "the headline" in found["out"]


def test_what_does_not_match_is_counted_and_never_shifted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    file = llava("pope", folder)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines.sort(key=lambda line: int(line["question_id"]))
    gone, *rest = lines
    rest += [{**rest[0], "text": "Yes"}, {**rest[0], "question_id": 777}]
    files.jsonl(file, rest)
    given = ["--answers", str(file), "--benchmark", "pope", "--data", str(folder)]
    found = scored(capsys, monkeypatch, *given)
    assert (found["rows"], found["matched"], found["missing"]) == (6, 5, 1)
    assert (found["duplicate"], found["unknown"]) == (1, 1)
    assert found["metrics"]["pope.accuracy"] == 1  # a shift by one would make it 0
    assert (
        "1 rows have no answer and are in no number: adversarial/COCO_val2014_000000310196"
        in found["out"]
    )
    assert "1 answers are to rows that had one; the first counts: 2\n" in found["out"]
    assert "1 answers are to no row of this data: 777\n" in found["out"]
    assert "  pope.precision" in found["out"]
    assert gone["question_id"] == "1"


@pytest.mark.parametrize(("name", "value"), [("mmbench", 1), ("mme", 500)])
def test_what_counts_together_is_missing_together(
    name: str,
    value: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of two rotations, and one of an image's two questions: neither is right by what is left of it."""
    file = llava(name, tmp_path / "data")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    gone = next(
        line
        for line in lines
        if line["question_id"] == "1000241" or "c++" in line.get("prompt", "")
    )
    lines.remove(gone)
    files.jsonl(file, lines)
    found = scored(
        capsys,
        monkeypatch,
        "--answers",
        str(file),
        "--benchmark",
        name,
        "--data",
        str(tmp_path / "data"),
    )
    assert (found["missing"], found["metrics"]["rows_error"]) == (1, 1)
    assert found["value"] == value
    if name == "mmbench":
        assert "mmbench.reasoning.circular" not in found["metrics"]
        assert found["metrics"]["mmbench.reasoning.plain"] == 1


def run_of(name: str, folder: Path, output: Path, predictions: Sequence[str], **more: Any) -> Path:
    """A run's folder as the job writes it."""
    bench, split, write = LAYOUTS[name]
    if not folder.exists():
        write(folder)
    manifest = benchmark(bench).rows(str(folder), split)
    rows = []
    for row, said in zip(manifest.read(manifest.index()), predictions, strict=True):
        worth, correct = benchmark(bench).score(row, said)
        fields = {
            "row_id": row.row_id,
            "benchmark": bench,
            "split": split,
            "type": row.type,
            "question": row.question,
        }
        fields |= {
            "media": [medium.name for medium in row.media],
            "reference": row.answers,
            "options": row.options,
        }
        fields |= {
            "meta": list(row.meta.items()),
            "prediction": said,
            "score": worth,
            "correct": correct,
        }
        rows.append({**fields, "status": "ok", **more})
    output.mkdir(parents=True)
    for place in range(0, len(rows), 2):
        table = pa.Table.from_pylist(rows[place : place + 2], schema=ANSWER_SCHEMA)
        pq.write_table(table, output / f"answers-{place}.parquet")
    return output


@pytest.mark.parametrize(
    "name", ["mmbench", "mme", "gqa of the hub", "scienceqa", "vqav2 val", "msvd"]
)
def test_a_run_is_scored_again_from_its_parquet_alone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, split, write = LAYOUTS[name]
    write(tmp_path / "data")
    manifest = benchmark(bench).rows(str(tmp_path / "data"), split)
    said = [
        row.answers[0] if place else "wrong"
        for place, row in enumerate(manifest.read(manifest.index()))
    ]
    run = run_of(name, tmp_path / "data", tmp_path / "run", said)
    file = llava(name, tmp_path / "data", {manifest.read(manifest.index())[0].row_id: "wrong"})
    given = [
        "--answers",
        str(file),
        "--benchmark",
        bench,
        "--data",
        str(tmp_path / "data"),
        "--split",
        split,
    ]
    expected = scored(capsys, monkeypatch, *given)
    (tmp_path / "data").rename(tmp_path / "gone")
    found = scored(capsys, monkeypatch, str(run))
    assert found["changed"] == 0
    assert found["value"] == expected["value"]
    assert found["metrics"] == expected["metrics"]
    # and with other scores in the files the answers still say the same
    for path in run.glob("*.parquet"):
        table = pq.read_table(path)
        place = table.column_names.index("score")
        pq.write_table(table.set_column(place, "score", pa.nulls(len(table), pa.float64())), path)
    again = scored(capsys, monkeypatch, str(run))
    assert again["metrics"] == found["metrics"]
    assert again["changed"] == again["rows"]
    assert "have another score than when they were answered" in again["out"]


def test_a_run_of_an_older_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of("gqa", tmp_path / "data", tmp_path / "run", ["no", "man", "red"])
    for path in run.glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["options", "meta"]), path)
    assert scored(capsys, monkeypatch, str(run))["value"] == pytest.approx(2 / 3)


def test_submissions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(
        "vqav2 test", tmp_path / "vqa", tmp_path / "1", ["Two dogs.", "Yes, it is", "The end"]
    )
    made = tmp_path / "made.json"
    found = scored(
        capsys, monkeypatch, str(run), "--submission", str(made), "--data", str(tmp_path / "vqa")
    )
    assert "there is nothing to compare these answers with" in found["out"]
    assert json.loads(made.read_text()) == [
        {"question_id": 7, "answer": ""},
        {"question_id": 262148000, "answer": "2 dogs"},
        {"question_id": 262148001, "answer": "yes it is"},
        {"question_id": 393225000, "answer": "end"},
    ]
    assert "needs --data" in refused(capsys, monkeypatch, str(run), "--submission", str(made))
    run = run_of("vizwiz test", tmp_path / "viz", tmp_path / "2", ["Unanswerable", "Basil-Leaves"])
    scored(capsys, monkeypatch, str(run), "--submission", str(made))
    assert json.loads(made.read_text()) == [
        {"image": "VizWiz_test_00000000.jpg", "answer": "unanswerable"},
        {"image": "VizWiz_test_00000001.jpg", "answer": "basil leaves"},
    ]
    run = run_of(
        "mmbench", tmp_path / "bench", tmp_path / "3", ["B", "A. <thin> & thick", "\x00\ud7ff 狗"]
    )
    sheet = tmp_path / "made.xlsx"
    scored(capsys, monkeypatch, str(run), "--submission", str(sheet))
    rows = list(spreadsheet.read(sheet.read_bytes()))
    assert list(rows[0]) == [
        "index",
        "question",
        "A",
        "B",
        "C",
        "D",
        "prediction",
        "answer",
        "split",
    ]
    assert [row["index"] for row in rows] == [241, 305, 1000241]
    assert rows[1]["question"] == 'What is "this"?'
    assert [row["prediction"] for row in rows] == ["B", "\ud7ff 狗", "A. <thin> & thick"]
    given = ["--answers", str(sheet), "--benchmark", "mmbench", "--data", str(tmp_path / "bench")]
    assert scored(capsys, monkeypatch, *given)["matched"] == 3
    files.jsonl(tmp_path / "some.jsonl", [{"question_id": 241, "text": "B"}])
    given = ["--answers", str(tmp_path / "some.jsonl"), *given[2:], "--submission", str(sheet)]
    assert "made.xlsx: 1 answers for the server" in scored(capsys, monkeypatch, *given)["out"]
    run = run_of("pope", tmp_path / "pope", tmp_path / "4", ["Yes"] * 6)
    assert "pope has no server" in refused(capsys, monkeypatch, str(run), "--submission", str(made))


FORMATS: dict[str, tuple[str, Any]] = {
    "gqa": ("gqa", [{"questionId": id, "prediction": answer} for id, _, _, answer, *_ in GQA]),
    "vqav2 val": ("vqav2", [{"question_id": row[0], "answer": row[3][-1]} for row in VQA]),
    "vizwiz val": ("vizwiz", [{"image": row[0].format("val"), "answer": row[2][0]} for row in VIZ]),
    "msvd": (
        "msvd",
        [{"id": id, "question": q, "answer": "x", "pred": answer} for _, id, q, answer in CLIPS],
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("lines", [True, False], ids=["lines", "list"])
def test_each_benchmarks_own_format(
    name: str,
    lines: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, answers = FORMATS[name]
    LAYOUTS[name][2](tmp_path)
    file = tmp_path / "mine.json"
    file.write_text("\n".join(map(json.dumps, answers)) if lines else json.dumps(answers, indent=1))
    given = [
        "--answers",
        str(file),
        "--benchmark",
        bench,
        "--data",
        str(tmp_path),
        "--split",
        LAYOUTS[name][1],
    ]
    assert scored(capsys, monkeypatch, *given)["matched"] == len(answers)


def test_an_id_of_several_rows_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's ids of POPE begin anew in each split."""
    hub.pope(tmp_path)
    files.jsonl(tmp_path / "a.jsonl", [{"question_id": "1", "text": "yes"}])
    given = ["--answers", str(tmp_path / "a.jsonl"), "--benchmark", "pope", "--data", str(tmp_path)]
    assert "none of the answers is to a row" in refused(capsys, monkeypatch, *given)
    folders.vizwiz(tmp_path / "v")
    lines = [
        {**json.loads(line), "question_id": 0}
        for line in (tmp_path / "v/llava_test.jsonl").read_text().splitlines()
    ]
    files.jsonl(tmp_path / "v" / "llava_test.jsonl", lines)
    files.jsonl(tmp_path / "a.jsonl", [{"question_id": 0, "text": "yes"}])
    given = [
        "--answers",
        str(tmp_path / "a.jsonl"),
        "--benchmark",
        "vizwiz",
        "--data",
        str(tmp_path / "v"),
    ]
    assert "the answer to '0' could be to several rows" in refused(capsys, monkeypatch, *given)


def test_mmes_own_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.mme(tmp_path)
    (tmp_path / "mine").mkdir()
    for subtask, image, question, answer in MME:
        with (tmp_path / "mine" / f"{subtask}.txt").open("a", encoding="utf-8") as file:
            file.write(
                f"{image}\t{question} Please answer yes or no.\t{answer}\t{answer}, because\n"
            )
    given = ["--answers", str(tmp_path / "mine"), "--benchmark", "mme", "--data", str(tmp_path)]
    assert scored(capsys, monkeypatch, *given)["value"] == 600


def test_old_prompts_of_textvqa(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.textvqa(tmp_path)
    first, second = TEXT
    lines = [
        {
            "question_id": first[1],
            "prompt": f"OCR tokens: a, b. Question: {first[2]} Short answer:",
            "text": "Dakota",
        },
        {
            "question_id": second[1],
            "prompt": f"Reference OCR token: x\n{second[2]}{SHORT}",
            "text": "nothing",
        },
    ]
    files.jsonl(tmp_path / "a.jsonl", lines)
    given = [
        "--answers",
        str(tmp_path / "a.jsonl"),
        "--benchmark",
        "textvqa",
        "--data",
        str(tmp_path),
    ]
    assert scored(capsys, monkeypatch, *given)["value"] == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give the folders of runs, or --answers FILE"),
        (["--answers", "x.jsonl"], "--answers needs --benchmark NAME and --data FOLDER"),
        (["a", "b", "--submission", "x"], "is one file; give one run"),
        (["nowhere"], "holds no answers"),
        (["a", "--benchmark", "pope"], "--benchmark is of --answers: a run says itself"),
        (["a", "--split", "val"], "--split is of --answers: a run says itself"),
        (["a", "--data", "b"], "--data is not read for a run without --submission"),
        (
            ["--answers", "x", "--benchmark", "gqa", "--data", "y", "--against", "z"],
            "--against is for RUN",
        ),
        (
            ["--answers", "x", "--benchmark", "gqa", "--data", "nowhere"],
            "there is no file or folder",
        ),
    ],
)
def test_wrong_commands(
    given: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, monkeypatch, *given)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.jsonl",
            b'{"question_id": 1}',
            "an answer needs text or prediction or pred or answer; it has question_id",
        ),
        ("a.jsonl", b'{"text": "x"}', "an answer needs question_id or"),
        ("a.jsonl", b"[1]", "answer 1 is no object"),
        ("a.jsonl", b"nothing", "is no JSON"),
        ("a.xlsx", b"nothing", "is no readable .xlsx file"),
        ("a.csv", b"", "answers are a .jsonl or .json file"),
        ("a.jsonl", b'{"question_id": 5, "text": "x"}', "none of the answers is to a row"),
    ],
)
def test_answers_that_cannot_be_read(
    name: str,
    content: bytes,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders.pope(tmp_path)
    (tmp_path / name).write_bytes(content)
    given = ["--answers", str(tmp_path / name), "--benchmark", "pope", "--data", str(tmp_path)]
    assert said in refused(capsys, monkeypatch, *given)


def test_spreadsheets_of_others(tmp_path: Path) -> None:
    """With shared texts, gaps and styles, as other programs write them."""
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    file = tmp_path / "a.xlsx"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(
            "xl/sharedStrings.xml",
            f"<sst {main}><si><t>index</t></si><si><r><t>a</t></r><r><t>b</t></r></si></sst>",
        )
        cells = '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="AB1" t="inlineStr"><is><t>text</t></is></c></row>'
        cells += '<row r="2"><c r="A2"><v>3.0</v></c><c r="AB2" s="1" t="s"><v>1</v></c></row>'
        archive.writestr(
            "xl/worksheets/sheet1.xml",
            f"<worksheet {main}><sheetData>{cells}</sheetData></worksheet>",
        )
    [row] = elsewhere(file)
    assert (row["index"], row["text"]) == (3, "ab")
    data = spreadsheet.written(["a", "b"], [[1, None], [0.5, "x" * 40_000]])
    assert data == spreadsheet.written(["a", "b"], [[1, None], [0.5, "x" * 40_000]])
    assert list(spreadsheet.read(data)) == [{"a": 1, "b": None}, {"a": 0.5, "b": "x" * 32_767}]


def test_it_runs_without_torch_and_ray(tmp_path: Path) -> None:
    run = run_of("gqa", tmp_path / "data", tmp_path / "run", ["no", "man", "red"])
    code = (
        "import sys, runpy; sys.argv = ['score.py', sys.argv[1]]\n"
        "try: runpy.run_path('jobs/score.py', run_name='__main__')\n"
        "except SystemExit as end: print([each for each in ('torch', 'ray', 'mlflow') if each in sys.modules], end)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_who_reads_no_further_is_no_error(tmp_path: Path) -> None:
    """As in `python jobs/score.py RUN | head`."""
    run = run_of("gqa", tmp_path / "data", tmp_path / "run", ["no", "man", "red"])
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "jobs/score.py", str(run)],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
