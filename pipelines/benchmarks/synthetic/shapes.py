"""`shapes`: questions about still pictures of a few things, some of them small.

    manifest = make(Path("data"), "test")                  # 2,400 questions about 400 images
    manifest = make(Path("data"), "test", questions=200)   # the first 200 of them, in seconds

Seven types of question. They are hard for a model that sees few tokens, because a small thing or a
glyph covers about four patches of 576. They are hard to guess, because wrong answers are close:
existence asks for a shape and a colour that are both in the picture, reading for one of twenty
glyphs of 10 x 14 pixels.
"""

from collections.abc import Sequence
from functools import partial
from math import hypot
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.benchmarks.synthetic.base import Rng, Synthetic, load_wordings
from pipelines.benchmarks.synthetic.scenes import (
    COLOURS,
    DIGITS,
    LETTERS,
    SHAPES,
    SIZES,
    Glyph,
    Phrase,
    Question,
    Scene,
    Thing,
    build_question,
    draw,
    fits,
    pick,
    random_thing,
)

SIDE = 192
COUNTS = ("0", "1", "2", "3", "4", "5")
WORDINGS = load_wordings("shapes")
_COUNT_WEIGHTS = np.array([1.5, 1.5, 1.5, 1.5, 3, 7]) / 16  # few scenes have five of anything
_MIN_DISTANCE = 24  # pixels between things, one of which is left of or above the other
_NAME = ("colour", "shape")


def scene(rng: Rng, crowd: bool = False) -> Scene:
    """Draw 3 to 6 things that share few colours and shapes, and up to two free glyphs.

    `crowd` fills the scene with things or glyphs, for a tower that learns from patches: it then
    sees more of them at once.
    """
    palette = rng.choice(list(COLOURS), 4, replace=False)
    forms = rng.choice(SHAPES, 3, replace=False)
    things: list[Thing] = []
    total = int(rng.integers(3, 7))
    if crowd:
        palette, forms, total = np.array(list(COLOURS)), np.array(SHAPES), int(rng.integers(6, 22))
    for _ in range(20 * total):
        if len(things) == total:
            break
        size = str(rng.choice(list(SIZES), p=[0.55, 0.45]))
        x, y = rng.uniform(9, SIDE - 9, 2).tolist()
        shape, colour = str(rng.choice(forms)), str(rng.choice(palette))
        thing = random_thing(rng, shape, colour, size, x, y)
        if fits(thing, things, SIDE):
            things.append(thing)
    carriers = [
        number
        for number, thing in enumerate(things)
        if thing.size == "large" and rng.random() < 0.6
    ]
    glyphs = [
        Glyph(_glyph(rng), thing.x, thing.y, number, light=sum(thing.tint) < 380)
        for number, thing in ((number, things[number]) for number in carriers)
    ]
    for _ in range(150 if crowd else int(rng.integers(0, 3))):
        x, y = (float(value) for value in rng.integers(8, SIDE - 8, 2))
        clear = all(hypot(x - thing.x, y - thing.y) > thing.radius + 10 for thing in things)
        if clear and all(hypot(x - glyph.x, y - glyph.y) > 20 for glyph in glyphs):
            glyphs.append(Glyph(_glyph(rng), x, y, None, bool(rng.random() < 0.5)))
    return Scene(SIDE, tuple(things), tuple(glyphs), int(rng.integers(2**31)))


def _glyph(rng: Rng) -> str:
    return str(rng.choice(DIGITS if rng.random() < 0.5 else LETTERS))


def _save(scene: Scene, file: Path) -> None:
    Image.fromarray(draw(scene)).save(file, format="PNG", compress_level=1)


def _having(scene: Scene, **properties: str) -> list[int]:
    """Return the numbers of the things with these properties."""
    return [
        number
        for number, thing in enumerate(scene.things)
        if all(getattr(thing, name) == value for name, value in properties.items())
    ]


def _named(scene: Scene, number: int, properties: Sequence[str], noun: str = "") -> Phrase:
    """Name a thing by some of its properties; the phrase refers to all things that match it."""
    values = {name: getattr(scene.things[number], name) for name in properties}
    text = " ".join([*values.values(), noun] if noun else values.values())
    return text, "thing", _having(scene, **values)


def _unique(
    scene: Scene, rng: Rng, namings: Sequence[Sequence[str]], noun: str = "", size: str = ""
) -> Phrase | None:
    """Name a random thing, of a size, in a way that fits no other thing."""
    for number in rng.permutation(len(scene.things)):
        if size not in ("", scene.things[number].size):
            continue
        for naming in rng.permutation(len(namings)):
            phrase = _named(scene, int(number), namings[naming], noun)
            if len(phrase[2]) == 1:
                return phrase
    return None


def _existence(scene: Scene, rng: Rng) -> Question | None:
    pairs = {(thing.colour, thing.shape) for thing in scene.things}
    if rng.random() < 0.5:
        choices, answer = sorted(pairs), "yes"
    else:
        near = {(colour, shape) for colour, _ in pairs for _, shape in pairs} - pairs
        any_shape = {(colour, shape) for colour, _ in pairs for shape in SHAPES} - pairs
        choices, answer = sorted(near or any_shape), "no"
    colour, shape = choices[int(rng.integers(len(choices)))]
    article = "an" if colour[0] in "aeiou" else "a"
    numbers = _having(scene, colour=colour, shape=shape)
    phrase = (f"{article} {colour} {shape}", "thing", numbers)
    wording = pick(rng, WORDINGS["existence"])
    return build_question("existence", wording, [phrase], answer, ("yes", "no"))


def _property(scene: Scene, rng: Rng, name: str) -> Question | None:
    """Ask for the colour, shape or size of a thing that its other properties name."""
    phrase: Phrase | None
    if name == "size":
        # The size is drawn first: more things are small than large.
        size = pick(rng, list(SIZES))
        phrase = _unique(scene, rng, [_NAME], size=size) or _unique(scene, rng, [_NAME])
    else:
        other, noun = ("shape", "") if name == "colour" else ("colour", "thing")
        phrase = _unique(scene, rng, [(other,), ("size", other), ("size", other)], noun)
    if not phrase:
        return None
    answer = getattr(scene.things[phrase[2][0]], name)
    options = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}[name]
    return build_question(name, pick(rng, WORDINGS[name]), [phrase], answer, options)


def _count(scene: Scene, rng: Rng) -> Question | None:
    """The number is drawn first, so that no number is the usual answer."""
    nouns = {"things": _having(scene)}
    nouns |= {f"{size} things": _having(scene, size=size) for size in SIZES}
    nouns |= {f"{colour} things": _having(scene, colour=colour) for colour in COLOURS}
    nouns |= {
        shape + ("es" if shape.endswith("s") else "s"): _having(scene, shape=shape)
        for shape in SHAPES
    }
    by_count: dict[int, list[tuple[str, list[int]]]] = {}
    for noun, numbers in nouns.items():
        by_count.setdefault(len(numbers), []).append((noun, numbers))
    drawn = rng.choice(len(COUNTS), len(COUNTS), replace=False, p=_COUNT_WEIGHTS)
    choices = by_count[next(int(number) for number in drawn if number in by_count)]
    noun, numbers = choices[int(rng.integers(len(choices)))]
    wording = pick(rng, WORDINGS["count"])
    return build_question("count", wording, [(noun, "centre", numbers)], str(len(numbers)), COUNTS)


def _relation(scene: Scene, rng: Rng) -> Question | None:
    names = [_named(scene, number, _NAME) for number in range(len(scene.things))]
    single = [number for number, name in enumerate(names) if len(name[2]) == 1]
    for axis in rng.permutation(["x", "y"]):
        at = [getattr(thing, axis) for thing in scene.things]
        pairs = [(a, b) for a in single for b in single if abs(at[a] - at[b]) >= _MIN_DISTANCE]
        if pairs:
            break
    else:
        return None
    a, b = pairs[int(rng.integers(len(pairs)))]
    low, high = ("left", "right") if axis == "x" else ("above", "below")
    relation = f"{low} or {high}" if rng.random() < 0.5 else f"{high} or {low}"
    relation += " of" if axis == "x" else ""
    wording = pick(
        rng, [f"Is the {{}} {relation} the {{}}?", f"Where is the {{}}, {relation} the {{}}?"]
    )
    answer = low if at[a] < at[b] else high
    return build_question("relation", wording, [names[a], names[b]], answer, (low, high))


def _reading(scene: Scene, rng: Rng) -> Question | None:
    """Digits and letters on a thing, or the only one of its kind in the picture."""
    for number in rng.permutation(len(scene.glyphs)):
        glyph, target = scene.glyphs[number], [int(number)]
        options = DIGITS if glyph.kind == "digit" else LETTERS
        if sum(other.kind == glyph.kind for other in scene.glyphs) == 1 and rng.random() < 0.5:
            wording, text = pick(rng, WORDINGS["only glyph"]), glyph.kind
        elif glyph.on is not None and len((name := _named(scene, glyph.on, _NAME))[2]) == 1:
            wording = pick(rng, WORDINGS["glyph on"]).replace("{}", glyph.kind, 1)
            text = name[0]
        else:
            continue
        return build_question("reading", wording, [(text, "glyph", target)], glyph.name, options)
    return None


BENCHMARK = Synthetic(
    "shapes",
    "1",
    "image",
    "images/{:06d}.png",
    questions_per_medium=6,
    random_subject=scene,
    save=_save,
    question_types={
        "existence": (_existence, 2),
        "colour": (partial(_property, name="colour"), len(COLOURS)),
        "shape": (partial(_property, name="shape"), len(SHAPES)),
        "count": (_count, len(COUNTS)),
        "size": (partial(_property, name="size"), len(SIZES)),
        "relation": (_relation, 2),
        "reading": (_reading, len(DIGITS)),
    },
)
CHANCE = BENCHMARK.chances
make, rng_for, questions = BENCHMARK.make, BENCHMARK.rng_for, BENCHMARK.questions
