"""TextVQA, val: 5,000 questions about text in images, with the words that an OCR system read beside the question.

LLaVA's folder: `llava_textvqa_val_v051_ocr.jsonl`, `TextVQA_0.5.1_val.json` and `train_images`. Its questions have
their image's id, which several share; a row's id is that and the question, which is also how answers are joined. The
hub: `lmms-lab/textvqa`, asked in the same words (lmms-eval capitalises questions and leaves the OCR out).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipelines.benchmarks.vqa_benchmark import Annotated, people
from pipelines.benchmarks.joined_manifest import SHORT, JoinedManifest, DataFolder, asked, embedded_row, joined
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row

OCR = "Reference OCR token: "
OLD = re.compile(
    r"^OCR tokens: .*?Question: (.*?) Short answer:", re.DOTALL
)  # how prompts were before


def question_of(prompt: str) -> str:
    """The question within a prompt: the line that is neither OCR nor instruction."""
    if old := OLD.match(prompt):
        return old[1]
    lines = [line for line in asked(prompt, SHORT).split("\n") if not line.startswith(OCR.strip())]
    return lines[0] if lines else ""


def question_id(record: RawRecord) -> str | None:
    return joined(record["question_id"], question_of(record["text"]).lower())


def truth_id(record: RawRecord) -> str | None:
    return joined(record["image_id"], record["question"].lower())


def llava(record: RawRecord) -> RawRecord:
    text = asked(record["text"], SHORT)
    ocr = next((line for line in text.split("\n") if line.startswith(OCR.strip())), None)
    return {
        "media": [record["image"]],
        "question": question_of(record["text"]),
        "answers": people(record["truth"]["answers"]),
        "meta": {"ocr": ocr} if ocr is not None else {},
    }


def hub(record: RawRecord) -> RawRecord:
    tokens = record.get("ocr_tokens")
    meta = {} if tokens is None else {"ocr": OCR + ", ".join(tokens)}
    return embedded_row(record, answers=people(record["answers"]), meta=meta)


class TextVQA(Annotated):
    name = "textvqa"

    def rows(self, data: str, split: str = "test", **how: Any) -> JoinedManifest:
        place = DataFolder.of(self.name, data, how, "lmms-lab/textvqa")
        if tables := place.shards("validation", "val", columns=("ocr_tokens",)):
            return place.rows(
                "Parquet", *tables, shape=hub, expected=("question_id", "question", "answers")
            )
        questions = place.find("questions", "llava_textvqa_val_v051_ocr.jsonl", named=True)
        answers = place.find("answers", "TextVQA_0.5.1_val.json")
        return place.rows(
            "JSON",
            place.open(questions, identity=question_id),
            shape=llava,
            expected=("question_id", "image", "text"),
            truth=(place.open(answers, json_key="data", identity=truth_id),),
            homes=("train_images", "train_val_images/train_images", "images"),
        )

    def names(self, row: Row) -> tuple[str, ...]:
        """The hub's ids are of questions; a prompt beside one says nothing new."""
        return row.row_id, joined(row.row_id, row.question.lower())

    def claim(self, answer: Mapping[str, Any]) -> tuple[str, str]:
        image, text = super().claim(answer)
        if "prompt" not in answer and "question" not in answer:
            return image, text
        return joined(
            image, question_of(str(answer.get("prompt", answer.get("question")))).lower()
        ), text

    def prompt(self, row: Row) -> str:
        return "\n".join([row.question, *([row.meta["ocr"]] if "ocr" in row.meta else [])]) + SHORT


BENCHMARK = TextVQA()
