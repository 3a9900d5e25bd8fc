"""POPE: is there such a thing in the image? Three splits that differ in which absent things are asked for.

LLaVA's folder: `llava_pope_test.jsonl` (8,910 questions), `coco/coco_pope_{adversarial,popular,random}.json` and
`val2014`. The labels have to be those of the same version, POPE's commit e3e3926: later ones ask for other things, and
a script that goes by their order compares answers to other questions. Here both are joined by split, image and
question. The hub: `lmms-lab/POPE`, with the later 9,000 questions.

The first sentence of an answer says no if one of its words is "no", "No" or "not", and yes otherwise. Yes is what F1
is about; the headline is the mean F1 of the splits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.benchmarks.base import Benchmark, Score
from pipelines.benchmarks.joined_manifest import SHORT, JoinedManifest, DataFolder, asked, embedded_row, joined
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row
from pipelines.metrics.answer_metrics import AnswerArrays, Bools, Metric, RatioTerm, mean_over, weighted_sum

SPLITS = ("adversarial", "popular", "random")
NO = {"No", "not", "no"}


def question_id(record: RawRecord) -> str | None:
    """Split, image and question: what questions and labels have in common."""
    return joined(record["category"], record["image"], asked(record["text"], SHORT))


class Label:
    """The same of a label, which does not say its split: its file does."""

    def __init__(self, split: str) -> None:
        self.split = split

    def __call__(self, record: RawRecord) -> str | None:
        return question_id({**record, "category": self.split})


def hub_id(record: RawRecord) -> str | None:
    return joined(record["category"], record["question_id"], record["question"])


def llava(record: RawRecord) -> RawRecord:
    return {
        "media": [record["image"]],
        "question": asked(record["text"], SHORT),
        "answers": [record["truth"]["label"]],
        "type": record["category"],
        "meta": {"question_id": record["question_id"]},
    }


def hub(record: RawRecord) -> RawRecord:
    answer = str(record["answer"]).strip().lower()
    return embedded_row(
        record, answers=[answer], type=record["category"]
    )  # its question_id is one of a split


class POPE(Benchmark):
    name = "pope"
    version = "1"
    kind = "image"
    headline = "f1"

    def rows(self, data: str, split: str = "test", **how: Any) -> JoinedManifest:
        place = DataFolder.of(self.name, data, how, "lmms-lab/POPE")
        if tables := place.shards(
            "test", keys=("category", "question_id", "question"), identity=hub_id
        ):
            return place.rows(
                "Parquet", *tables, shape=hub, expected=("question", "answer", "category")
            )
        questions = place.find("questions", "llava_pope_test.jsonl", named=True)
        labels = []
        for each in SPLITS:
            name = f"coco_pope_{each}.json"
            found = place.find(
                f"labels of the {each} split", f"coco/{name}", name, f"output/coco/{name}"
            )
            labels.append(place.open(found, identity=Label(each)))
        return place.rows(
            "JSON",
            place.open(questions, identity=question_id),
            shape=llava,
            expected=("question_id", "image", "text", "category"),
            truth=tuple(labels),
            homes=("val2014", "coco/val2014", "images"),
        )

    def names(self, row: Row) -> tuple[str, ...]:
        return (row.row_id, *([row.meta["question_id"]] if "question_id" in row.meta else []))

    def claim(self, answer: Mapping[str, Any]) -> tuple[str, str]:
        name, text = super().claim(answer)
        return (
            hub_id(answer) or name if "category" in answer and "question" in answer else name
        ), text

    def prompt(self, row: Row) -> str:
        return row.question + SHORT

    def score(self, row: Row, prediction: str) -> Score:
        words = prediction.partition(".")[0].replace(",", "").split(" ")
        return Score.of(("no" if NO & set(words) else "yes") == row.answers[0])

    def figures(self, sheet: AnswerArrays) -> dict[str, Metric]:
        found: dict[str, Metric] = {}
        splits = sorted(set(sheet.types[sheet.scored]))
        for split in splits:
            for name, figure in _figures(sheet, sheet.scored & (sheet.types == split)).items():
                found[f"{split}/{name}"] = figure
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            found[name] = weighted_sum([found[f"{split}/{name}"] for split in splits], 1 / len(splits))
        return found

    def chance(self, type: str) -> float | None:
        return 0.5


def _figures(sheet: AnswerArrays, among: Bools) -> dict[str, Metric]:
    asked_for = sheet.reference == "yes"
    said = np.where(sheet.right, asked_for, ~asked_for)
    hit, wrong = said & asked_for & among, (said != asked_for) & among

    def ratio(above: Bools, below: Any) -> Metric:
        return (RatioTerm(1.0, above.astype(np.float64), below.astype(np.float64)),)

    return {
        "accuracy": mean_over(sheet.worth, among),
        "precision": ratio(hit, said & among),
        "recall": ratio(hit, asked_for & among),
        "f1": (RatioTerm(1.0, 2.0 * hit, 2.0 * hit + wrong),),
        "yes_ratio": mean_over(said, among),
    }


BENCHMARK = POPE()
