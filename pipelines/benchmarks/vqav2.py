"""VQAv2: everyday questions about COCO's images.

LLaVA's folder: `llava_vqav2_mscoco_test-dev2015.jsonl` (107,394 questions without answers, for the
server) and `test2015`. VQAv2's own `v2_OpenEnded_mscoco_val2014_questions.json`,
`v2_mscoco_val2014_annotations.json` and `val2014` (214,354 questions), whose ten answers are scored
here: `--split val`. The hub: `lmms-lab/VQAv2`, val.
"""

import json
from typing import Any

import pyarrow as pa

from pipelines.benchmarks.joined_manifest import JoinedManifest
from pipelines.benchmarks.official import LLAVA_COLUMNS, hub_row, llava_row
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

    def load(self, data: str, split: str = "test", **options: Any) -> JoinedManifest:
        folder = self.folder(data, options)
        if manifest := folder.from_hub(
            *(("validation", "val") if split == "val" else (split,)),
            columns=("question_type", "answer_type"),
            shape=hub,
            expected=("question_id", "question"),
        ):
            return manifest
        self.check_split(split)
        if split == "test":
            return folder.manifest(
                folder.find_file("questions", TEST_DEV, TEST, is_data=True),
                shape=llava_row,
                expected=LLAVA_COLUMNS,
                media_folders=("test2015",),
            )
        questions = folder.find_file(
            "questions", "v2_OpenEnded_mscoco_val2014_questions.json", json_key="questions"
        )
        annotations = folder.find_file(
            "answers", "v2_mscoco_val2014_annotations.json", json_key="annotations"
        )
        return folder.manifest(
            questions,
            shape=original,
            expected=("question_id", "image_id", "question"),
            references=(annotations,),
            media_folders=("val2014", "images/val2014"),
        )

    def submission(self, answers: pa.Table, data: str | None) -> bytes:
        """Return a list of {question_id, answer} for all of test2015; unanswered ones are empty."""
        if data is None:
            raise ValueError(
                f"--submission needs --data: the folder with {TEST}, the list of all questions"
            )
        folder = self.folder(data, {})
        if not folder.has_file(TEST):
            raise FileNotFoundError(
                f"{self.name}: there is no file of all questions of test2015; looked for {TEST} in"
                f" {folder}"
            )
        predictions = submitted_answers(answers)
        ids = index_rows("JSON", (folder.open(TEST),))["row_id"].to_pylist()
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
