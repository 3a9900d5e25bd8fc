"""Rows of the fixtures: a few odd ones of each benchmark by hand, and ten plain ones for a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
CHINESE = "\n请直接回答选项字母。"
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
YES_NO = " Please answer yes or no."
SUBJECT = "natural science"
SUFFIX = {  # the end of each benchmark's prompts
    **dict.fromkeys(("gqa", "mme", "pope", "vqav2", "textvqa"), SHORT),
    **dict.fromkeys(("mmbench", "scienceqa"), LETTER),
    **dict.fromkeys(("tgif", "msvd", "msrvtt"), "?"),
    "mmbench_cn": CHINESE,
    "vizwiz": UNANSWERABLE + SHORT,
}
SPLITS = ("adversarial", "popular", "random")

Table = Sequence[tuple[Any, ...]]

GQA = [  # id, image, question, answer, structural, semantic
    ("201307251", "n161313", "Is it overcast?", "no", "verify", "global"),
    ("201640614", "n235859", "Who is wearing the dress?", "woman", "query", "rel"),
    ("202225914", "n336443", "Does the fence look red or blue?", "red", "choose", "attr"),
]

POPE = [  # question_id, split, image, thing, label
    (1, "adversarial", "COCO_val2014_000000310196.jpg", "snowboard", "yes"),
    (2, "adversarial", "COCO_val2014_000000310196.jpg", "car", "no"),
    (20000001, "popular", "COCO_val2014_000000310196.jpg", "snowboard", "yes"),
    (20000002, "popular", "COCO_val2014_000000310196.jpg", "dining table", "no"),
    (10000001, "random", "COCO_val2014_000000210789.jpg", "person", "yes"),
    (10000002, "random", "COCO_val2014_000000210789.jpg", "boat", "no"),
]

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

SCIENCE = [  # id, image, hint, question, choices, answer
    ("4", False, "", "Which is it?\nSing,\n—Homer", ["chiasmus", "apostrophe"], 1),
    (
        "5",
        True,
        "Read the passage.\nFigure: snow.",
        "Which could show it?",
        ["a test", "two\nlines", "none of it"],
        0,
    ),
    ("11", True, "", "Which is farther north?", ["Ohio", "Texas"], 0),
]

BENCH = [  # index, hint, question, options, answer, category; the second question has all rotations
    (241, "A passage.", "What can it answer?", ["wax or none", "thin or thick"], "B", "reasoning"),
    (
        1_000_241,
        "A passage.",
        "What can it answer?",
        ["thin or thick", "wax or none"],
        "A",
        "reasoning",
    ),
    (305, "nan", 'What is "this"?', ["a cat", "a dog", "None", "x"], "A", "identity"),
]

VQA = [  # question_id, image, question, answers of ten people, question type, answer type
    (
        262148000,
        262148,
        "Where is he looking?",
        ["down"] * 6 + ["at table"] * 4,
        "where is",
        "other",
    ),
    (262148001, 262148, "Is it open?", ["yes"] * 9 + ["no"], "is it", "yes/no"),
    (393225000, 393225, "How many dogs?", ["2"] * 2 + ["3"] * 8, "how many", "number"),
]

TEXT = [  # question_id, image, question, OCR, answers
    (
        34602,
        "003a8ae2ef43b901",
        "What is the brand?",
        ["DAKOTA", "Single-Use"],
        ["dakota"] * 9 + ["nous les gosses"],
    ),
    (34603, "003a8ae2ef43b901", "What does it say?", [], ["nothing"] * 5 + ["unanswerable"] * 5),
]

VIZ = [
    (
        "VizWiz_{}_00000000.jpg",
        "Ok. There is another picture. ",
        ["unanswerable"] * 10,
        "unanswerable",
    ),
    ("VizWiz_{}_00000001.jpg", "What is this?", ["basil"] * 3 + ["basil leaves"] * 7, "other"),
]

CLIPS = [
    ("jfrrO5K_vKM_55_65", "v_jfrrO5K_vKM_55_65_0", "who opened the box?", "someone"),
    ("jjl2ZMdFCsw_130_142", "v_jjl2ZMdFCsw_130_142_7", "how many men are there?", "two"),
]

TEN: dict[str, list[Any]] = {  # by benchmark
    "gqa": [
        (f"2{n}", f"n{n}", f"Is it {n}?", "large" if n % 2 else "small", "verify", "global")
        for n in range(10)
    ],
    "pope": [
        (
            n + 10_000_000 * (n % 3),
            SPLITS[n % 3],
            f"{n // 6}.jpg",
            f"thing {n}",
            "yes" if n % 2 else "no",
        )
        for n in range(10)
    ],
    "mme": [
        ("existence" if n < 6 else "OCR", f"{n // 2}.jpg", f"Is it {n}?", "No" if n % 2 else "Yes")
        for n in range(10)
    ],
    "scienceqa": [
        (f"{n}", n % 2 == 0, "A hint." * (n % 3), f"Which {n}?", ["this", "that"], n % 2)
        for n in range(10)
    ],
    "mmbench": [
        (
            n // 2 + 1_000_000 * (n % 2),
            "nan",
            f"Which {n // 2}?",
            ["x", "y"][:: 1 - n % 2 * 2],
            "AB"[n % 2],
            "kind",
        )
        for n in range(10)
    ],
    "vqav2": [
        (n, n // 2, f"What is {n}?", ["large"] * n + ["small"] * (10 - n), "what", "other")
        for n in range(10)
    ],
    "textvqa": [(n, f"{n // 2}", f"What is {n}?", ["A", "b"], ["large"] * 10) for n in range(10)],
    "vizwiz": [
        (f"VizWiz_{{}}_{n:08}.jpg", f"What is {n}?", ["large"] * 10, "other") for n in range(10)
    ],
    "clips": [(f"clip{n // 2}", f"q{n}", f"what is {n}?", "3") for n in range(10)],
}
TEN["mmbench_cn"] = TEN["mmbench"]
TEN |= dict.fromkeys(("tgif", "msvd", "msrvtt"), TEN.pop("clips"))


def gqa_types(structural: str, semantic: str) -> dict[str, str]:
    return {"structural": structural, "semantic": semantic, "detailed": "d"}


def cells(
    index: int, hint: str, question: str, options: list[str], answer: str, category: str
) -> dict[str, Any]:
    return {
        "index": index,
        "question": question,
        "hint": hint,
        **dict(zip("ABCD", [*options, "", ""], strict=False)),
        "answer": answer,
        "category": category,
        "source": "s",
        "l2-category": f"{category}_2",
        "comment": "nan",
        "split": "dev",
    }


def people(answers: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": index}
        for index, answer in enumerate(answers, 1)
    ]


def grade(id: str) -> str:
    return f"grade{2 * int(id) % 12 + 1}"
