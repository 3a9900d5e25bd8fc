"""ScienceQA, test: 4,241 school questions with two to five options, 2,017 of them about an image.

The headline is `img`, over the questions with an image; the others are asked without one. LLaVA's
file has the answers; ScienceQA's `problems.json` adds the subject and the grade of each question.
"""

import re

import numpy as np

from pipelines.benchmarks.base import Score, lettered
from pipelines.benchmarks.official import Layout, OfficialBenchmark, Source
from pipelines.benchmarks.records import LETTER, embedded_image
from pipelines.data.formats.base import ROW_NUMBER, RawRecord
from pipelines.data.rows import Row
from pipelines.metrics.answer_metrics import AnswerArrays, Metric, mean_over

LETTERS = "ABCDE"
CONTEXT = "Context: "
IMAGE = "<image>"
STATED = re.compile(r"The answer is ([A-Z]).")


def row_number(record: RawRecord) -> str | None:
    """The hub's table has no ids, so its order identifies the rows."""
    return str(record[ROW_NUMBER])


def llava(record: RawRecord) -> RawRecord:
    prompt, answer = (str(turn["value"]) for turn in record["conversations"][:2])
    question, options = split_options(prompt.replace(IMAGE, "").strip())
    image = record.get("image")
    return {
        "media": [image] if image else [],
        "question": question,
        "options": options,
        "answers": [answer],
        **_facts(record.get("reference", {}), bool(image), question.startswith(CONTEXT)),
    }


def hub_shape(record: RawRecord) -> RawRecord:
    hint = str(record.get("hint") or "")
    image = embedded_image(record.get("image"))
    return {
        "media": [image] if image else [],
        "question": f"{CONTEXT}{hint}\n{record['question']}" if hint else record["question"],
        "options": list(record["choices"]),
        "answers": [LETTERS[int(record["answer"])]],
        **_facts(record, bool(image), bool(hint)),
    }


def _facts(problem: RawRecord, image: bool, text: bool) -> RawRecord:
    grade = str(problem.get("grade") or "").removeprefix("grade")
    meta = {"image": "yes" if image else "no", "text": "yes" if text else "no"}
    return {
        "type": str(problem.get("subject") or ""),
        "meta": meta | ({"grade": grade} if grade else {}),
    }


def split_options(text: str) -> tuple[str, list[str]]:
    """Split a text that ends in options such as "A. yes", which may have several lines each."""
    begin = text.rfind("\nA. ")
    options: list[str] = []
    rest = text[begin:] if begin >= 0 else ""
    for letter in LETTERS:
        mark, next_mark = f"\n{letter}. ", f"\n{chr(ord(letter) + 1)}. "
        if not rest.startswith(mark):
            break
        end = rest.find(next_mark, len(mark))
        options.append(rest[len(mark) : end if end >= 0 else None])
        rest = rest[end:] if end >= 0 else ""
    return (text[:begin], options) if options else (text, [])


def answer_letter(prediction: str) -> str | None:
    if prediction[:1] in tuple(LETTERS) and (len(prediction) == 1 or prediction[1:3] == ". "):
        return prediction[0]
    stated = STATED.findall(prediction)
    return str(stated[0]) if len(stated) == 1 else None


class ScienceQA(OfficialBenchmark):
    name = "scienceqa"
    hub = "lmms-lab/ScienceQA"
    headline = "img"

    on_hub = Layout(
        ("test",),
        shape=hub_shape,
        expected=("question", "choices", "answer"),
        configs=("ScienceQA-FULL", "ScienceQA-IMG"),
        reading={
            "identity": row_number,
            "keys": (ROW_NUMBER,),
            "columns": ("hint", "subject", "grade"),
        },
    )
    own = Layout(
        ("llava_test_CQM-A.json",),
        shape=llava,
        expected=("id", "conversations"),
        optional_references=(
            Source(("problems.json", "data/problems.json"), "problems", reading={"json_key": "*"}),
        ),
        media=("images/test", "test", "images"),
    )

    def prompt(self, row: Row) -> str:
        return "\n".join([row.question, *lettered(row.options)]) + LETTER

    def score(self, row: Row, prediction: str) -> Score:
        return Score.of(answer_letter(prediction) == row.answers[0])

    def metrics(self, answers: AnswerArrays) -> dict[str, Metric]:
        image, text = answers.meta("image") == "yes", answers.meta("text") == "yes"
        low = np.isin(answers.meta("grade"), [str(grade) for grade in range(1, 7)])
        guessed = answers.scored & image & ~np.isnan(answers.chances)
        return {
            "all": answers.mean(),
            "img": answers.mean(image),
            "modality/image": answers.mean(image),
            "modality/text": answers.mean(text),
            "modality/none": answers.mean(~image & ~text),
            "grade/1-6": answers.mean(low),
            "grade/7-12": answers.mean(~low & (answers.meta("grade") != "")),
            "chance": mean_over(answers.chances, guessed),
        }


BENCHMARK = ScienceQA()
