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

from pipelines.benchmarks.synthetic import scenes
from pipelines.benchmarks.synthetic.base import Rng, Synthetic, load_wordings
from pipelines.benchmarks.synthetic.scenes import Draft, Glyph, Phrase, Scene, Thing, pick

SIDE = 192
COUNTS = ("0", "1", "2", "3", "4", "5")
_COUNT_WEIGHTS = np.array([1.5, 1.5, 1.5, 1.5, 3, 7]) / 16  # few scenes have five of anything
_MIN_DISTANCE = 24  # pixels between things, one of which is left of or above the other
_NAME = ("colour", "shape")


def scene(rng: Rng, crowd: bool = False) -> Scene:
    """Draw 3 to 6 things that share few colours and shapes, and up to two free glyphs.

    `crowd` fills the scene with things or glyphs, for a tower that learns from patches: it then
    sees more of them at once.
    """
    palette = rng.choice(list(scenes.COLOURS), 4, replace=False)
    forms = rng.choice(scenes.SHAPES, 3, replace=False)
    things: list[Thing] = []
    total = int(rng.integers(3, 7))
    if crowd:
        palette, forms = np.array(list(scenes.COLOURS)), np.array(scenes.SHAPES)
        total = int(rng.integers(6, 22))
    for _ in range(20 * total):
        if len(things) == total:
            break
        size = str(rng.choice(list(scenes.SIZES), p=[0.55, 0.45]))
        x, y = rng.uniform(9, SIDE - 9, 2).tolist()
        shape, colour = str(rng.choice(forms)), str(rng.choice(palette))
        thing = scenes.random_thing(rng, shape, colour, size, x, y)
        if scenes.fits(thing, things, SIDE):
            things.append(thing)
    carriers = [
        (number, thing)
        for number, thing in enumerate(things)
        if thing.size == "large" and rng.random() < 0.6
    ]
    glyphs = [
        Glyph(_glyph(rng), thing.x, thing.y, number, light=sum(thing.tint) < 380)
        for number, thing in carriers
    ]
    for _ in range(150 if crowd else int(rng.integers(0, 3))):
        x, y = (float(value) for value in rng.integers(8, SIDE - 8, 2))
        clear = all(hypot(x - thing.x, y - thing.y) > thing.radius + 10 for thing in things)
        if clear and all(hypot(x - glyph.x, y - glyph.y) > 20 for glyph in glyphs):
            glyphs.append(Glyph(_glyph(rng), x, y, None, bool(rng.random() < 0.5)))
    return Scene(SIDE, tuple(things), tuple(glyphs), int(rng.integers(2**31)))


def _glyph(rng: Rng) -> str:
    return str(rng.choice(scenes.DIGITS if rng.random() < 0.5 else scenes.LETTERS))


def _save(scene: Scene, file: Path) -> None:
    Image.fromarray(scenes.draw(scene)).save(file, format="PNG", compress_level=1)


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
    return Phrase(" ".join([*values.values(), noun]).strip(), _having(scene, **values))


def _unique(
    scene: Scene, rng: Rng, namings: Sequence[Sequence[str]], noun: str = "", size: str = ""
) -> Phrase | None:
    """Name a random thing, of a size, in a way that fits no other thing."""
    for number in rng.permutation(len(scene.things)):
        if size not in ("", scene.things[number].size):
            continue
        for naming in rng.permutation(len(namings)):
            phrase = _named(scene, int(number), namings[naming], noun)
            if len(phrase.numbers) == 1:
                return phrase
    return None


def _existence(scene: Scene, rng: Rng) -> Draft:
    pairs = {(thing.colour, thing.shape) for thing in scene.things}
    if rng.random() < 0.5:
        choices, answer = sorted(pairs), "yes"
    else:
        near = {(colour, shape) for colour, _ in pairs for _, shape in pairs} - pairs
        any_shape = {(colour, shape) for colour, _ in pairs for shape in scenes.SHAPES} - pairs
        choices, answer = sorted(near or any_shape), "no"
    colour, shape = choices[int(rng.integers(len(choices)))]
    article = "an" if colour[0] in "aeiou" else "a"
    numbers = _having(scene, colour=colour, shape=shape)
    return Draft([Phrase(f"{article} {colour} {shape}", numbers)], answer)


def _property(scene: Scene, rng: Rng, name: str) -> Draft | None:
    """Ask for the colour, shape or size of a thing that its other properties name."""
    phrase: Phrase | None
    if name == "size":
        # The size is drawn first: more things are small than large.
        size = pick(rng, list(scenes.SIZES))
        phrase = _unique(scene, rng, [_NAME], size=size) or _unique(scene, rng, [_NAME])
    else:
        other, noun = ("shape", "") if name == "colour" else ("colour", "thing")
        phrase = _unique(scene, rng, [(other,), ("size", other), ("size", other)], noun)
    if not phrase:
        return None
    return Draft([phrase], getattr(scene.things[phrase.numbers[0]], name))


def _count(scene: Scene, rng: Rng) -> Draft:
    """The number is drawn first, so that no number is the usual answer."""
    nouns = {"things": _having(scene)}
    nouns |= {f"{size} things": _having(scene, size=size) for size in scenes.SIZES}
    nouns |= {f"{colour} things": _having(scene, colour=colour) for colour in scenes.COLOURS}
    nouns |= {
        shape + ("es" if shape.endswith("s") else "s"): _having(scene, shape=shape)
        for shape in scenes.SHAPES
    }
    counts = {len(numbers) for numbers in nouns.values()}
    drawn = rng.choice(len(COUNTS), len(COUNTS), replace=False, p=_COUNT_WEIGHTS).tolist()
    count = next(number for number in drawn if number in counts)
    noun = pick(rng, [noun for noun, numbers in nouns.items() if len(numbers) == count])
    return Draft([Phrase(noun, nouns[noun], "centre")], str(count))


def _relation(scene: Scene, rng: Rng) -> Draft | None:
    names = [_named(scene, number, _NAME) for number in range(len(scene.things))]
    single = [number for number, name in enumerate(names) if len(name.numbers) == 1]
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
    wordings = [f"Is the {{}} {relation} the {{}}?", f"Where is the {{}}, {relation} the {{}}?"]
    answer = low if at[a] < at[b] else high
    return Draft([names[a], names[b]], answer, pick(rng, wordings), (low, high))


def _reading(scene: Scene, rng: Rng) -> Draft | None:
    """Digits and letters on a thing, or the only one of its kind in the picture."""
    wordings = load_wordings("shapes")
    for number in rng.permutation(len(scene.glyphs)):
        glyph = scene.glyphs[number]
        options = scenes.DIGITS if glyph.kind == "digit" else scenes.LETTERS
        if sum(other.kind == glyph.kind for other in scene.glyphs) == 1 and rng.random() < 0.5:
            wording, text = pick(rng, wordings["only glyph"]), glyph.kind
        elif glyph.on is not None and len((name := _named(scene, glyph.on, _NAME)).numbers) == 1:
            wording = pick(rng, wordings["glyph on"]).replace("{}", glyph.kind, 1)
            text = name.text
        else:
            continue
        return Draft([Phrase(text, [int(number)], "glyph")], glyph.name, wording, options)
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
        "existence": (_existence, ("yes", "no")),
        "colour": (partial(_property, name="colour"), tuple(scenes.COLOURS)),
        "shape": (partial(_property, name="shape"), scenes.SHAPES),
        "count": (_count, COUNTS),
        "size": (partial(_property, name="size"), tuple(scenes.SIZES)),
        "relation": (_relation, ("left", "right")),
        "reading": (_reading, scenes.DIGITS),
    },
)
CHANCE = BENCHMARK.chances
make, rng_for, questions = BENCHMARK.make, BENCHMARK.rng_for, BENCHMARK.questions
