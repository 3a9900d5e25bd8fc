"""What the open questions about videos share: Video-LLaVA's folder, no suffix, and a score that is not the judge's.

The folder is `<NAME>_Zero_Shot_QA`, with `test_q.json`, `test_a.json` and the videos, or the folder above it, such as
`GPT_Zero_Shot_QA`. Questions and answers are joined by id. The paper's accuracy and score are a language model's
judgement (`jobs/judge.py`); what a row gets here is whether the reference's words stand in the answer, which is lower
and free.
"""

from __future__ import annotations

from typing import Any

from pipelines.benchmarks.base import Benchmark, Score
from pipelines.benchmarks.joined_manifest import JoinedManifest, DataFolder
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row
from pipelines.metrics.verdicts import Item
from pipelines.metrics.word_match import Offline

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")
OFFLINE = Offline()


def shape(record: RawRecord) -> RawRecord:
    truth = record["truth"]
    return {
        "media": [record.get("video_name", record.get("video"))],
        "question": record["question"],
        "answers": [truth["answer"]],
        "type": truth.get("type"),
    }


class Clips(Benchmark):
    version = "1"
    kind = "video"
    rule = "the reference's words in the answer; NOT the judge that the paper's numbers are from: jobs/judge.py"

    def __init__(self, name: str, folder: str, *homes: str) -> None:
        self.name, self.home, self.homes = name, f"{folder}_Zero_Shot_QA", homes

    def rows(self, data: str, split: str = "test", **how: Any) -> JoinedManifest:
        place = DataFolder.of(self.name, data, how, kind="video")
        found = place.find("questions", "test_q.json", f"{self.home}/test_q.json", named=True)
        home = found.rpartition("/")[0]
        answers = place.find("answers", f"{home}/test_a.json".lstrip("/"))
        return place.rows(
            "JSON",
            place.open(found),
            shape=shape,
            expected=("video_name", "question_id", "question"),
            truth=(place.open(answers),),
            homes=tuple(f"{home}/{each}".strip("/") for each in self.homes),
            suffixes=SUFFIXES,
        )

    def prompt(self, row: Row) -> str:
        return row.question

    def score(self, row: Row, prediction: str) -> Score:
        [verdict] = OFFLINE.judge([Item(row.question, row.answers, prediction)])
        return Score.of(bool(verdict.correct))
