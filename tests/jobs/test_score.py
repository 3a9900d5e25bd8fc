"""jobs/score.py: stored runs, external answers in every format, and files for the servers."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import score
from pipelines.benchmarks import benchmark
from pipelines.benchmarks.rescoring import read_answers
from pipelines.data import spreadsheet
from pipelines.results.answer_schema import ANSWER_SCHEMA
from tests.support import ROOT
from tests.support.official import LAYOUTS, files, folders, hub
from tests.support.official.rows import CLIPS, GQA, MME, SHORT, TEXT, VIZ, VQA


def scored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *given: str
) -> dict[str, Any]:
    """The JSON of the last line, and the complete output as `out`."""
    monkeypatch.setattr(sys, "argv", ["score.py", *given])
    status = score.main()
    printed = capsys.readouterr()
    assert status == 0, printed.err
    result: dict[str, Any] = json.loads(printed.out.splitlines()[-1])
    return {**result, "out": printed.out}


def error_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *given: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["score.py", *given])
    assert score.main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def llava_file(name: str, folder: Path, answers: Mapping[str, str] | None = None) -> Path:
    """Answers in the format of LLaVA's scripts, shuffled: the references, or `answers` by row."""
    bench, split, write = LAYOUTS[name]
    if not folder.exists():
        write(folder)
    manifest = benchmark(bench).load(str(folder), split)
    lines = []
    for row in manifest.read(manifest.index()):
        ids: Any = row.meta.get("question_id", row.row_id)
        if bench == "mme":
            ids = "/".join(row.row_id.split("/")[:2]) + ".jpg"
        if name == "textvqa":
            ids = row.row_id.partition("/")[0]
        text = (answers or {}).get(row.row_id, row.answers[0] if row.answers else "a thing")
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
def test_correct_answers_get_all_points(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, split, _ = LAYOUTS[name]
    folder = tmp_path / "data"
    file = llava_file(name, folder)
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
        ] in lines
        assert ["mme.artwork.acc_plus", "100.00", "%"] in lines
        assert ["mme.artwork.rows", f"{found['metrics']['mme.artwork.rows']}"] in lines
    elif bench in ("textvqa", "vizwiz", "vqav2"):
        assert found["value"] > 0.7  # the references disagree
    else:
        assert found["value"] == 1
    assert "the headline" in found["out"]


def test_unmatched_answers_are_counted_and_never_shifted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    file = llava_file("pope", folder)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines.sort(key=lambda line: int(line["question_id"]))
    gone, *rest = lines
    rest += [{**rest[0], "text": "Yes"}, {**rest[0], "question_id": 777}]
    files.jsonl(file, rest)
    given = ["--answers", str(file), "--benchmark", "pope", "--data", str(folder)]
    found = scored(capsys, monkeypatch, *given)
    assert (found["rows"], found["matched"], found["missing"]) == (6, 5, 1)
    assert (found["duplicate"], found["unknown"]) == (1, 1)
    assert found["metrics"]["pope.accuracy"] == 1  # a shift by one row would make it 0
    assert (
        "1 rows have no answer and are in no number: adversarial/COCO_val2014_000000310196"
        in found["out"]
    )
    assert "1 answers are to rows that had one; the first counts: 2\n" in found["out"]
    assert "1 answers are to no row of this data: 777\n" in found["out"]
    assert "  pope.precision" in found["out"]
    assert gone["question_id"] == "1"


@pytest.mark.parametrize(("name", "value"), [("mmbench", 1), ("mme", 500)])
def test_missing_answer_makes_its_whole_group_an_error(
    name: str,
    value: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of two rotations, or of an image's two questions: the other one alone is not correct."""
    file = llava_file(name, tmp_path / "data")
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


def run_folder(
    name: str, folder: Path, output: Path, predictions: Sequence[str], **more: Any
) -> Path:
    """The folder of a run, as a job writes it."""
    bench, split, write = LAYOUTS[name]
    if not folder.exists():
        write(folder)
    manifest = benchmark(bench).load(str(folder), split)
    rows = []
    for row, prediction in zip(manifest.read(manifest.index()), predictions, strict=True):
        worth, correct = benchmark(bench).score(row, prediction)
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
            "prediction": prediction,
            "score": worth,
            "correct": correct,
        }
        rows.append({**fields, "status": "ok", **more})
    output.mkdir(parents=True)
    for start in range(0, len(rows), 2):
        table = pa.Table.from_pylist(rows[start : start + 2], schema=ANSWER_SCHEMA)
        pq.write_table(table, output / f"answers-{start}.parquet")
    return output


@pytest.mark.parametrize(
    "name", ["mmbench", "mme", "gqa of the hub", "scienceqa", "vqav2 val", "msvd"]
)
def test_run_is_scored_from_its_parquet_alone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, split, write = LAYOUTS[name]
    write(tmp_path / "data")
    manifest = benchmark(bench).load(str(tmp_path / "data"), split)
    predictions = [
        row.answers[0] if number else "wrong"
        for number, row in enumerate(manifest.read(manifest.index()))
    ]
    run = run_folder(name, tmp_path / "data", tmp_path / "run", predictions)
    file = llava_file(name, tmp_path / "data", {manifest.read(manifest.index())[0].row_id: "wrong"})
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
    # Other scores in the files change nothing: the answers are scored again.
    for path in run.glob("*.parquet"):
        table = pq.read_table(path)
        position = table.column_names.index("score")
        pq.write_table(
            table.set_column(position, "score", pa.nulls(len(table), pa.float64())), path
        )
    again = scored(capsys, monkeypatch, str(run))
    assert again["metrics"] == found["metrics"]
    assert again["changed"] == again["rows"]
    assert "have another score than when they were answered" in again["out"]


def test_run_without_columns_of_newer_versions_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder("gqa", tmp_path / "data", tmp_path / "run", ["no", "man", "red"])
    for path in run.glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["options", "meta"]), path)
    assert scored(capsys, monkeypatch, str(run))["value"] == pytest.approx(2 / 3)


def test_submission_has_the_format_of_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(
        "vqav2 test", tmp_path / "vqa", tmp_path / "1", ["Two dogs.", "Yes, it is", "The end"]
    )
    made = tmp_path / "made.json"
    found = scored(
        capsys, monkeypatch, str(run), "--submission", str(made), "--data", str(tmp_path / "vqa")
    )
    assert "no references to compare with" in found["out"]
    assert json.loads(made.read_text()) == [
        {"question_id": 7, "answer": ""},
        {"question_id": 262148000, "answer": "2 dogs"},
        {"question_id": 262148001, "answer": "yes it is"},
        {"question_id": 393225000, "answer": "end"},
    ]
    assert "needs --data" in error_of(capsys, monkeypatch, str(run), "--submission", str(made))
    run = run_folder(
        "vizwiz test", tmp_path / "viz", tmp_path / "2", ["Unanswerable", "Basil-Leaves"]
    )
    scored(capsys, monkeypatch, str(run), "--submission", str(made))
    assert json.loads(made.read_text()) == [
        {"image": "VizWiz_test_00000000.jpg", "answer": "unanswerable"},
        {"image": "VizWiz_test_00000001.jpg", "answer": "basil leaves"},
    ]
    run = run_folder(
        "mmbench", tmp_path / "bench", tmp_path / "3", ["B", "A. <thin> & thick", "\x00\ud7ff 狗"]
    )
    sheet = tmp_path / "made.xlsx"
    scored(capsys, monkeypatch, str(run), "--submission", str(sheet))
    rows = list(spreadsheet.read_xlsx(sheet.read_bytes()))
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
    run = run_folder("pope", tmp_path / "pope", tmp_path / "4", ["Yes"] * 6)
    assert "pope has no server" in error_of(
        capsys, monkeypatch, str(run), "--submission", str(made)
    )


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
def test_format_of_each_benchmark_is_read(
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


def test_id_of_several_rows_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's ids of POPE begin anew in each split."""
    hub.pope(tmp_path)
    files.jsonl(tmp_path / "a.jsonl", [{"question_id": "1", "text": "yes"}])
    given = ["--answers", str(tmp_path / "a.jsonl"), "--benchmark", "pope", "--data", str(tmp_path)]
    assert "no answer belongs to a row" in error_of(capsys, monkeypatch, *given)
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
    assert "the answer to '0' could be to several rows" in error_of(capsys, monkeypatch, *given)


def test_format_of_mme_is_read(
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


def test_old_prompts_of_textvqa_are_matched(
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
    ("given", "expected"),
    [
        ([], "give the folders of runs, or --answers FILE"),
        (["--answers", "x.jsonl"], "--answers needs --benchmark NAME and --data FOLDER"),
        (["a", "b", "--submission", "x"], "is one file; give only one run"),
        (["nowhere"], "no answers in"),
        (["a", "--benchmark", "pope"], "--benchmark is only for --answers: a run records its own"),
        (["a", "--split", "val"], "--split is only for --answers: a run records its own"),
        (["a", "--data", "b"], "--data with a run is only for --submission"),
        (
            ["--answers", "x", "--benchmark", "gqa", "--data", "y", "--against", "z"],
            "--against is only for runs",
        ),
        (
            ["--answers", "x", "--benchmark", "gqa", "--data", "nowhere"],
            "there is no file or folder",
        ),
    ],
)
def test_wrong_command_is_an_error(
    given: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in error_of(capsys, monkeypatch, *given)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.jsonl",
            b'{"question_id": 1}',
            "an answer needs text or prediction or pred or answer; it has question_id",
        ),
        ("a.jsonl", b'{"text": "x"}', "an answer needs question_id or"),
        ("a.jsonl", b"[1]", "row 1 is not an object"),
        ("a.jsonl", b"nothing", "is not valid JSON"),
        ("a.xlsx", b"nothing", "not a readable .xlsx file"),
        ("a.csv", b"", "answers are a .jsonl or .json file"),
        ("a.jsonl", b'{"question_id": 5, "text": "x"}', "no answer belongs to a row"),
    ],
)
def test_unreadable_answers_are_an_error(
    name: str,
    content: bytes,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders.pope(tmp_path)
    (tmp_path / name).write_bytes(content)
    given = ["--answers", str(tmp_path / name), "--benchmark", "pope", "--data", str(tmp_path)]
    assert expected in error_of(capsys, monkeypatch, *given)


def test_spreadsheets_of_other_programs_are_read(tmp_path: Path) -> None:
    """With gaps, numbers as floats, and shared strings."""
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    for cell, value in {"A1": "index", "AB1": "text", "A2": 3.0, "AB2": "ab"}.items():
        sheet[cell] = value
    file = tmp_path / "a.xlsx"
    workbook.save(file)
    [row] = read_answers(file)
    assert (row["index"], row["text"]) == (3, "ab")
    data = spreadsheet.to_xlsx(["a", "b"], [[1, None], [0.5, "x" * 40_000]])
    assert list(spreadsheet.read_xlsx(data)) == [{"a": 1, "b": None}, {"a": 0.5, "b": "x" * 32_767}]


@pytest.mark.usefixtures("subprocesses")
def test_score_imports_neither_torch_nor_ray_nor_mlflow(tmp_path: Path) -> None:
    run = run_folder("gqa", tmp_path / "data", tmp_path / "run", ["no", "man", "red"])
    code = (
        "import sys, runpy; sys.argv = ['score.py', sys.argv[1]]\n"
        "try: runpy.run_path('jobs/score.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print([name for name in ('torch', 'ray', 'mlflow') if name in sys.modules], end)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[] 0"


@pytest.mark.usefixtures("subprocesses")
def test_closed_pipe_prints_no_error(tmp_path: Path) -> None:
    """As in `python jobs/score.py RUN | head`."""
    run = run_folder("gqa", tmp_path / "data", tmp_path / "run", ["no", "man", "red"])
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
