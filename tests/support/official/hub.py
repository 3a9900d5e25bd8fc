"""The data sets of the hub in Parquet."""

from __future__ import annotations

from pathlib import Path

from tests.support.official import rows as by_hand
from tests.support.official.files import embedded, parquet
from tests.support.official.rows import SUBJECT, YES_NO, Table, cells, gqa_types, grade, people


def gqa(folder: Path, rows: Table = by_hand.GQA) -> None:
    lines = [
        {"id": id, "imageId": image, "question": text, "answer": answer, "types": gqa_types(*types)}
        for id, image, text, answer, *types in rows
    ]
    parquet(folder / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet", lines)
    images = [{"id": image, "image": embedded(index)} for index, (_, image, *_) in enumerate(rows)]
    parquet(folder / "testdev_balanced_images" / "testdev-00000-of-00001.parquet", images[::-1])


def pope(folder: Path, rows: Table = by_hand.POPE) -> None:
    lines = [
        {
            "id": str(index),
            "question_id": str(id % 10_000_000),
            "question": f"Is there a {thing} in the image?",
            "answer": label,
            "image_source": image,
            "image": embedded(index // 2),
            "category": split,
        }
        for index, (id, split, image, thing, label) in enumerate(rows)
    ]
    parquet(folder / "data" / "test-00000-of-00001.parquet", lines)


def mme(folder: Path, rows: Table = by_hand.MME) -> None:
    lines = [
        {
            "question_id": f"{subtask}/{image}",
            "image": embedded(index // 2),
            "question": question + YES_NO,
            "answer": answer,
            "category": subtask,
        }
        for index, (subtask, image, question, answer) in enumerate(rows)
    ]
    parquet(folder / "data" / "test-00000-of-00001.parquet", lines)


def scienceqa(folder: Path, rows: Table = by_hand.SCIENCE) -> None:
    lines = [
        {
            "image": embedded(index) if image else None,
            "question": question,
            "choices": choices,
            "answer": answer,
            "hint": hint,
            "grade": grade(id),
            "subject": SUBJECT,
        }
        for index, (id, image, hint, question, choices, answer) in enumerate(rows)
    ]
    parquet(folder / "ScienceQA-FULL" / "test-00000-of-00001.parquet", lines)
    parquet(folder / "ScienceQA-FULL" / "train-00000-of-00001.parquet", lines[:1])


def mmbench(folder: Path, rows: Table = by_hand.BENCH, config: str = "en") -> None:
    lines = []
    for row in rows:
        found = {
            name: None if value in ("", "nan") else value for name, value in cells(*row).items()
        }
        lines.append(
            {**found, "image": embedded(row[0] % 100), "L2-category": found.pop("l2-category")}
        )
    parquet(folder / config / "dev-00000-of-00001.parquet", lines)


def vqav2(folder: Path, rows: Table = by_hand.VQA) -> None:
    lines = [
        {
            "question_id": id,
            "question": question,
            "answers": people(answers),
            "question_type": asked,
            "answer_type": kind,
            "multiple_choice_answer": answers[0],
            "image": embedded(image % 100),
        }
        for id, image, question, answers, asked, kind in rows
    ]
    parquet(folder / "data" / "validation-00000-of-00001.parquet", lines)


def textvqa(folder: Path, rows: Table = by_hand.TEXT) -> None:
    lines = [
        {
            "image": embedded(1),
            "question_id": id,
            "question": question,
            "answers": answers,
            "ocr_tokens": ocr,
        }
        for id, _, question, ocr, answers in rows
    ]
    parquet(folder / "data" / "validation-00000-of-00001.parquet", lines)


def vizwiz(folder: Path, rows: Table = by_hand.VIZ) -> None:
    lines = [
        {
            "image": embedded(index),
            "question_id": image.format("val"),
            "question": question,
            "answers": answers,
            "category": kind,
        }
        for index, (image, question, answers, kind) in enumerate(rows)
    ]
    parquet(folder / "data" / "val-00000-of-00001.parquet", lines)
    parquet(folder / "data" / "test-00000-of-00001.parquet", lines[:1])
