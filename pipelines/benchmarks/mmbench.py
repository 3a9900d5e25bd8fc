"""MMBench (dev, English): questions with up to four options, each asked once for every rotation of its options.

LLaVA's folder: `mmbench_dev_20230712.tsv`, with the images in it. The hub: `lmms-lab/MMBench`, configuration `en`.
Rotations have the index of their question plus a multiple of a million.

The headline is circular: a question counts if all its rotations are right. `plain` looks at the unrotated ones alone.
An answer names an option by its letter, if one of its last four words is one and no other letter of an option is
among its words, else by the text of one option that is in it; otherwise it is wrong. (The benchmark's own server then
asks a language model.) The test split has no answers here: --submission writes the file for its server.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.benchmarks.base import Benchmark, Score
from pipelines.benchmarks.joined_manifest import LETTER, JoinedManifest, DataFolder, embedded
from pipelines.data import spreadsheet
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Row
from pipelines.metrics.answer_metrics import AnswerArrays, Metric, correct_groups, mean_over

ROTATION = 1_000_000
LETTERS = "ABCD"
COLUMNS = ("index", "hint", "A", "B", "C", "D", "l2-category", "L2-category", "split")
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
LATE = 4  # words from the end among which a letter is an answer
NOTHING = {
    "",
    "#N/A",
    "<NA>",
    "N/A",
    "NA",
    "NULL",
    "n/a",
    "null",
}  # what a table reader takes for an empty cell


class Index:
    """A row's id; a file of another split than was asked for is refused."""

    def __init__(self, split: str) -> None:
        self.split = split

    def __call__(self, record: RawRecord) -> str | None:
        if (said := cell(record, "split")) not in ("", self.split):
            raise ValueError(
                f"there are rows of the split '{said}', and asked for is '{self.split}'; see --split"
            )
        value = record.get("index")
        return str(int(float(value))) if value not in (None, "") else None


def cell(record: RawRecord, name: str) -> str:
    """A cell's text; empty if it is empty in any of the ways it can be."""
    value = record.get(name)
    text = (
        json.dumps(value, ensure_ascii=False)
        if isinstance(value, list)
        else ""
        if value is None
        else str(value)
    )
    return "" if text in NOTHING or text.lower() in ("nan", "none") else text


def row(record: RawRecord) -> RawRecord:
    options = []
    for letter in LETTERS:
        if not (option := cell(record, letter)):
            break
        options.append(option)
    answer = cell(record, "answer")
    meta = {
        "hint": cell(record, "hint"),
        "l2-category": cell(record, "l2-category") or cell(record, "L2-category"),
        "split": cell(record, "split"),
    }
    return {
        "media": [picture(record.get("image"))],
        "question": cell(record, "question"),
        "options": options,
        "answers": [answer] if answer else [],
        "type": cell(record, "category"),
        "meta": {key: value for key, value in meta.items() if value},
    }


def picture(value: Any) -> Any:
    """The image's bytes, from a hub's struct or from base64 in a cell."""
    if not isinstance(value, str):
        return embedded(value)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the image is no base64: {value[:20]!r}") from error


def chosen(prediction: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer names, if it names one."""
    words = prediction.translate(MARKS).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - LATE:
        return named[0]
    if len(prediction) > 2 * sum(map(len, options.values())):
        return None
    said = [letter for letter, option in options.items() if option.lower() in prediction.lower()]
    return said[0] if len(said) == 1 else None


class MMBench(Benchmark):
    version = "1"
    kind = "image"
    headline = "circular"

    def __init__(
        self, name: str, config: str, suffix: str, files: Mapping[str, tuple[str, ...]]
    ) -> None:
        self.name, self.config, self.suffix, self.files = name, config, suffix, files

    def rows(self, data: str, split: str = "dev", **how: Any) -> JoinedManifest:
        place = DataFolder.of(self.name, data, how, f"lmms-lab/MMBench, {self.config}", splits=True)
        if split not in self.files:
            raise ValueError(
                f"{self.name} has no split '{split}'; it has {' and '.join(self.files)}"
            )
        known: dict[str, Any] = {"identity": Index(split), "keys": ("index",), "columns": COLUMNS}
        expected = ("index", "question", "A", "B", "image")
        if tables := place.shards(split, config=(self.config,), **known):
            return place.rows("Parquet", *tables, shape=row, expected=expected)
        table = place.open(place.find("questions", *self.files[split], named=True), **known)
        return place.rows("CSV", table, shape=row, expected=expected)

    def prompt(self, row: Row) -> str:
        lines = [row.meta["hint"]] if "hint" in row.meta else []
        lines += [
            row.question,
            *(f"{letter}. {text}" for letter, text in zip(LETTERS, row.options, strict=False)),
        ]
        return "\n".join(lines) + self.suffix

    def score(self, row: Row, prediction: str) -> Score:
        if not row.answers:
            return Score(None, None)
        return Score.of(
            chosen(prediction, dict(zip(LETTERS, row.options, strict=False))) == row.answers[0]
        )

    def figures(self, sheet: AnswerArrays) -> dict[str, Metric]:
        numbers = np.array([int(row_id) for row_id in sheet.ids], dtype=np.int64)
        group = np.unique(numbers % ROTATION, return_inverse=True)[1]
        first, right = correct_groups(sheet, group)
        base = sheet.scored & (numbers < ROTATION)
        guessed = np.exp(np.bincount(group, weights=np.log(np.nan_to_num(sheet.chances, nan=1.0))))[
            group
        ]
        found = {
            "circular": mean_over(right, first),
            "plain": mean_over(sheet.worth, base),
            "every_row": mean_over(sheet.worth, sheet.scored),
            "circular_chance": mean_over(guessed, first),
            "plain_chance": mean_over(np.nan_to_num(sheet.chances), base),
        }
        for kinds in (sheet.types, sheet.meta("l2-category")):
            for kind in sorted(set(kinds[sheet.scored]) - {""}):
                mine = kinds == kind
                found |= {
                    f"{kind}/circular": mean_over(right, first & mine),
                    f"{kind}/plain": mean_over(sheet.worth, base & mine),
                }
        return found

    def submission(self, answers: pa.Table, data: str | None) -> bytes:
        """A spreadsheet of the questions, with what the model said word for word."""
        table = sorted(answers.to_pylist(), key=lambda each: int(each["row_id"]))
        given = any(each["reference"] for each in table)
        header = [
            "index",
            "question",
            *LETTERS,
            "prediction",
            *(["answer"] if given else []),
            "split",
        ]
        lines = []
        for each in table:
            options = [*(each["options"] or []), *[None] * len(LETTERS)][: len(LETTERS)]
            answer = [(each["reference"] or [None])[0]] if given else []
            part = dict(each["meta"] or ()).get("split")
            lines.append(
                [int(each["row_id"]), each["question"], *options, each["prediction"], *answer, part]
            )
        return spreadsheet.to_xlsx(header, lines)


FILES = {
    "dev": ("mmbench_dev_20230712.tsv", "mmbench_dev_en_20231003.tsv", "MMBench_DEV_EN.tsv"),
    "test": ("mmbench_test_20230712.tsv", "mmbench_test_en_20231003.tsv", "MMBench_TEST_EN.tsv"),
}
BENCHMARK = MMBench("mmbench", "en", LETTER, FILES)
