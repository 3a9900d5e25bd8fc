"""VQAv2: everyday questions about COCO's images.

The test split is LLaVA's list of 107,394 questions without answers, for the server; `--split val`
is VQAv2's own 214,354 questions, whose ten answers are scored here.
"""

import json

import pyarrow as pa

from pipelines.benchmarks.official import DataFolder, Layout, Source
from pipelines.benchmarks.records import hub_row, llava_row
from pipelines.benchmarks.vqa_accuracy import VQABenchmark, answer_texts, submitted_answers
from pipelines.data.formats.base import RawRecord
from pipelines.data.row_index import index_rows

TEST_DEV, TEST = (f"llava_vqav2_mscoco_{split}2015.jsonl" for split in ("test-dev", "test"))


def original(record: RawRecord) -> RawRecord:
    return {
        "media": [f"COCO_val2014_{int(record['image_id']):012}.jpg"],
        "question": record["question"],
        **_answers(record["reference"]),
    }


def hub(record: RawRecord) -> RawRecord:
    return hub_row(record, **_answers(record))


def _answers(reference: RawRecord) -> RawRecord:
    question_type = reference.get("question_type")
    return {
        "answers": answer_texts(reference.get("answers")),
        "type": reference.get("answer_type"),
        "meta": {"question_type": question_type} if question_type else {},
    }


class VQAv2(VQABenchmark):
    name = "vqav2"
    hub = "lmms-lab/VQAv2"
    splits = ("test", "val")
    chances = dict.fromkeys(["yes/no"], 0.5)

    def layouts(self, split: str) -> tuple[Layout, Layout]:
        on_hub = Layout(
            ("validation", "val") if split == "val" else (split,),
            shape=hub,
            expected=("question_id", "question"),
            reading={"columns": ("question_type", "answer_type")},
        )
        if split == "test":
            return on_hub, Layout((TEST_DEV, TEST), shape=llava_row, media=("test2015",))
        annotations = Source(
            ("v2_mscoco_val2014_annotations.json",), "answers", reading={"json_key": "annotations"}
        )
        return on_hub, Layout(
            ("v2_OpenEnded_mscoco_val2014_questions.json",),
            shape=original,
            expected=("question_id", "image_id", "question"),
            reading={"json_key": "questions"},
            references=(annotations,),
            media=("val2014", "images/val2014"),
        )

    def submission(self, answers: pa.Table, data: str | None) -> bytes:
        """Return a list of {question_id, answer} for all of test2015; unanswered ones are empty."""
        if data is None:
            raise ValueError(
                f"--submission needs --data: the folder with {TEST}, the list of all questions"
            )
        _, test = DataFolder(self, data, {}).find(Source((TEST,), "all questions of test2015"))
        predictions = submitted_answers(answers)
        ids = index_rows("JSON", (test,))["row_id"].to_pylist()
        if unknown := predictions.keys() - set(ids):
            raise ValueError(
                f"{len(unknown):,} answers are to no question of {TEST}:"
                f" {', '.join(sorted(unknown)[:3])}"
            )
        entries = [
            {"question_id": int(row_id), "answer": predictions.get(row_id, "")} for row_id in ids
        ]
        return json.dumps(entries).encode()


BENCHMARK = VQAv2()
