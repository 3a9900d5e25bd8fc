"""VizWiz: questions of blind people about photos that they took; a quarter cannot be answered.

The test split is LLaVA's list of 8,000 questions without answers, for the server; `--split val` is
VizWiz's own, whose ten answers are scored here.
"""

import json

import pyarrow as pa

from pipelines.benchmarks.official import Layout
from pipelines.benchmarks.records import SHORT, hub_row, llava_row
from pipelines.benchmarks.vqa_accuracy import VQABenchmark, answer_texts, submitted_answers
from pipelines.data.formats.base import RawRecord

UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


def image_name(record: RawRecord) -> str | None:
    return str(record["image"])


def own(record: RawRecord) -> RawRecord:
    if "text" in record:  # in LLaVA's list
        return llava_row(record, SHORT, UNANSWERABLE, meta={"question_id": record["question_id"]})
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

    def layouts(self, split: str) -> tuple[Layout, Layout]:
        expected = ("question_id", "question")
        on_hub = Layout(
            (split,), shape=hub, expected=expected, reading={"columns": ("answer_type",)}
        )
        names = ("llava_test.jsonl",) if split == "test" else ()
        return on_hub, Layout(
            (*names, f"{split}.json", f"Annotations/{split}.json"),
            shape=own,
            expected=("image",),
            reading={"identity": image_name},
            media=(split, f"images/{split}"),
        )

    def submission(self, answers: pa.Table, data: str | None) -> bytes:
        """Return a list of {image, answer}, sorted by image."""
        entries = sorted(submitted_answers(answers).items())
        return json.dumps([{"image": image, "answer": text} for image, text in entries]).encode()


BENCHMARK = VizWiz()
