"""`shapes`: questions about still pictures of a few things, some of them small.

    manifest = make(Path("data"), "test")                  # 2,400 questions about 400 images
    manifest = make(Path("data"), "test", questions=200)   # the first 200 of them, in seconds

Seven types of question. What makes them hard for a model that sees few tokens is that a small thing or a glyph
covers four patches or so of 576; what makes them hard to guess is that wrong answers are near: existence asks for a
shape and a colour that are both in the picture, reading for one of twenty glyphs of ten by fourteen pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import hypot
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.benchmarks.synthetic.base import Synthetic
from pipelines.benchmarks.synthetic.dataset_files import MediaFile, write_dataset
from pipelines.benchmarks.synthetic.scenes import (
    COLOURS,
    DIGITS,
    LETTERS,
    SHAPES,
    SIZES,
    Glyph,
    Question,
    Scene,
    Thing,
    draw,
    build_question,
    fits,
    pick,
    random_thing)

NAME, VERSION = "shapes", "1"
SIDE = 192
QUESTIONS = {"train": 12_000, "val": 600, "test": 2_400}
PER_IMAGE = 6
COUNTS = ("0", "1", "2", "3", "4", "5")
CHANCE = {  # how often a guess among the answers that are possible is right
    "existence": 1 / 2,
    "colour": 1 / len(COLOURS),
    "shape": 1 / len(SHAPES),
    "count": 1 / len(COUNTS),
    "size": 1 / len(SIZES),
    "relation": 1 / 2,
    "reading": 1 / len(DIGITS),
}
_RARITY = np.array([1.5, 1.5, 1.5, 1.5, 3, 7]) / 16  # few scenes have five of anything
_APART = 24  # pixels between things of which one is left of or above the other


def make(folder: Path, split: str, questions: int | None = None, seed: int = 0) -> Path:
    """Write images and manifest of a split below `folder`, once; its manifest's path."""
    if split not in QUESTIONS:
        raise ValueError(f"{NAME} has no split '{split}'; it has {', '.join(QUESTIONS)}")
    wanted = QUESTIONS[split] if questions is None else questions
    home = folder / f"{NAME}-{VERSION}-{seed}" / split
    return write_dataset(home, f"{NAME}-{split}", _media(split, seed), wanted, whole=questions is None)


def _media(split: str, seed: int) -> Iterator[MediaFile]:
    number = 0
    while True:
        rng = rng_for(split, seed, number)
        shown = scene(rng)
        yield MediaFile(
            f"images/{number:06d}.png", partial(_save, shown), questions(shown, rng, PER_IMAGE)
        )
        number += 1


def _save(shown: Scene, file: Path) -> None:
    Image.fromarray(draw(shown)).save(file, format="PNG", compress_level=1)


def rng_for(split: str, seed: int, number: int) -> np.random.Generator:
    """Chance for one scene; no two splits, seeds or numbers share it."""
    return np.random.default_rng([zlib.crc32(f"{NAME} {VERSION} {split}".encode()), seed, number])


def scene(rng: np.random.Generator, crowd: bool = False) -> Scene:
    """Three to six things of few colours and shapes, so that they share them, and up to two free glyphs.

    `crowd` makes it full, of things or of glyphs, for a tower that learns from patches: it sees more of them at once.
    """
    palette = rng.choice(list(COLOURS), 4, replace=False)
    forms = rng.choice(SHAPES, 3, replace=False)
    things: list[Thing] = []
    wanted = int(rng.integers(3, 7))
    if crowd:
        palette, forms, wanted = np.array(list(COLOURS)), np.array(SHAPES), int(rng.integers(6, 22))
    for _ in range(20 * wanted):
        if len(things) == wanted:
            break
        size = str(rng.choice(list(SIZES), p=[0.55, 0.45]))
        place = rng.uniform(9, SIDE - 9, 2)
        one = random_thing(
            rng,
            str(rng.choice(forms)),
            str(rng.choice(palette)),
            size,
            float(place[0]),
            float(place[1]),
        )
        if fits(one, things, SIDE):
            things.append(one)
    carriers = [
        number for number, one in enumerate(things) if one.size == "large" and rng.random() < 0.6
    ]
    written = [
        Glyph(
            _glyph(rng), things[number].x, things[number].y, number, sum(things[number].tint) < 380
        )
        for number in carriers
    ]
    for _ in range(150 if crowd else int(rng.integers(0, 3))):
        x, y = (float(value) for value in rng.integers(8, SIDE - 8, 2))
        clear = all(hypot(x - one.x, y - one.y) > one.radius + 10 for one in things)
        if clear and all(hypot(x - one.x, y - one.y) > 20 for one in written):
            written.append(Glyph(_glyph(rng), x, y, None, bool(rng.random() < 0.5)))
    return Scene(SIDE, tuple(things), tuple(written), int(rng.integers(2**31)))


def _glyph(rng: np.random.Generator) -> str:
    return str(rng.choice(DIGITS if rng.random() < 0.5 else LETTERS))


def questions(shown: Scene, rng: np.random.Generator, number: int) -> list[Question]:
    """Up to `number` questions, of as many types as the scene has an answer to."""
    asked = (ask(shown, kind, rng) for kind in rng.permutation(list(ASKING)))
    return [question for question in asked if question][:number]


def ask(shown: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """A question of that type, or none if the scene has no thing that it could be about."""
    return ASKING[kind](shown, rng)


def _named(
    shown: Scene, number: int, parts: Sequence[str], noun: str = ""
) -> tuple[str, list[int]]:
    """A thing's name by some of its properties, and every thing that answers to it."""
    one = shown.things[number]
    values = [getattr(one, part) for part in parts]
    alike = [
        other
        for other, it in enumerate(shown.things)
        if [getattr(it, part) for part in parts] == values
    ]
    return " ".join([*values, noun] if noun else values), alike


def _only(
    shown: Scene,
    rng: np.random.Generator,
    ways: Sequence[Sequence[str]],
    noun: str = "",
    size: str = "",
) -> tuple[str, int] | None:
    """A thing that one of these ways of naming fits alone, by its name."""
    for number in rng.permutation(len(shown.things)):
        if size not in ("", shown.things[number].size):
            continue
        for way in rng.permutation(len(ways)):
            name, alike = _named(shown, int(number), ways[way], noun)
            if len(alike) == 1:
                return name, int(number)
    return None


def _existence(shown: Scene, rng: np.random.Generator) -> Question | None:
    pairs = {(one.colour, one.shape) for one in shown.things}
    if rng.random() < 0.5:
        colour, shape = sorted(pairs)[int(rng.integers(len(pairs)))]
        answer = "yes"
    else:
        near = sorted({(a, b) for a, _ in pairs for _, b in pairs} - pairs)
        if not near:
            near = sorted({(a, b) for a, _ in pairs for b in SHAPES} - pairs)
        colour, shape = near[int(rng.integers(len(near)))]
        answer = "no"
    which = [
        number
        for number, one in enumerate(shown.things)
        if (one.colour, one.shape) == (colour, shape)
    ]
    wording = pick(
        rng,
        [
            "Is there {}?",
            "Is there {} in the picture?",
            "Can you see {}?",
            "Does the picture show {}?",
        ],
    )
    return build_question(
        "existence",
        wording,
        [(f"{_article(colour)} {colour} {shape}", "whole", which)],
        answer,
        ("yes", "no"),
    )


def _colour(shown: Scene, rng: np.random.Generator) -> Question | None:
    found = _only(shown, rng, [("shape",), ("size", "shape"), ("size", "shape")])
    if not found:
        return None
    wording = pick(
        rng,
        [
            "What colour is the {}?",
            "What color is the {}?",
            "Which colour does the {} have?",
            "The {} is of what colour?",
        ],
    )
    return build_question(
        "colour",
        wording,
        [(found[0], "whole", [found[1]])],
        shown.things[found[1]].colour,
        list(COLOURS),
    )


def _shape(shown: Scene, rng: np.random.Generator) -> Question | None:
    found = _only(shown, rng, [("colour",), ("size", "colour"), ("size", "colour")], "thing")
    if not found:
        return None
    wording = pick(
        rng, ["What shape is the {}?", "Which shape does the {} have?", "The {} has what shape?"]
    )
    return build_question(
        "shape", wording, [(found[0], "whole", [found[1]])], shown.things[found[1]].shape, SHAPES
    )


def _size(shown: Scene, rng: np.random.Generator) -> Question | None:
    size = pick(rng, list(SIZES))  # drawn first: more things are small than large
    found = _only(shown, rng, [("colour", "shape")], size=size) or _only(
        shown, rng, [("colour", "shape")]
    )
    if not found:
        return None
    wording = pick(
        rng,
        [
            "Is the {} small or large?",
            "Is the {} large or small?",
            "What size is the {}?",
            "How big is the {}, small or large?",
        ],
    )
    return build_question(
        "size", wording, [(found[0], "whole", [found[1]])], shown.things[found[1]].size, list(SIZES)
    )


def _count(shown: Scene, rng: np.random.Generator) -> Question | None:
    """The number is drawn first, so that no number is the usual answer."""
    groups: dict[int, list[tuple[str, list[int]]]] = {}
    everything = list(range(len(shown.things)))
    named = [("things", everything)]
    named += [
        (f"{size} things", [n for n in everything if shown.things[n].size == size])
        for size in SIZES
    ]
    named += [
        (f"{colour} things", [n for n in everything if shown.things[n].colour == colour])
        for colour in COLOURS
    ]
    named += [
        (_plural(shape), [n for n in everything if shown.things[n].shape == shape])
        for shape in SHAPES
    ]
    for name, which in named:
        groups.setdefault(len(which), []).append((name, which))
    drawn = rng.choice(len(COUNTS), len(COUNTS), replace=False, p=_RARITY)
    wanted = [number for number in drawn if number in groups]
    options = groups[int(wanted[0])]
    name, which = options[int(rng.integers(len(options)))]
    wording = pick(
        rng,
        [
            "How many {} are there?",
            "How many {} are in the picture?",
            "What is the number of {}?",
            "Count the {}.",
        ],
    )
    return build_question("count", wording, [(name, "centre", which)], str(len(which)), COUNTS)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _relation(shown: Scene, rng: np.random.Generator) -> Question | None:
    single = [
        n for n in range(len(shown.things)) if len(_named(shown, n, ("colour", "shape"))[1]) == 1
    ]
    for axis in rng.permutation(["x", "y"]):
        pairs = [
            (a, b)
            for a in single
            for b in single
            if abs(getattr(shown.things[a], axis) - getattr(shown.things[b], axis)) >= _APART
        ]
        if pairs:
            break
    else:
        return None
    a, b = pairs[int(rng.integers(len(pairs)))]
    low, high = ("left", "right") if axis == "x" else ("above", "below")
    answer = low if getattr(shown.things[a], axis) < getattr(shown.things[b], axis) else high
    said = f"{low} or {high}" if rng.random() < 0.5 else f"{high} or {low}"
    of = " of" if axis == "x" else ""
    wording = pick(
        rng, [f"Is the {{}} {said}{of} the {{}}?", f"Where is the {{}}, {said}{of} the {{}}?"]
    )
    phrases = [(_named(shown, n, ("colour", "shape"))[0], "whole", [n]) for n in (a, b)]
    return build_question("relation", wording, phrases, answer, (low, high))


def _reading(shown: Scene, rng: np.random.Generator) -> Question | None:
    """Digits and letters on a thing, or the only one of its kind in the picture."""
    for number in rng.permutation(len(shown.glyphs)):
        glyph = shown.glyphs[number]
        options = DIGITS if glyph.kind == "digit" else LETTERS
        if sum(other.kind == glyph.kind for other in shown.glyphs) == 1 and rng.random() < 0.5:
            wording = pick(
                rng, ["What {} is in the picture?", "Which {} can you see?", "Read the {}."]
            )
            return build_question(
                "reading", wording, [(glyph.kind, "glyph", [int(number)])], glyph.name, options
            )
        if glyph.on is not None:
            name, alike = _named(shown, glyph.on, ("colour", "shape"))
            if len(alike) == 1:
                wording = pick(
                    rng,
                    [
                        "What {} is on the {}?",
                        "Which {} is written on the {}?",
                        "Read the {} on the {}.",
                    ],
                )
                wording = wording.replace("{}", glyph.kind, 1)
                return build_question(
                    "reading", wording, [(name, "glyph", [int(number)])], glyph.name, options
                )
    return None


ASKING: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "existence": _existence,
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "size": _size,
    "relation": _relation,
    "reading": _reading,
}

BENCHMARK = Synthetic(NAME, VERSION, "image", make, CHANCE)
