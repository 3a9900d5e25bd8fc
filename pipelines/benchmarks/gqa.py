"""GQA, testdev balanced: 12,578 questions about 398 scenes, answered in a word.

LLaVA's folder: `llava_gqa_testdev_balanced.jsonl`, GQA's own `testdev_balanced_questions.json` (below `data`), and
`images`. The hub: `lmms-lab/GQA`, whose questions (`testdev_balanced_instructions`) and images
(`testdev_balanced_images`) are two tables.

An answer is right if it is the reference, but for case and a final dot; nothing else is forgiven, as in GQA's own
script. Binary questions are all whose structure is not `query`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.benchmarks.base import Benchmark, Score
from pipelines.benchmarks.joined_manifest import SHORT, JoinedManifest, DataFolder, asked
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row
from pipelines.metrics.answer_metrics import AnswerArrays, Metric, mean_over

TIER = "testdev_balanced"
CHANCE = {"verify": 0.5, "logical": 0.5, "choose": 0.5, "compare": 0.5}  # two answers are possible


def llava(record: RawRecord) -> RawRecord:
    truth = record["truth"]
    return {
        "media": [record["image"]],
        "question": asked(record["text"], SHORT),
        "answers": [truth["answer"]],
        **_types(truth.get("types")),
    }


def hub(record: RawRecord) -> RawRecord:
    return {
        "media": [record["imageId"]],
        "question": record["question"],
        "answers": [record["answer"]],
        **_types(record.get("types")),
    }


def _types(types: Any) -> RawRecord:
    known = {key: str(value) for key, value in (types or {}).items() if value}
    return {"type": known.get("structural", ""), "meta": known}


class GQA(Benchmark):
    name = "gqa"
    version = "1"
    kind = "image"

    def rows(self, data: str, split: str = "test", **how: Any) -> JoinedManifest:
        place = DataFolder.of(self.name, data, how, "lmms-lab/GQA")
        if tables := place.shards(
            "testdev", config=(f"{TIER}_instructions",), columns=("imageId", "types")
        ):
            album = place.shards("testdev", config=(f"{TIER}_images",))
            return place.rows(
                "Parquet", *tables, shape=hub, expected=("id", "imageId", "answer"), album=album
            )
        questions = place.find("questions", f"llava_gqa_{TIER}.jsonl", named=True)
        answers = place.find("answers", *(f"{home}{TIER}_questions.json" for home in HOMES))
        return place.rows(
            "JSON",
            place.open(questions),
            shape=llava,
            expected=("question_id", "image", "text"),
            truth=(place.open(answers, json_key="*"),),
            homes=("data/images", "images"),
        )

    def prompt(self, row: Row) -> str:
        return row.question + SHORT

    def score(self, row: Row, prediction: str) -> Score:
        return Score.of(prediction.rstrip(".").lower() == row.answers[0])

    def figures(self, sheet: AnswerArrays) -> dict[str, Metric]:
        structure = sheet.types
        words = np.array([f"{len(str(text).split()):02}" for text in sheet.questions], dtype=object)
        return {
            "accuracy": mean_over(sheet.worth, sheet.scored),
            "open": mean_over(sheet.worth, sheet.scored & (structure == "query")),
            "binary": mean_over(sheet.worth, sheet.scored & (structure != "query") & (structure != "")),
            **sheet.by("semantic", sheet.meta("semantic")),
            **sheet.by("words", words),
        }

    def chance(self, type: str) -> float | None:
        return CHANCE.get(type)


HOMES = ("", "data/", "data/questions/", "data/questions1.2/", "questions/", "questions1.2/")
BENCHMARK = GQA()
