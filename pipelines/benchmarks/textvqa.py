"""TextVQA, val: 5,000 questions about text in images, with the words that an OCR system read.

LLaVA's folder: `llava_textvqa_val_v051_ocr.jsonl`, `TextVQA_0.5.1_val.json` and `train_images`. Its
questions have their image's id, which several share; a row's id is that and the question, which is
also how answers are joined. The hub: `lmms-lab/textvqa`, with the same prompts (lmms-eval
capitalises questions and leaves the OCR out).
"""

import re
from collections.abc import Mapping
from typing import Any

from pipelines.benchmarks.joined_manifest import JoinedManifest
from pipelines.benchmarks.official import LLAVA_COLUMNS, SHORT, hub_row, join_id, without_suffixes
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
    lines = without_suffixes(prompt, SHORT).split("\n")
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


def hub(record: RawRecord) -> RawRecord:
    tokens = record.get("ocr_tokens")
    meta = {} if tokens is None else {"ocr": OCR + ", ".join(tokens)}
    return hub_row(record, answers=answer_texts(record["answers"]), meta=meta)


class TextVQA(VQABenchmark):
    name = "textvqa"
    hub = "lmms-lab/textvqa"

    def load(self, data: str, split: str = "test", **options: Any) -> JoinedManifest:
        folder = self.folder(data, options)
        if manifest := folder.from_hub(
            *("validation", "val"),
            columns=("ocr_tokens",),
            shape=hub,
            expected=("question_id", "question", "answers"),
        ):
            return manifest
        questions = folder.find_file(
            "questions", "llava_textvqa_val_v051_ocr.jsonl", is_data=True, identity=question_id
        )
        answers = folder.find_file(
            "answers", "TextVQA_0.5.1_val.json", json_key="data", identity=reference_id
        )
        return folder.manifest(
            questions,
            shape=llava,
            expected=LLAVA_COLUMNS,
            references=(answers,),
            media_folders=("train_images", "train_val_images/train_images", "images"),
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
