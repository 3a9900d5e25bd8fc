"""MMBench (dev, English): questions with up to four options, repeated for each rotation of them.

Rotations have the index of their question plus a multiple of a million. The headline is circular: a
question counts if all its rotations are right. `plain` is the accuracy of the unrotated ones. The
test split has no answers here: --submission writes the file for its server.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.benchmarks.base import Score, lettered
from pipelines.benchmarks.official import Layout, OfficialBenchmark
from pipelines.benchmarks.records import LETTER, embedded_image
from pipelines.data import spreadsheet
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row
from pipelines.metrics.answer_metrics import AnswerArrays, Metric, correct_groups, mean_over

ROTATION = 1_000_000
LETTERS = "ABCD"
COLUMNS = ("index", "hint", *LETTERS, "l2-category", "L2-category", "split")
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
LAST_WORDS = 4  # of an answer, among which a letter names an option
# Texts that a table reader takes for an empty cell, beside "nan" and "none" in any case.
EMPTY = {"", "#N/A", "<NA>", "N/A", "NA", "NULL", "n/a", "null"}


def row_id(record: RawRecord, split: str) -> str | None:
    """Return a row's id. A file of another split than the requested one is refused."""
    if (row_split := cell(record, "split")) not in ("", split):
        raise ValueError(
            f"there are rows of the split '{row_split}'; expected '{split}'; see --split"
        )
    value = record.get("index")
    return str(int(float(value))) if value not in (None, "") else None


def cell(record: RawRecord, name: str) -> str:
    """Return a cell's text; empty if it is empty in any of the ways it can be."""
    value = record.get(name)
    if isinstance(value, list):
        value = json.dumps(value, ensure_ascii=False)
    text = "" if value is None else str(value)
    return "" if text in EMPTY or text.lower() in ("nan", "none") else text


def shape(record: RawRecord) -> RawRecord:
    options = [cell(record, letter) for letter in LETTERS]
    answer = cell(record, "answer")
    meta = {
        "hint": cell(record, "hint"),
        "l2-category": cell(record, "l2-category") or cell(record, "L2-category"),
        "split": cell(record, "split"),
    }
    return {
        "media": [image(record.get("image"))],
        "question": cell(record, "question"),
        "options": options[: options.index("")] if "" in options else options,
        "answers": [answer] if answer else [],
        "type": cell(record, "category"),
        "meta": {key: value for key, value in meta.items() if value},
    }


def image(value: Any) -> Any:
    """Return the image's bytes, from a hub's struct or from base64 in a cell."""
    if not isinstance(value, str):
        return embedded_image(value)
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise ValueError(f"the image is not valid base64: {value[:20]!r}") from error


def named_option(prediction: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that an answer names, if it names one."""
    words = prediction.translate(MARKS).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - LAST_WORDS:
        return letters[0]
    if len(prediction) > 2 * sum(map(len, options.values())):
        return None
    text = prediction.lower()
    letters = [letter for letter, option in options.items() if option.lower() in text]
    return letters[0] if len(letters) == 1 else None


class MMBench(OfficialBenchmark):
    hub = "lmms-lab/MMBench"
    headline = "circular"

    def __init__(
        self, name: str, config: str, suffix: str, files: Mapping[str, tuple[str, ...]]
    ) -> None:
        """files: names of the table of each split."""
        self.name, self.config, self.suffix, self.files = name, config, suffix, files
        self.hub, self.splits = f"{self.hub}, {config}", tuple(files)

    def layouts(self, split: str) -> tuple[Layout, Layout]:
        identity = partial(row_id, split=split)
        own = Layout(
            self.files[split],
            shape=shape,
            expected=("index", "question", "A", "B", "image"),
            reading={"identity": identity, "keys": ("index",), "columns": COLUMNS},
            layout="CSV",
        )
        return replace(own, names=(split,), configs=(self.config,)), own

    def prompt(self, row: Row) -> str:
        hint = [row.meta["hint"]] if "hint" in row.meta else []
        return "\n".join([*hint, row.question, *lettered(row.options)]) + self.suffix

    def score(self, row: Row, prediction: str) -> Score:
        if not row.answers:
            return Score(None, None)
        options = dict(zip(LETTERS, row.options, strict=False))
        return Score.of(named_option(prediction, options) == row.answers[0])

    def metrics(self, answers: AnswerArrays) -> dict[str, Metric]:
        numbers = np.array([int(row_id) for row_id in answers.ids], dtype=np.int64)
        group = np.unique(numbers % ROTATION, return_inverse=True)[1]
        first, correct = correct_groups(answers, group)
        plain = numbers < ROTATION
        log_chances = np.log(np.nan_to_num(answers.chances, nan=1.0))
        circular_chances = np.exp(np.bincount(group, weights=log_chances))[group]
        metrics = {
            "circular": mean_over(correct, first),
            "plain": answers.mean(plain),
            "every_row": answers.mean(),
            "circular_chance": mean_over(circular_chances, first),
            "plain_chance": mean_over(np.nan_to_num(answers.chances), answers.scored & plain),
        }
        for kinds in (answers.types, answers.meta("l2-category")):
            for kind in answers.scored_keys(kinds):
                rows = kinds == kind
                metrics[f"{kind}/circular"] = mean_over(correct, first & rows)
                metrics[f"{kind}/plain"] = answers.mean(plain & rows)
        return metrics

    def submission(self, answers: pa.Table, data: str | None) -> bytes:
        """Return a spreadsheet of the questions and the model's answers, word for word."""
        rows = sorted(answers.to_pylist(), key=lambda row: int(row["row_id"]))
        names = ["index", "question", *LETTERS, "prediction", "answer", "split"]
        if not any(row["reference"] for row in rows):
            names.remove("answer")
        lines = []
        for row in rows:
            cells = {
                **dict(zip(LETTERS, row["options"] or (), strict=False)),
                "index": int(row["row_id"]),
                "question": row["question"],
                "prediction": row["prediction"],
                "answer": (row["reference"] or [None])[0],
                "split": dict(row["meta"] or ()).get("split"),
            }
            lines.append([cells.get(name) for name in names])
        return spreadsheet.to_xlsx(names, lines)


FILES = {
    "dev": ("mmbench_dev_20230712.tsv", "mmbench_dev_en_20231003.tsv", "MMBench_DEV_EN.tsv"),
    "test": ("mmbench_test_20230712.tsv", "mmbench_test_en_20231003.tsv", "MMBench_TEST_EN.tsv"),
}
BENCHMARK = MMBench("mmbench", "en", LETTER, FILES)
