"""ScienceQA, test: 4,241 school questions with two to five options, 2,017 of them about an image.

LLaVA's folder: `llava_test_CQM-A.json`, which has the answers, and `images/test`; with ScienceQA's `problems.json`
beside it the subject and the grade of each question are known, too. The hub: `lmms-lab/ScienceQA`.

The letter has to be the whole answer, or to begin it as in "A. ", or to be in "The answer is A."; anything else is
wrong. The headline is `img`, over the questions with an image; questions without one are asked without one.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from pipelines.benchmarks.base import Benchmark, Score
from pipelines.benchmarks.joined_manifest import LETTER, JoinedManifest, DataFolder, embedded
from pipelines.data.formats.base import ROW_NUMBER, RawRecord
from pipelines.data.rows import Row
from pipelines.metrics.answer_metrics import AnswerArrays, Bools, Metric, mean_over

LETTERS = "ABCDE"
COLUMNS = ("hint", "subject", "grade")
CONTEXT = "Context: "
IMAGE = "<image>"
SAYS = re.compile(r"The answer is ([A-Z]).")


def by_number(record: RawRecord) -> str | None:
    """The hub's table has no ids: its order is all there is."""
    return str(record[ROW_NUMBER])


def llava(record: RawRecord) -> RawRecord:
    asked, answer = (str(turn["value"]) for turn in record["conversations"][:2])
    question, options = parted(asked.replace(IMAGE, "").strip())
    problem = record.get("truth", {})
    return {
        "media": [record["image"]] if record.get("image") else [],
        "question": question,
        "options": options,
        "answers": [answer],
        **_facts(problem, bool(record.get("image")), question.startswith(CONTEXT)),
    }


def hub(record: RawRecord) -> RawRecord:
    hint = str(record.get("hint") or "")
    image = embedded(record.get("image"))
    return {
        "media": [image] if image else [],
        "question": f"{CONTEXT}{hint}\n{record['question']}" if hint else record["question"],
        "options": list(record["choices"]),
        "answers": [LETTERS[int(record["answer"])]],
        **_facts(record, bool(image), bool(hint)),
    }


def _facts(problem: RawRecord, image: bool, text: bool) -> RawRecord:
    subject, grade = (
        str(problem.get("subject") or ""),
        str(problem.get("grade") or "").removeprefix("grade"),
    )
    meta = {"image": "yes" if image else "no", "text": "yes" if text else "no", "grade": grade}
    return {"type": subject, "meta": {key: value for key, value in meta.items() if value}}


def parted(text: str) -> tuple[str, list[str]]:
    """Question and options of a text that ends in lines such as "A. yes", which may run over several lines."""
    begin = text.rfind("\nA. ")
    options: list[str] = []
    rest = text[begin:] if begin >= 0 else ""
    for letter in LETTERS:
        mark, after = f"\n{letter}. ", f"\n{chr(ord(letter) + 1)}. "
        if not rest.startswith(mark):
            break
        end = rest.find(after, len(mark))
        options.append(rest[len(mark) : end if end >= 0 else None])
        rest = rest[end:] if end >= 0 else ""
    return (text[:begin], options) if options else (text, [])


def chosen(prediction: str) -> str | None:
    """The letter that an answer gives."""
    if (
        prediction
        and prediction[0] in LETTERS
        and (len(prediction) == 1 or prediction[1:3] == ". ")
    ):
        return prediction[0]
    said = SAYS.findall(prediction)
    return str(said[0]) if len(said) == 1 else None


class ScienceQA(Benchmark):
    name = "scienceqa"
    version = "1"
    kind = "image"
    headline = "img"

    def rows(self, data: str, split: str = "test", **how: Any) -> JoinedManifest:
        place = DataFolder.of(self.name, data, how, "lmms-lab/ScienceQA")
        wanted = ("question", "choices", "answer")
        known: dict[str, Any] = {"identity": by_number, "keys": (ROW_NUMBER,), "columns": COLUMNS}
        if tables := place.shards("test", config=("ScienceQA-FULL", "ScienceQA-IMG"), **known):
            return place.rows("Parquet", *tables, shape=hub, expected=wanted)
        questions = place.find("questions", "llava_test_CQM-A.json", named=True)
        problems = [name for name in ("problems.json", "data/problems.json") if place.has(name)]
        return place.rows(
            "JSON",
            place.open(questions),
            shape=llava,
            expected=("id", "conversations"),
            truth=tuple(place.open(name, json_key="*") for name in problems[:1]),
            homes=("images/test", "test", "images"),
        )

    def prompt(self, row: Row) -> str:
        lines = [
            f"{letter}. {option}" for letter, option in zip(LETTERS, row.options, strict=False)
        ]
        return "\n".join([row.question, *lines]) + LETTER

    def score(self, row: Row, prediction: str) -> Score:
        return Score.of(chosen(prediction) == row.answers[0])

    def figures(self, sheet: AnswerArrays) -> dict[str, Metric]:
        image, text = sheet.meta("image") == "yes", sheet.meta("text") == "yes"
        low = np.isin(sheet.meta("grade"), [str(grade) for grade in range(1, 7)])
        among: dict[str, Bools] = {
            "all": sheet.scored,
            "img": image,
            "modality/image": image,
            "modality/text": text,
            "modality/none": ~image & ~text,
            "grade/1-6": low,
            "grade/7-12": ~low & (sheet.meta("grade") != ""),
        }
        found = {name: mean_over(sheet.worth, sheet.scored & rows) for name, rows in among.items()}
        found = {
            name: figure for name, figure in found.items() if name == "img" or figure[0].below.any()
        }
        return {
            **found,
            "chance": mean_over(sheet.chances, sheet.scored & image & ~np.isnan(sheet.chances)),
        }


BENCHMARK = ScienceQA()
