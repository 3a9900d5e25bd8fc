"""The official benchmarks in miniature: each layout as it lies on disk, with a few rows of its own."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (12, 8), (shade, 0, 0)).save(sink, format="PNG")
    return sink.getvalue()


def media(folder: Path, *names: str) -> None:
    for place, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(place))


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_json(path: Path, value: Any, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, **how))


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    table = {name: pa.array(found, PICTURE) if name == "image" else pa.array(found) for name, found in columns.items()}
    pq.write_table(pa.table(table), path)


def embedded(shade: int) -> dict[str, Any]:
    return {"bytes": png(shade), "path": "image.png"}


GQA = [  # id, image, question, answer, structural, semantic
    ("201307251", "n161313", "Is it overcast?", "no", "verify", "global"),
    ("201640614", "n235859", "Who is wearing the dress?", "woman", "query", "rel"),
    ("202225914", "n336443", "Does the fence look red or blue?", "red", "choose", "attr"),
]


def gqa(folder: Path) -> None:
    rows = [
        {"question_id": id, "image": f"{image}.jpg", "text": text + SHORT, "category": "default"}
        for id, image, text, *_ in GQA
    ]
    jsonl(folder / "llava_gqa_testdev_balanced.jsonl", rows)
    truth = {
        id: {"question": text, "answer": answer, "isBalanced": True, "imageId": image, "types": _gqa_types(*types)}
        for id, image, text, answer, *types in reversed(GQA)
    }
    as_json(folder / "data" / "testdev_balanced_questions.json", {"1": {"answer": "x"}, **truth})
    media(folder / "data" / "images", *(f"{image}.jpg" for _, image, *_ in GQA))


def _gqa_types(structural: str, semantic: str) -> dict[str, str]:
    return {"structural": structural, "semantic": semantic, "detailed": "d"}


def gqa_hub(folder: Path) -> None:
    rows = [
        {"id": id, "imageId": image, "question": text, "answer": answer, "types": _gqa_types(*types)}
        for id, image, text, answer, *types in GQA
    ]
    parquet(folder / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet", rows)
    images = [{"id": image, "image": embedded(place)} for place, (_, image, *_) in enumerate(GQA)]
    parquet(folder / "testdev_balanced_images" / "testdev-00000-of-00001.parquet", images[::-1])


POPE = [  # question_id, split, image, thing, label
    (1, "adversarial", "COCO_val2014_000000310196.jpg", "snowboard", "yes"),
    (2, "adversarial", "COCO_val2014_000000310196.jpg", "car", "no"),
    (20000001, "popular", "COCO_val2014_000000310196.jpg", "snowboard", "yes"),
    (20000002, "popular", "COCO_val2014_000000310196.jpg", "dining table", "no"),
    (10000001, "random", "COCO_val2014_000000210789.jpg", "person", "yes"),
    (10000002, "random", "COCO_val2014_000000210789.jpg", "boat", "no"),
]


def pope(folder: Path) -> None:
    rows = [
        {"question_id": id, "image": image, "text": f"Is there a {thing} in the image?{SHORT}", "category": split}
        for id, split, image, thing, _ in POPE
    ]
    jsonl(folder / "llava_pope_test.jsonl", rows)
    for each in ("adversarial", "popular", "random"):
        labels = [
            {
                "question_id": id % 10_000_000,
                "image": image,
                "text": f"Is there a {thing} in the image?",
                "label": label,
            }
            for id, split, image, thing, label in reversed(POPE)  # the order must not matter
            if split == each
        ]
        jsonl(folder / "coco" / f"coco_pope_{each}.json", labels)
    media(folder / "val2014", *{image for _, _, image, *_ in POPE})


def pope_hub(folder: Path) -> None:
    rows = [
        {
            "id": str(place),
            "question_id": str(id % 10_000_000),
            "question": f"Is there a {thing} in the image?",
            "answer": label,
            "image_source": image,
            "image": embedded(place // 2),
            "category": split,
        }
        for place, (id, split, image, thing, label) in enumerate(POPE)
    ]
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows)


MME = [  # subtask, image, question, answer
    ("existence", "000006.jpg", "Is there a car in this image?", "Yes"),
    ("existence", "000006.jpg", "Is there a dog in this image?", "No"),
    ("existence", "000009.jpg", "Is there a cup in this image?", "Yes"),
    ("existence", "000009.jpg", "Is there a cat in this image?", "No"),
    ("artwork", "10002.jpg", "Is this artwork titled ça?", "Yes"),
    ("artwork", "10002.jpg", "Is this artwork titled the sun?", "No"),
    ("code_reasoning", "0020.png", "Is a python code shown?", "Yes"),
    ("code_reasoning", "0020.png", "Is a c++ code shown?", "No"),
]
YES_NO = " Please answer yes or no."


def mme(folder: Path) -> None:
    home = folder / "MME_Benchmark_release_version"
    for place, (subtask, image, question, answer) in enumerate(MME):
        nested = subtask == "artwork"
        texts = home / subtask / ("questions_answers_YN" if nested else "")
        texts.mkdir(parents=True, exist_ok=True)
        space = " " if place % 3 == 0 else ""  # some of the originals have two
        with (texts / f"{image.partition('.')[0]}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{question}{space}{YES_NO}\t{answer}\n")
        media(home / subtask, f"images/{image}" if nested else image)
    (home / "eval_tool" / "LaVIN").mkdir(parents=True)
    (home / "eval_tool" / "LaVIN" / "existence.txt").write_text(f"000006.jpg\tIs there a car?{YES_NO}\tYes\tyes\n")


def mme_hub(folder: Path) -> None:
    rows = [
        {
            "question_id": f"{subtask}/{image}",
            "image": embedded(place // 2),
            "question": question + YES_NO,
            "answer": answer,
            "category": subtask,
        }
        for place, (subtask, image, question, answer) in enumerate(MME)
    ]
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows)


SCIENCE = [  # id, image, hint, question, choices, answer
    ("4", False, "", "Which is it?\nSing,\n—Homer", ["chiasmus", "apostrophe"], 1),
    ("5", True, "Read the passage.\nFigure: snow.", "Which could show it?", ["a test", "two\nlines", "none of it"], 0),
    ("11", True, "", "Which is farther north?", ["Ohio", "Texas"], 0),
]


def scienceqa(folder: Path) -> None:
    rows = []
    for id, image, hint, question, choices, answer in SCIENCE:
        lines = [*([f"Context: {hint}"] if hint else []), question]
        lines += [f"{letter}. {choice}" for letter, choice in zip("ABCDE", choices, strict=False)]
        turns = [
            {"from": "human", "value": "<image>\n" * image + "\n".join(lines)},
            {"from": "gpt", "value": "ABCDE"[answer]},
        ]
        rows.append({"id": id, **({"image": f"{id}/image.png"} if image else {}), "conversations": turns})
    as_json(folder / "llava_test_CQM-A.json", rows, indent=2)
    problems = {id: {"subject": "natural science", "grade": f"grade{2 * int(id) % 12 + 1}"} for id, *_ in SCIENCE}
    as_json(folder / "problems.json", problems)
    media(folder / "images" / "test", "5/image.png", "11/image.png")


def scienceqa_hub(folder: Path) -> None:
    rows = [
        {
            "image": embedded(place) if image else None,
            "question": question,
            "choices": choices,
            "answer": answer,
            "hint": hint,
            "grade": f"grade{2 * int(id) % 12 + 1}",
            "subject": "natural science",
        }
        for place, (id, image, hint, question, choices, answer) in enumerate(SCIENCE)
    ]
    parquet(folder / "ScienceQA-FULL" / "test-00000-of-00001.parquet", rows)
    parquet(folder / "ScienceQA-FULL" / "train-00000-of-00001.parquet", rows[:1])


BENCH = [  # index, hint, question, options, answer, category; the second question has all rotations
    (241, "A passage.", "What can it answer?", ["wax or none", "thin or thick"], "B", "reasoning"),
    (1_000_241, "A passage.", "What can it answer?", ["thin or thick", "wax or none"], "A", "reasoning"),
    (305, "nan", 'What is "this"?', ["a cat", "a dog", "None", "x"], "A", "identity"),
]


def _bench(index: int, hint: str, question: str, options: list[str], answer: str, category: str) -> dict[str, Any]:
    cells = dict(zip("ABCD", [*options, "", ""], strict=False))
    return {
        "index": index,
        "question": question,
        "hint": hint,
        **cells,
        "answer": answer,
        "category": category,
        "source": "s",
        "l2-category": f"{category}_2",
        "comment": "nan",
        "split": "dev",
    }


def mmbench(folder: Path, name: str = "mmbench_dev_20230712.tsv") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        rows = [{**_bench(*row), "image": base64.b64encode(png(row[0] % 100)).decode()} for row in BENCH]
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def mmbench_hub(folder: Path, config: str = "en") -> None:
    rows = []
    for row in BENCH:
        found = {name: None if value in ("", "nan") else value for name, value in _bench(*row).items()}
        rows.append({**found, "image": embedded(row[0] % 100), "L2-category": found.pop("l2-category")})
    parquet(folder / config / "dev-00000-of-00001.parquet", rows)


VQA = [  # question_id, image, question, answers of ten people, question type, answer type
    (262148000, 262148, "Where is he looking?", ["down"] * 6 + ["at table"] * 4, "where is", "other"),
    (262148001, 262148, "Is it open?", ["yes"] * 9 + ["no"], "is it", "yes/no"),
    (393225000, 393225, "How many dogs?", ["2"] * 2 + ["3"] * 8, "how many", "number"),
]


def _people(answers: Sequence[str]) -> list[dict[str, Any]]:
    return [{"answer": each, "answer_confidence": "yes", "answer_id": place} for place, each in enumerate(answers, 1)]


def vqav2(folder: Path) -> None:
    rows = [{"question_id": id, "image_id": image, "question": question} for id, image, question, *_ in VQA]
    as_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"info": {"n": [1]}, "questions": rows, "n": 3})
    truth = [
        {"question_id": id, "answers": _people(answers), "question_type": asked, "answer_type": kind}
        for id, _, _, answers, asked, kind in reversed(VQA)
    ]
    as_json(folder / "v2_mscoco_val2014_annotations.json", {"license": "x", "annotations": truth})
    media(folder / "val2014", *{f"COCO_val2014_{image:012}.jpg" for _, image, *_ in VQA})


def vqav2_test(folder: Path) -> None:
    rows = [
        {"question_id": id, "image": f"COCO_test2015_{image:012}.jpg", "text": question + SHORT, "category": "default"}
        for id, image, question, *_ in VQA
    ]
    jsonl(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", rows)
    jsonl(folder / "llava_vqav2_mscoco_test2015.jsonl", [{**rows[0], "question_id": 7}, *rows])
    media(folder / "test2015", *{row["image"] for row in rows})


def vqav2_hub(folder: Path) -> None:
    rows = [
        {
            "question_id": id,
            "question": question,
            "answers": _people(answers),
            "question_type": asked,
            "answer_type": kind,
            "multiple_choice_answer": answers[0],
            "image": embedded(image % 100),
        }
        for id, image, question, answers, asked, kind in VQA
    ]
    parquet(folder / "data" / "validation-00000-of-00001.parquet", rows)


TEXT = [  # question_id, image, question, OCR, answers
    (34602, "003a8ae2ef43b901", "What is the brand?", ["DAKOTA", "Single-Use"], ["dakota"] * 9 + ["nous les gosses"]),
    (34603, "003a8ae2ef43b901", "What does it say?", [], ["nothing"] * 5 + ["unanswerable"] * 5),
]


def textvqa(folder: Path) -> None:
    rows = [
        {
            "question_id": image,
            "image": f"{image}.jpg",
            "text": f"{question}\nReference OCR token: {', '.join(ocr)}{SHORT}",
            "category": "default",
        }
        for _, image, question, ocr, _ in TEXT
    ]
    jsonl(folder / "llava_textvqa_val_v051_ocr.jsonl", rows)
    truth = [
        {"image_id": image, "question_id": id, "question": question.lower(), "answers": answers}
        for id, image, question, _, answers in reversed(TEXT)
    ]
    as_json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": truth})
    media(folder / "train_images", "003a8ae2ef43b901.jpg")


def textvqa_hub(folder: Path) -> None:
    rows = [
        {"image": embedded(1), "question_id": id, "question": question, "answers": answers, "ocr_tokens": ocr}
        for id, _, question, ocr, answers in TEXT
    ]
    parquet(folder / "data" / "validation-00000-of-00001.parquet", rows)


VIZ = [
    ("VizWiz_{}_00000000.jpg", "Ok. There is another picture. ", ["unanswerable"] * 10, "unanswerable"),
    ("VizWiz_{}_00000001.jpg", "What is this?", ["basil"] * 3 + ["basil leaves"] * 7, "other"),
]


def vizwiz(folder: Path) -> None:
    rows = [
        {"question_id": place, "image": image.format("test"), "text": question + UNANSWERABLE + SHORT, "category": "d"}
        for place, (image, question, *_) in enumerate(VIZ)
    ]
    jsonl(folder / "llava_test.jsonl", rows)
    media(folder / "test", *(row["image"] for row in rows))


def vizwiz_val(folder: Path) -> None:
    rows = [
        {
            "image": image.format("val"),
            "question": question,
            "answers": _people(answers),
            "answer_type": kind,
            "answerable": int(kind == "other"),
        }
        for image, question, answers, kind in VIZ
    ]
    as_json(folder / "Annotations" / "val.json", rows)
    media(folder / "val", *(row["image"] for row in rows))


def vizwiz_hub(folder: Path) -> None:
    rows = [
        {
            "image": embedded(place),
            "question_id": image.format("val"),
            "question": question,
            "answers": answers,
            "category": kind,
        }
        for place, (image, question, answers, kind) in enumerate(VIZ)
    ]
    parquet(folder / "data" / "val-00000-of-00001.parquet", rows)
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows[:1])


CLIPS = [
    ("jfrrO5K_vKM_55_65", "v_jfrrO5K_vKM_55_65_0", "who opened the box?", "someone"),
    ("jjl2ZMdFCsw_130_142", "v_jjl2ZMdFCsw_130_142_7", "how many men are there?", "two"),
]


def clips(folder: Path, name: str, home: str) -> None:
    base = folder / f"{name}_Zero_Shot_QA"
    rows = [{"video_name": video, "question_id": id, "question": question} for video, id, question, _ in CLIPS]
    as_json(base / "test_q.json", rows, indent=2)
    answers = [{"answer": answer, "type": 3, "question_id": id} for _, id, _, answer in reversed(CLIPS)]
    as_json(base / "test_a.json", answers)
    for video, *_ in CLIPS:
        path = base / home / f"{video}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"RIFF")


Writer = Callable[[Path], None]
LAYOUTS: dict[str, tuple[str, str, Writer]] = {  # test's name -> benchmark, split, who writes it
    "gqa": ("gqa", "test", gqa),
    "gqa of the hub": ("gqa", "test", gqa_hub),
    "mmbench": ("mmbench", "test", mmbench),
    "mmbench of the hub": ("mmbench", "test", mmbench_hub),
    "mmbench_cn": ("mmbench_cn", "dev", lambda folder: mmbench(folder, "mmbench_dev_cn_20231003.tsv")),
    "mmbench_cn of the hub": ("mmbench_cn", "test", lambda folder: mmbench_hub(folder, "cn")),
    "mme": ("mme", "test", mme),
    "mme of the hub": ("mme", "test", mme_hub),
    "pope": ("pope", "test", pope),
    "pope of the hub": ("pope", "test", pope_hub),
    "scienceqa": ("scienceqa", "test", scienceqa),
    "scienceqa of the hub": ("scienceqa", "test", scienceqa_hub),
    "vqav2 val": ("vqav2", "val", vqav2),
    "vqav2 test": ("vqav2", "test", vqav2_test),
    "vqav2 of the hub": ("vqav2", "val", vqav2_hub),
    "textvqa": ("textvqa", "test", textvqa),
    "textvqa of the hub": ("textvqa", "test", textvqa_hub),
    "vizwiz test": ("vizwiz", "test", vizwiz),
    "vizwiz val": ("vizwiz", "val", vizwiz_val),
    "vizwiz of the hub": ("vizwiz", "val", vizwiz_hub),
    "tgif": ("tgif", "test", lambda folder: clips(folder, "TGIF", "mp4")),
    "msvd": ("msvd", "test", lambda folder: clips(folder, "MSVD", "videos")),
    "msrvtt": ("msrvtt", "test", lambda folder: clips(folder, "MSRVTT", "videos/all")),
}
