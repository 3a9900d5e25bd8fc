"""The base of the open questions about videos, in Video-LLaVA's folder.

The folder is `<NAME>_Zero_Shot_QA`, with `test_q.json`, `test_a.json` and the videos, or the folder
above it, such as `GPT_Zero_Shot_QA`. Questions and answers are joined by id. The paper's accuracy
and score are a language model's judgement (`jobs/judge.py`); here a row is right if the reference's
words follow each other in the answer, which is stricter and free.
"""

from pipelines.benchmarks.base import Score
from pipelines.benchmarks.official import Layout, OfficialBenchmark, Source
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row
from pipelines.metrics.word_match import matches, words

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")


def shape(record: RawRecord) -> RawRecord:
    return {
        "media": [record.get("video_name", record.get("video"))],
        "question": record["question"],
        "answers": [record["reference"]["answer"]],
        "type": record["reference"].get("type"),
    }


class VideoQA(OfficialBenchmark):
    kind = "video"
    suffix = ""
    scoring_note = (
        "the reference's words in the answer; NOT the judge that the paper's numbers are from:"
        " jobs/judge.py"
    )

    def __init__(self, name: str, folder: str, *media: str) -> None:
        self.name = name
        self.own = Layout(
            ("test_q.json",),
            shape=shape,
            expected=("video_name", "question_id", "question"),
            references=(Source(("test_a.json",), "answers"),),
            media=media,
            homes=("", f"{folder}_Zero_Shot_QA/"),
            suffixes=SUFFIXES,
        )

    def score(self, row: Row, prediction: str) -> Score:
        return Score.of(any(matches(words(prediction), words(answer)) for answer in row.answers))
