"""MME: fourteen subtasks of two yes-or-no questions an image, one of each answer.

MME's own folder, `MME_Benchmark_release_version` with a folder a subtask (texts of `question TAB answer` beside their
images, or in `questions_answers_YN` and `images`), as it lies in LLaVA's; LLaVA's list of the questions is not needed.
The hub: `lmms-lab/MME`.

An answer is what its first four characters say; one that says neither is wrong. A subtask's points are a hundred times
the share of right answers (acc) plus a hundred times that of images with both right (acc+); ten subtasks are
perception, four cognition, and all together the headline, of 2,800 points. The two questions of an image are found by
the image, not by their lines standing together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from pyarrow import fs

from pipelines.benchmarks.base import Benchmark, Score
from pipelines.benchmarks.joined_manifest import SHORT, JoinedManifest, DataFolder, asked, embedded_row, joined
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row
from pipelines.metrics.answer_metrics import AnswerArrays, Metric, correct_groups, mean_over, weighted_sum

PERCEPTION = (
    *(
        "existence",
        "count",
        "position",
        "color",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
        "OCR",
    ),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = PERCEPTION + COGNITION
RELEASE = "MME_Benchmark_release_version"
HOMES = (RELEASE, f"{RELEASE}/MME_Benchmark", "MME_Benchmark", "")
TEXTS, IMAGES = "questions_answers_YN/", "images/"
SUFFIXES = (".jpg", ".png", ".jpeg")
ASKED = re.compile(r"\s*Please answer yes or no\.\s*$")


def named(image: str, question: str) -> str:
    """One id whoever names the image: `artwork/images/10002.jpg` and `artwork/10002` are the same."""
    image = image.replace(f"/{TEXTS}", "/").replace(f"/{IMAGES}", "/")
    return joined(image.rpartition(".")[0] or image, ASKED.sub("", asked(question.strip(), SHORT)))


def line_id(record: RawRecord) -> str | None:
    """None for what is no question: the zip file has results of others among its folders."""
    subtask = str(record["file"]).partition("/")[0]
    return named(record["file"], record["question"]) if subtask in SUBTASKS else None


def hub_id(record: RawRecord) -> str | None:
    return named(str(record["question_id"]), record["question"])


def release(record: RawRecord) -> RawRecord:
    file = str(record["file"])
    return {
        "media": [file.replace(f"/{TEXTS}", f"/{IMAGES}").removesuffix(".txt")],
        "question": ASKED.sub("", record["question"]),
        "answers": [record["answer"].strip().lower()],
        "type": file.partition("/")[0],
    }


def hub(record: RawRecord) -> RawRecord:
    question = ASKED.sub("", record["question"])
    return {
        **embedded_row(record, answers=[record["answer"].strip().lower()], type=record["category"]),
        "question": question,
    }


class MME(Benchmark):
    name = "mme"
    version = "1"
    kind = "image"
    headline = "total"
    most = 2800.0

    def rows(self, data: str, split: str = "test", **how: Any) -> JoinedManifest:
        place = DataFolder.of(self.name, data, how, "lmms-lab/MME")
        if tables := place.shards("test", keys=("question_id", "question"), identity=hub_id):
            return place.rows(
                "Parquet", *tables, shape=hub, expected=("question", "answer", "category")
            )
        for home in HOMES:
            if any(
                place.type(f"{home}/{each}".lstrip("/")) == fs.FileType.Directory
                for each in SUBTASKS
            ):
                folder = (
                    place.open(home, identity=line_id) if home else place.itself(identity=line_id)
                )
                return place.rows("pairs", folder, shape=release, homes=(home,), suffixes=SUFFIXES)
        raise FileNotFoundError(
            f"{self.name}: there are no subtasks; looked for folders such as {RELEASE}/{PERCEPTION[0]} in {place},"
            " and for the Parquet files of lmms-lab/MME"
        )

    def claim(self, answer: Mapping[str, Any]) -> tuple[str, str]:
        image, text = super().claim(answer)
        return named(image, str(answer.get("prompt", answer.get("question", "")))), text

    def prompt(self, row: Row) -> str:
        return row.question + SHORT

    def score(self, row: Row, prediction: str) -> Score:
        start = prediction.lower()[:4]
        said = "yes" if "yes" in start else "no" if "no" in start else "other"
        return Score.of(said == row.answers[0])

    def figures(self, sheet: AnswerArrays) -> dict[str, Metric]:
        images = np.array(
            ["/".join(str(row_id).split("/")[:2]) for row_id in sheet.ids], dtype=object
        )
        group = np.unique(images, return_inverse=True)[1]
        first, both = correct_groups(sheet, group)
        first &= np.bincount(group)[group] == 2  # an image that a limit has cut has no acc+
        points: dict[str, Metric] = {}
        found: dict[str, Metric] = {"accuracy": mean_over(sheet.worth, sheet.scored)}
        for subtask in sorted(set(sheet.types[sheet.scored])):
            mine = sheet.types == subtask
            right, pair = mean_over(sheet.worth, sheet.scored & mine), mean_over(both, first & mine)
            points[subtask] = weighted_sum([right, pair], 100.0)
            found |= {
                f"{subtask}/acc": right,
                f"{subtask}/acc_plus": pair,
                f"{subtask}/points": points[subtask],
            }
        for name, subtasks in (
            ("perception", PERCEPTION),
            ("cognition", COGNITION),
            ("total", SUBTASKS),
        ):
            found[name] = weighted_sum([points[subtask] for subtask in subtasks if subtask in points])
        return found

    def chance(self, type: str) -> float | None:
        return 0.5


BENCHMARK = MME()
