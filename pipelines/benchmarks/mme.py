"""MME: fourteen subtasks of two yes-or-no questions an image, one with each answer.

A subtask's points are a hundred times the share of right answers (acc) plus a hundred times that of
images with both right (acc+). All subtasks together are the headline, of 2,800 points. The two
questions of an image are found by the image, not by the order of the rows.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.benchmarks.base import Score
from pipelines.benchmarks.official import Layout, OfficialBenchmark
from pipelines.benchmarks.records import bare_question, hub_row, join_id
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row
from pipelines.metrics.answer_metrics import (
    AnswerArrays,
    Metric,
    correct_groups,
    mean_over,
    weighted_sum,
)

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = PERCEPTION + COGNITION
RELEASE = "MME_Benchmark_release_version"
HOMES = (f"{RELEASE}/", f"{RELEASE}/MME_Benchmark/", "MME_Benchmark/", "")
TEXTS, IMAGES = "questions_answers_YN/", "images/"
SUFFIXES = (".jpg", ".png", ".jpeg")
INSTRUCTION = re.compile(r"\s*Please answer yes or no\.\s*$")


def row_id(image: str, question: str) -> str:
    """Return the same id for `artwork/images/10002.jpg` and `artwork/10002`."""
    image = image.replace(f"/{TEXTS}", "/").replace(f"/{IMAGES}", "/")
    text = INSTRUCTION.sub("", bare_question(question.strip()))
    return join_id(image.rpartition(".")[0] or image, text)


def release_id(record: RawRecord) -> str | None:
    """Return None for other lines: the zip file has results of others among its folders."""
    subtask = str(record["file"]).partition("/")[0]
    return row_id(record["file"], record["question"]) if subtask in SUBTASKS else None


def hub_id(record: RawRecord) -> str | None:
    return row_id(str(record["question_id"]), record["question"])


def release(record: RawRecord) -> RawRecord:
    file = str(record["file"])
    return {
        "media": [file.replace(f"/{TEXTS}", f"/{IMAGES}").removesuffix(".txt")],
        "question": INSTRUCTION.sub("", record["question"]),
        "answers": [record["answer"].strip().lower()],
        "type": file.partition("/")[0],
    }


def hub_shape(record: RawRecord) -> RawRecord:
    row = hub_row(record, answers=[record["answer"].strip().lower()], type=record["category"])
    return {**row, "question": INSTRUCTION.sub("", record["question"])}


class MME(OfficialBenchmark):
    name = "mme"
    hub = "lmms-lab/MME"
    headline = "total"
    headline_max = 2800.0
    chances = dict.fromkeys(SUBTASKS, 0.5)

    on_hub = Layout(
        ("test",),
        shape=hub_shape,
        expected=("question", "answer", "category"),
        reading={"keys": ("question_id", "question"), "identity": hub_id},
    )
    own = Layout(
        SUBTASKS,
        shape=release,
        reading={"identity": release_id},
        media=("",),
        homes=HOMES,
        layout="pairs",
        suffixes=SUFFIXES,
    )

    def parse_answer(self, answer: Mapping[str, Any]) -> tuple[str, str]:
        image, text = super().parse_answer(answer)
        return row_id(image, str(answer.get("prompt", answer.get("question", "")))), text

    def score(self, row: Row, prediction: str) -> Score:
        start = prediction.lower()[:4]
        answer = "yes" if "yes" in start else "no" if "no" in start else "other"
        return Score.of(answer == row.answers[0])

    def metrics(self, answers: AnswerArrays) -> dict[str, Metric]:
        images = ["/".join(str(row_id).split("/")[:2]) for row_id in answers.ids]
        group = np.unique(np.array(images, dtype=object), return_inverse=True)[1]
        first, both = correct_groups(answers, group)
        first &= np.bincount(group)[group] == 2  # an image cut by a limit has no acc+
        points: dict[str, Metric] = {}
        metrics = {"accuracy": answers.mean()}
        for subtask in sorted(set(answers.types[answers.scored])):
            rows = answers.types == subtask
            acc, acc_plus = answers.mean(rows), mean_over(both, first & rows)
            points[subtask] = weighted_sum([acc, acc_plus], 100.0)
            metrics |= {
                f"{subtask}/acc": acc,
                f"{subtask}/acc_plus": acc_plus,
                f"{subtask}/points": points[subtask],
            }
        totals = {"perception": PERCEPTION, "cognition": COGNITION, "total": SUBTASKS}
        for name, subtasks in totals.items():
            metrics[name] = weighted_sum([points[task] for task in subtasks if task in points])
        return metrics


BENCHMARK = MME()
