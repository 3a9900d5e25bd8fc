"""The folders of LLaVA's, Video-LLaVA's and the benchmarks' own evaluation."""

from __future__ import annotations

import base64
import csv
from pathlib import Path

from tests.support.official import rows as by_hand
from tests.support.official.files import as_json, clip, jsonl, media, png
from tests.support.official.rows import (
    SHORT,
    SPLITS,
    SUBJECT,
    UNANSWERABLE,
    YES_NO,
    Table,
    cells,
    gqa_types,
    grade,
    people,
)


def gqa(folder: Path, rows: Table = by_hand.GQA) -> None:
    lines = [
        {"question_id": id, "image": f"{image}.jpg", "text": text + SHORT, "category": "default"}
        for id, image, text, *_ in rows
    ]
    jsonl(folder / "llava_gqa_testdev_balanced.jsonl", lines)
    truth = {
        id: {
            "question": text,
            "answer": answer,
            "isBalanced": True,
            "imageId": image,
            "types": gqa_types(*types),
        }
        for id, image, text, answer, *types in reversed(rows)
    }
    as_json(folder / "data" / "testdev_balanced_questions.json", {"1": {"answer": "x"}, **truth})
    media(folder / "data" / "images", *(f"{image}.jpg" for _, image, *_ in rows))


def pope(folder: Path, rows: Table = by_hand.POPE) -> None:
    lines = [
        {
            "question_id": id,
            "image": image,
            "text": f"Is there a {thing} in the image?{SHORT}",
            "category": split,
        }
        for id, split, image, thing, _ in rows
    ]
    jsonl(folder / "llava_pope_test.jsonl", lines)
    for each in SPLITS:
        labels = [
            {
                "question_id": id % 10_000_000,
                "image": image,
                "text": f"Is there a {thing} in the image?",
                "label": label,
            }
            for id, split, image, thing, label in reversed(rows)  # the order must not matter
            if split == each
        ]
        jsonl(folder / "coco" / f"coco_pope_{each}.json", labels)
    media(folder / "val2014", *{image for _, _, image, *_ in rows})


def mme(folder: Path, rows: Table = by_hand.MME) -> None:
    home = folder / "MME_Benchmark_release_version"
    for index, (subtask, image, question, answer) in enumerate(rows):
        nested = subtask == "artwork"
        texts = home / subtask / ("questions_answers_YN" if nested else "")
        texts.mkdir(parents=True, exist_ok=True)
        space = " " if index % 3 == 0 else ""  # some of the originals have two
        with (texts / f"{image.partition('.')[0]}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{question}{space}{YES_NO}\t{answer}\n")
        media(home / subtask, f"images/{image}" if nested else image)
    (home / "eval_tool" / "LaVIN").mkdir(parents=True)
    (home / "eval_tool" / "LaVIN" / "existence.txt").write_text(
        f"000006.jpg\tIs there a car?{YES_NO}\tYes\tyes\n"
    )


def scienceqa(folder: Path, rows: Table = by_hand.SCIENCE) -> None:
    questions = []
    for id, image, hint, question, choices, answer in rows:
        lines = [*([f"Context: {hint}"] if hint else []), question]
        lines += [f"{letter}. {choice}" for letter, choice in zip("ABCDE", choices, strict=False)]
        turns = [
            {"from": "human", "value": "<image>\n" * image + "\n".join(lines)},
            {"from": "gpt", "value": "ABCDE"[answer]},
        ]
        questions.append(
            {"id": id, **({"image": f"{id}/image.png"} if image else {}), "conversations": turns}
        )
    as_json(folder / "llava_test_CQM-A.json", questions, indent=2)
    as_json(
        folder / "problems.json", {id: {"subject": SUBJECT, "grade": grade(id)} for id, *_ in rows}
    )
    media(folder / "images" / "test", *(f"{id}/image.png" for id, image, *_ in rows if image))


def mmbench(
    folder: Path, rows: Table = by_hand.BENCH, name: str = "mmbench_dev_20230712.tsv"
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        lines = [
            {**cells(*row), "image": base64.b64encode(png(row[0] % 100)).decode()} for row in rows
        ]
        writer = csv.DictWriter(file, list(lines[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def vqav2(folder: Path, rows: Table = by_hand.VQA) -> None:
    lines = [
        {"question_id": id, "image_id": image, "question": question}
        for id, image, question, *_ in rows
    ]
    as_json(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json",
        {"info": {"n": [1]}, "questions": lines, "n": 3},
    )
    truth = [
        {"question_id": id, "answers": people(answers), "question_type": asked, "answer_type": kind}
        for id, _, _, answers, asked, kind in reversed(rows)
    ]
    as_json(folder / "v2_mscoco_val2014_annotations.json", {"license": "x", "annotations": truth})
    media(folder / "val2014", *{f"COCO_val2014_{image:012}.jpg" for _, image, *_ in rows})


def vqav2_test(folder: Path, rows: Table = by_hand.VQA) -> None:
    lines = [
        {
            "question_id": id,
            "image": f"COCO_test2015_{image:012}.jpg",
            "text": question + SHORT,
            "category": "default",
        }
        for id, image, question, *_ in rows
    ]
    jsonl(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", lines)
    jsonl(folder / "llava_vqav2_mscoco_test2015.jsonl", [{**lines[0], "question_id": 7}, *lines])
    media(folder / "test2015", *{row["image"] for row in lines})


def textvqa(folder: Path, rows: Table = by_hand.TEXT) -> None:
    lines = [
        {
            "question_id": image,
            "image": f"{image}.jpg",
            "text": f"{question}\nReference OCR token: {', '.join(ocr)}{SHORT}",
            "category": "default",
        }
        for _, image, question, ocr, _ in rows
    ]
    jsonl(folder / "llava_textvqa_val_v051_ocr.jsonl", lines)
    truth = [
        {"image_id": image, "question_id": id, "question": question.lower(), "answers": answers}
        for id, image, question, _, answers in reversed(rows)
    ]
    as_json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": truth})
    media(folder / "train_images", *{f"{image}.jpg" for _, image, *_ in rows})


def vizwiz(folder: Path, rows: Table = by_hand.VIZ) -> None:
    lines = [
        {
            "question_id": index,
            "image": image.format("test"),
            "text": question + UNANSWERABLE + SHORT,
            "category": "d",
        }
        for index, (image, question, *_) in enumerate(rows)
    ]
    jsonl(folder / "llava_test.jsonl", lines)
    media(folder / "test", *(row["image"] for row in lines))


def vizwiz_val(folder: Path, rows: Table = by_hand.VIZ) -> None:
    lines = [
        {
            "image": image.format("val"),
            "question": question,
            "answers": people(answers),
            "answer_type": kind,
            "answerable": int(kind == "other"),
        }
        for image, question, answers, kind in rows
    ]
    as_json(folder / "Annotations" / "val.json", lines)
    media(folder / "val", *(row["image"] for row in lines))


def clips(folder: Path, rows: Table = by_hand.CLIPS, *, name: str, home: str) -> None:
    base = folder / f"{name}_Zero_Shot_QA"
    lines = [
        {"video_name": video, "question_id": id, "question": question}
        for video, id, question, _ in rows
    ]
    as_json(base / "test_q.json", lines, indent=2)
    answers = [
        {"answer": answer, "type": 3, "question_id": id} for _, id, _, answer in reversed(rows)
    ]
    as_json(base / "test_a.json", answers)
    for index, (video, *_) in enumerate(rows):
        clip(base / home / f"{video}.avi", index)
