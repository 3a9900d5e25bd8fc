"""TextVQA, val: 5,000 questions about text in images, with the words that an OCR system read.

LLaVA's questions have their image's id, which several share; a row's id is that and the question,
which is also how answers are joined.
"""

import re
from collections.abc import Mapping
from typing import Any

from pipelines.benchmarks.official import Layout, Source
from pipelines.benchmarks.records import SHORT, bare_question, hub_row, join_id
from pipelines.benchmarks.vqa_accuracy import VQABenchmark, answer_texts
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row

OCR = "Reference OCR token: "
# The prompts of older answers.
OLD_PROMPT = re.compile(r"^OCR tokens: .*?Question: (.*?) Short answer:", re.DOTALL)


def split_prompt(prompt: str) -> tuple[str, str | None]:
    """Return the question of a prompt, and its line of OCR tokens if it has one."""
    if old := OLD_PROMPT.match(prompt):
        return old[1], None
    lines = bare_question(prompt).split("\n")
    ocr = [line for line in lines if line.startswith(OCR.strip())]
    questions = [line for line in lines if line not in ocr]
    return questions[0] if questions else "", ocr[0] if ocr else None


def question_id(record: RawRecord) -> str | None:
    return join_id(record["question_id"], split_prompt(record["text"])[0].lower())


def reference_id(record: RawRecord) -> str | None:
    return join_id(record["image_id"], record["question"].lower())


def llava(record: RawRecord) -> RawRecord:
    question, ocr = split_prompt(record["text"])
    return {
        "media": [record["image"]],
        "question": question,
        "answers": answer_texts(record["reference"]["answers"]),
        "meta": {"ocr": ocr} if ocr is not None else {},
    }


def hub_shape(record: RawRecord) -> RawRecord:
    tokens = record.get("ocr_tokens")
    meta = {} if tokens is None else {"ocr": OCR + ", ".join(tokens)}
    return hub_row(record, answers=answer_texts(record["answers"]), meta=meta)


ANSWERS = Source(
    ("TextVQA_0.5.1_val.json",),
    "answers",
    reading={"json_key": "data", "identity": reference_id},
)


class TextVQA(VQABenchmark):
    name = "textvqa"
    hub = "lmms-lab/textvqa"

    on_hub = Layout(
        ("validation", "val"),
        shape=hub_shape,
        expected=("question_id", "question", "answers"),
        reading={"columns": ("ocr_tokens",)},
    )
    own = Layout(
        ("llava_textvqa_val_v051_ocr.jsonl",),
        shape=llava,
        reading={"identity": question_id},
        references=(ANSWERS,),
        media=("train_images", "train_val_images/train_images", "images"),
    )

    def external_ids(self, row: Row) -> tuple[str, ...]:
        """The hub's ids are those of questions, so that answers to its rows may lack a prompt."""
        return row.row_id, join_id(row.row_id, row.question.lower())

    def parse_answer(self, answer: Mapping[str, Any]) -> tuple[str, str]:
        row_id, text = super().parse_answer(answer)
        if "prompt" in answer or "question" in answer:
            prompt = str(answer.get("prompt", answer.get("question")))
            row_id = join_id(row_id, split_prompt(prompt)[0].lower())
        return row_id, text

    def prompt(self, row: Row) -> str:
        ocr = [row.meta["ocr"]] if "ocr" in row.meta else []
        return "\n".join([row.question, *ocr]) + SHORT


BENCHMARK = TextVQA()
