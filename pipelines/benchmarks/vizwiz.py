"""VizWiz: questions of blind people about photos that they took; a quarter cannot be answered.

LLaVA's folder: `llava_test.jsonl` (8,000 questions without answers, for the server) and `test`;
VizWiz's own `val.json` (or `Annotations/val.json`) and `val`, whose ten answers are scored here:
`--split val`. The hub: `lmms-lab/VizWiz-VQA`.
"""

import json
from typing import Any

import pyarrow as pa

from pipelines.benchmarks.joined_manifest import JoinedManifest
from pipelines.benchmarks.official import LLAVA_COLUMNS, SHORT, hub_row, llava_row
from pipelines.benchmarks.vqa_accuracy import VQABenchmark, answer_texts, submitted_answers
from pipelines.data.formats.base import RawRecord

UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


def image_name(record: RawRecord) -> str | None:
    return str(record["image"])


def llava(record: RawRecord) -> RawRecord:
    return llava_row(record, SHORT, UNANSWERABLE, meta={"question_id": record["question_id"]})


def original(record: RawRecord) -> RawRecord:
    return {
        "media": [record["image"]],
        "question": record["question"],
        "answers": answer_texts(record.get("answers")),
        "type": record.get("answer_type"),
    }


def hub(record: RawRecord) -> RawRecord:
    answers = answer_texts(record.get("answers"))
    return hub_row(record, answers=answers, type=record.get("category"))


class VizWiz(VQABenchmark):
    name = "vizwiz"
    hub = "lmms-lab/VizWiz-VQA"
    splits = ("test", "val")
    suffix = UNANSWERABLE + SHORT

    def load(self, data: str, split: str = "test", **options: Any) -> JoinedManifest:
        folder = self.folder(data, options)
        self.check_split(split)
        if manifest := folder.from_hub(
            split, columns=("answer_type",), shape=hub, expected=("question_id", "question")
        ):
            return manifest
        names = ("llava_test.jsonl",) if split == "test" else ()
        names = (*names, f"{split}.json", f"Annotations/{split}.json")
        questions = folder.find_file("questions", *names, is_data=True, identity=image_name)
        from_llava = questions.name.endswith(".jsonl")
        return folder.manifest(
            questions,
            shape=llava if from_llava else original,
            expected=LLAVA_COLUMNS if from_llava else ("image", "question"),
            media_folders=(split, f"images/{split}"),
        )

    def submission(self, answers: pa.Table, data: str | None) -> bytes:
        """Return a list of {image, answer}, sorted by image."""
        entries = sorted(submitted_answers(answers).items())
        return json.dumps([{"image": image, "answer": text} for image, text in entries]).encode()


BENCHMARK = VizWiz()
