"""VQAv2: everyday questions about COCO's images.

LLaVA's folder: `llava_vqav2_mscoco_test-dev2015.jsonl` (107,394 questions without answers, for the server) and
`test2015`. VQAv2's own `v2_OpenEnded_mscoco_val2014_questions.json`, `v2_mscoco_val2014_annotations.json` and
`val2014` (214,354 questions), whose ten answers are scored here: `--split val`. The hub: `lmms-lab/VQAv2`, val.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from pipelines.benchmarks.vqa_benchmark import Annotated, people
from pipelines.benchmarks.joined_manifest import SHORT, JoinedManifest, DataFolder, asked, embedded_row
from pipelines.benchmarks.vqa import normalised
from pipelines.data.formats.base import RawRecord
from pipelines.data.row_index import index_rows

CHANCE = {"yes/no": 0.5}
LISTS = ("llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_mscoco_test2015.jsonl")


def llava(record: RawRecord) -> RawRecord:
    return {"media": [record["image"]], "question": asked(record["text"], SHORT)}


def own(record: RawRecord) -> RawRecord:
    return {
        "media": [f"COCO_val2014_{int(record['image_id']):012}.jpg"],
        "question": record["question"],
        **_answers(record["truth"]),
    }


def hub(record: RawRecord) -> RawRecord:
    return embedded_row(record, **_answers(record))


def _answers(truth: RawRecord) -> RawRecord:
    return {
        "answers": people(truth.get("answers")),
        "type": truth.get("answer_type"),
        "meta": {"question_type": truth["question_type"]} if truth.get("question_type") else {},
    }


class VQAv2(Annotated):
    name = "vqav2"

    def rows(self, data: str, split: str = "test", **how: Any) -> JoinedManifest:
        place = DataFolder.of(self.name, data, how, "lmms-lab/VQAv2", splits=True)
        columns = ("question_type", "answer_type")
        if tables := place.shards(
            *(("validation", "val") if split == "val" else (split,)), columns=columns
        ):
            return place.rows("Parquet", *tables, shape=hub, expected=("question_id", "question"))
        if split == "test":
            questions = place.find("questions", *LISTS, named=True)
            expected, homes = ("question_id", "image", "text"), ("test2015",)
            return place.rows(
                "JSON", place.open(questions), shape=llava, expected=expected, homes=homes
            )
        if split != "val":
            raise ValueError(f"vqav2 has no split '{split}'; it has test and val")
        questions = place.find("questions", "v2_OpenEnded_mscoco_val2014_questions.json")
        answers = place.find("answers", "v2_mscoco_val2014_annotations.json")
        return place.rows(
            "JSON",
            place.open(questions, json_key="questions"),
            shape=own,
            expected=("question_id", "image_id", "question"),
            truth=(place.open(answers, json_key="annotations"),),
            homes=("val2014", "images/val2014"),
        )

    def submission(self, answers: pa.Table, data: str | None) -> bytes:
        """A list of {question_id, answer} for all of test2015, with an empty answer where none was asked for."""
        if data is None:
            raise ValueError(
                f"--submission needs --data: the folder with {LISTS[1]}, the list of all questions"
            )
        place = DataFolder.of(self.name, data, {})
        every = place.open(place.find("all questions of test2015", LISTS[1]))
        said = dict(
            zip(*(answers[name].to_pylist() for name in ("row_id", "prediction")), strict=True)
        )
        ids = index_rows("JSON", (every,))["row_id"].to_pylist()
        if lost := said.keys() - set(ids):
            raise ValueError(
                f"{len(lost):,} answers are to no question of {LISTS[1]}: {', '.join(sorted(lost)[:3])}"
            )
        done = [
            {"question_id": int(each), "answer": normalised(said.get(each) or "")} for each in ids
        ]
        return json.dumps(done).encode()

    def chance(self, type: str) -> float | None:
        return CHANCE.get(type)


BENCHMARK = VQAv2()
