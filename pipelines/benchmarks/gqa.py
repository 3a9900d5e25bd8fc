"""GQA, testdev balanced: 12,578 questions about 398 scenes, answered in a word.

LLaVA's folder: `llava_gqa_testdev_balanced.jsonl`, GQA's own `testdev_balanced_questions.json`
(below `data`), and `images`. The hub: `lmms-lab/GQA`, whose questions
(`testdev_balanced_instructions`) and images (`testdev_balanced_images`) are two tables.

An answer is right if it equals the reference, except for case and a final dot; nothing else is
forgiven, as in GQA's own script. Binary questions are all whose structure is not `query`.
"""

from typing import Any

import numpy as np

from pipelines.benchmarks.base import Score
from pipelines.benchmarks.joined_manifest import JoinedManifest
from pipelines.benchmarks.official import LLAVA_COLUMNS, OfficialBenchmark, llava_row
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row
from pipelines.metrics.answer_metrics import AnswerArrays, Metric

TIER = "testdev_balanced"
HOMES = ("", "data/", "data/questions/", "data/questions1.2/", "questions/", "questions1.2/")
TWO_ANSWERS = ("verify", "logical", "choose", "compare")  # types of two possible answers


def llava(record: RawRecord) -> RawRecord:
    return llava_row(record, **_answer(record["reference"]))


def hub(record: RawRecord) -> RawRecord:
    return {"media": [record["imageId"]], "question": record["question"], **_answer(record)}


def _answer(record: RawRecord) -> RawRecord:
    types = {key: str(value) for key, value in (record.get("types") or {}).items() if value}
    return {"answers": [record["answer"]], "type": types.get("structural", ""), "meta": types}


class GQA(OfficialBenchmark):
    name = "gqa"
    hub = "lmms-lab/GQA"
    chances = dict.fromkeys(TWO_ANSWERS, 0.5)

    def load(self, data: str, split: str = "test", **options: Any) -> JoinedManifest:
        folder = self.folder(data, options)
        return folder.from_hub(
            "testdev",
            config=(f"{TIER}_instructions",),
            columns=("imageId", "types"),
            shape=hub,
            expected=("id", "imageId", "answer"),
            images=tuple(folder.hub_files("testdev", config=(f"{TIER}_images",))),
        ) or folder.manifest(
            folder.find_file("questions", f"llava_gqa_{TIER}.jsonl", is_data=True),
            shape=llava,
            expected=LLAVA_COLUMNS,
            references=(
                folder.find_file(
                    "answers", *(f"{home}{TIER}_questions.json" for home in HOMES), json_key="*"
                ),
            ),
            media_folders=("data/images", "images"),
        )

    def score(self, row: Row, prediction: str) -> Score:
        return Score.of(prediction.rstrip(".").lower() == row.answers[0])

    def metrics(self, answers: AnswerArrays) -> dict[str, Metric]:
        structure = answers.types
        questions = answers.table["question"].to_pylist()
        words = np.array([f"{len((text or '').split()):02}" for text in questions], dtype=object)
        return {
            "accuracy": answers.mean(),
            "open": answers.mean(structure == "query"),
            "binary": answers.mean((structure != "query") & (structure != "")),
            **answers.means_by("semantic", answers.meta("semantic")),
            **answers.means_by("words", words),
        }


BENCHMARK = GQA()
