"""VizWiz: questions that blind people asked about photos of theirs; a quarter cannot be answered.

LLaVA's folder: `llava_test.jsonl` (8,000 questions without answers, for the server) and `test`; VizWiz's own `val.json`
(or `Annotations/val.json`) and `val`, whose ten answers are scored here: `--split val`. The hub: `lmms-lab/VizWiz-VQA`.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from pipelines.benchmarks.vqa_benchmark import Annotated, people
from pipelines.benchmarks.joined_manifest import SHORT, JoinedManifest, DataFolder, asked, embedded_row
from pipelines.benchmarks.vqa import normalised
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row

UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


def image(record: RawRecord) -> str | None:
    return str(record["image"])


def llava(record: RawRecord) -> RawRecord:
    return {
        "media": [record["image"]],
        "question": asked(record["text"], SHORT, UNANSWERABLE),
        "meta": {"question_id": record["question_id"]},
    }


def own(record: RawRecord) -> RawRecord:
    return {
        "media": [record["image"]],
        "question": record["question"],
        "answers": people(record.get("answers")),
        "type": record.get("answer_type"),
    }


def hub(record: RawRecord) -> RawRecord:
    return embedded_row(record, answers=people(record.get("answers")), type=record.get("category"))


class VizWiz(Annotated):
    name = "vizwiz"

    def rows(self, data: str, split: str = "test", **how: Any) -> JoinedManifest:
        place = DataFolder.of(self.name, data, how, "lmms-lab/VizWiz-VQA", splits=True)
        if split not in ("test", "val"):
            raise ValueError(f"vizwiz has no split '{split}'; it has test and val")
        if tables := place.shards(split, columns=("answer_type",)):
            return place.rows("Parquet", *tables, shape=hub, expected=("question_id", "question"))
        lists = ("llava_test.jsonl",) if split == "test" else ()
        found = place.find(
            "questions", *lists, f"{split}.json", f"Annotations/{split}.json", named=True
        )
        from_llava = found.endswith(".jsonl")
        return place.rows(
            "JSON",
            place.open(found, identity=image),
            shape=llava if from_llava else own,
            expected=("question_id", "image", "text") if from_llava else ("image", "question"),
            homes=(split, f"images/{split}"),
        )

    def names(self, row: Row) -> tuple[str, ...]:
        return (row.row_id, *([row.meta["question_id"]] if "question_id" in row.meta else []))

    def prompt(self, row: Row) -> str:
        return row.question + UNANSWERABLE + SHORT

    def submission(self, answers: pa.Table, data: str | None) -> bytes:
        """A list of {image, answer}, in the images' order."""
        found = zip(*(answers[name].to_pylist() for name in ("row_id", "prediction")), strict=True)
        done = [{"image": image, "answer": normalised(said or "")} for image, said in sorted(found)]
        return json.dumps(done).encode()


BENCHMARK = VizWiz()
