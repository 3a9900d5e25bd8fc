"""GQA, testdev balanced: 12,578 questions about 398 scenes, answered in a word.

Nothing but case and a final dot is forgiven, as in GQA's own script. Binary questions are all whose
structure is not `query`. On the hub, questions and images are two tables.
"""

import numpy as np

from pipelines.benchmarks.base import Score
from pipelines.benchmarks.official import Layout, OfficialBenchmark, Source
from pipelines.benchmarks.records import llava_row
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row
from pipelines.metrics.answer_metrics import AnswerArrays, Metric

TIER = "testdev_balanced"
HOMES = ("", "data/", "data/questions/", "data/questions1.2/", "questions/", "questions1.2/")
ANSWERS = tuple(f"{home}{TIER}_questions.json" for home in HOMES)
TWO_ANSWERS = ("verify", "logical", "choose", "compare")  # types of two possible answers


def llava(record: RawRecord) -> RawRecord:
    return llava_row(record, **_answer(record["reference"]))


def hub_shape(record: RawRecord) -> RawRecord:
    return {"media": [record["imageId"]], "question": record["question"], **_answer(record)}


def _answer(record: RawRecord) -> RawRecord:
    types = {key: str(value) for key, value in (record.get("types") or {}).items() if value}
    return {"answers": [record["answer"]], "type": types.get("structural", ""), "meta": types}


class GQA(OfficialBenchmark):
    name = "gqa"
    hub = "lmms-lab/GQA"
    chances = dict.fromkeys(TWO_ANSWERS, 0.5)

    on_hub = Layout(
        ("testdev",),
        shape=hub_shape,
        expected=("id", "imageId", "answer"),
        configs=(f"{TIER}_instructions",),
        reading={"columns": ("imageId", "types")},
        images=Source(("testdev",), configs=(f"{TIER}_images",)),
    )
    own = Layout(
        (f"llava_gqa_{TIER}.jsonl",),
        shape=llava,
        references=(Source(ANSWERS, "answers", reading={"json_key": "*"}),),
        media=("data/images", "images"),
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
