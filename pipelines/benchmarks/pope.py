"""POPE: is there such a thing in the image? Its three splits choose absent things differently.

Labels and questions have to be of one version: later ones ask for other things, and a script that
relies on their order compares answers to other questions. Here they are joined by split, image and
question. Yes is the positive class of F1; the headline is the mean F1 of the splits.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from pipelines.benchmarks.base import Score
from pipelines.benchmarks.official import Layout, OfficialBenchmark, Source
from pipelines.benchmarks.records import LLAVA_COLUMNS, bare_question, hub_row, join_id, llava_row
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row
from pipelines.metrics.answer_metrics import (
    AnswerArrays,
    Bools,
    Metric,
    mean_over,
    ratio,
    weighted_sum,
)

SPLITS = ("adversarial", "popular", "random")
NO = {"No", "not", "no"}


def llava_id(record: RawRecord, split: str | None = None) -> str | None:
    """Return split, image and question. The split of a label is that of its file."""
    question = bare_question(record["text"])
    return join_id(split or record["category"], record["image"], question)


def hub_id(record: RawRecord) -> str | None:
    return join_id(record["category"], record["question_id"], record["question"])


def llava(record: RawRecord) -> RawRecord:
    return llava_row(
        record,
        answers=[record["reference"]["label"]],
        type=record["category"],
        meta={"question_id": record["question_id"]},
    )


def hub_shape(record: RawRecord) -> RawRecord:
    # Its question_id is unique within a split only.
    answer = str(record["answer"]).strip().lower()
    return hub_row(record, answers=[answer], type=record["category"])


def labels(split: str) -> Source:
    names = tuple(f"{home}coco_pope_{split}.json" for home in ("coco/", "", "output/coco/"))
    reading = {"identity": partial(llava_id, split=split)}
    return Source(names, f"labels of the {split} split", reading=reading)


class POPE(OfficialBenchmark):
    name = "pope"
    hub = "lmms-lab/POPE"
    headline = "f1"
    chances = dict.fromkeys(SPLITS, 0.5)

    on_hub = Layout(
        ("test",),
        shape=hub_shape,
        expected=("question", "answer", "category"),
        reading={"keys": ("category", "question_id", "question"), "identity": hub_id},
    )
    own = Layout(
        ("llava_pope_test.jsonl",),
        shape=llava,
        expected=(*LLAVA_COLUMNS, "category"),
        reading={"identity": llava_id},
        references=tuple(labels(split) for split in SPLITS),
        media=("val2014", "coco/val2014", "images"),
    )

    def parse_answer(self, answer: Mapping[str, Any]) -> tuple[str, str]:
        row_id, text = super().parse_answer(answer)
        if "category" in answer and "question" in answer:
            row_id = hub_id(answer) or row_id
        return row_id, text

    def score(self, row: Row, prediction: str) -> Score:
        words = prediction.partition(".")[0].replace(",", "").split(" ")
        return Score.of(("no" if NO & set(words) else "yes") == row.answers[0])

    def metrics(self, answers: AnswerArrays) -> dict[str, Metric]:
        metrics: dict[str, Metric] = {}
        splits = sorted(set(answers.types[answers.scored]))
        for split in splits:
            of_split = _metrics(answers, answers.scored & (answers.types == split))
            metrics |= {f"{split}/{name}": metric for name, metric in of_split.items()}
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            of_splits = [metrics[f"{split}/{name}"] for split in splits]
            metrics[name] = weighted_sum(of_splits, 1 / len(splits))
        return metrics


def _metrics(answers: AnswerArrays, rows: Bools) -> dict[str, Metric]:
    references = answers.table["reference"].to_pylist()
    positive = np.array([bool(answer) and answer[0] == "yes" for answer in references], dtype=bool)
    predicted = np.where(answers.correct, positive, ~positive)
    hit, wrong = predicted & positive & rows, (predicted != positive) & rows

    return {
        "accuracy": mean_over(answers.scores, rows),
        "precision": ratio(hit, predicted & rows),
        "recall": ratio(hit, positive & rows),
        "f1": ratio(2.0 * hit, 2.0 * hit + wrong),
        "yes_ratio": mean_over(predicted, rows),
    }


BENCHMARK = POPE()
