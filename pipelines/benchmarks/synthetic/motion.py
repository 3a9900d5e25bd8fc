"""`motion`: questions about short clips in which things move, appear and disappear.

    manifest = make(Path("data"), "test")                  # 2,400 questions about some 480 clips
    manifest = make(Path("data"), "test", questions=200)   # the first 200 of them, in seconds

Clips have 16 to 64 frames, so a model that reads eight of them sees what happens in steps, and no question can be
answered from one frame. Things are unique in shape and colour together; all of them are small.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import av
import numpy as np

from pipelines.benchmarks.synthetic.base import Synthetic
from pipelines.benchmarks.synthetic.dataset_files import MediaFile, write_dataset
from pipelines.benchmarks.synthetic.scenes import (
    COLOURS,
    SHAPES,
    Question,
    Scene,
    Thing,
    draw,
    build_question,
    fits,
    pick,
    random_thing)

NAME, VERSION = "motion", "1"
SIDE = 96
QUESTIONS = {"train": 12_000, "val": 600, "test": 2_400}
PER_CLIP = 5
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COUNTS = ("0", "1", "2", "3")
CHANGES = ("appears", "disappears", "stays")
CHANCE = {  # how often a guess among the answers that are possible is right
    "mover": 1 / len(COLOURS),
    "moving": 1 / 2,
    "direction": 1 / len(DIRECTIONS),
    "change": 1 / len(CHANGES),
    "order": 1 / 2,
    "count": 1 / len(COUNTS),
}
_FPS = 8
# Without its assembler: that of AVX-512 makes other bytes each time, and each kind of CPU has its own.
_X264 = {"crf": "16", "preset": "veryfast", "threads": "1", "x264-params": "asm=0"}
_GAP = 0.15  # of the clip between two events, at least, for one of them to be the first


@dataclass(frozen=True)
class Action:
    """What a thing does: nothing, `move` with a way, `appear` or `disappear`, between two shares of the clip."""

    what: str
    begin: float = 0.0
    end: float = 0.0
    way: str = ""
    reach: float = 0.0  # pixels


@dataclass(frozen=True)
class Clip:
    length: int  # frames
    things: tuple[Thing, ...]
    acts: tuple[Action, ...]
    backdrop: int

    def at(self, frame: int) -> Scene:
        """The scene at a frame; its `numbers` say which of the clip's things are to be seen."""
        now = frame / (self.length - 1)
        seen: dict[int, Thing] = {}
        for number, (one, act) in enumerate(zip(self.things, self.acts, strict=True)):
            if (act.what == "appear" and now < act.begin) or (
                act.what == "disappear" and now >= act.begin
            ):
                continue
            seen[number] = _moved(one, act, now)
        return Scene(SIDE, tuple(seen.values()), (), self.backdrop, tuple(seen))


def make(folder: Path, split: str, questions: int | None = None, seed: int = 0) -> Path:
    """Write clips and manifest of a split below `folder`, once; its manifest's path."""
    if split not in QUESTIONS:
        raise ValueError(f"{NAME} has no split '{split}'; it has {', '.join(QUESTIONS)}")
    wanted = QUESTIONS[split] if questions is None else questions
    home = folder / f"{NAME}-{VERSION}-{seed}" / split
    return write_dataset(home, f"{NAME}-{split}", _media(split, seed), wanted, whole=questions is None)


def _media(split: str, seed: int) -> Iterator[MediaFile]:
    number = 0
    while True:
        rng = rng_for(split, seed, number)
        shown = clip(rng)
        yield MediaFile(
            f"clips/{number:06d}.mp4", partial(_save, shown), questions(shown, rng, PER_CLIP)
        )
        number += 1


def _save(shown: Clip, file: Path) -> None:
    with av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_FPS, options=_X264)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for number in range(shown.length):
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(draw(shown.at(number), number), format="rgb24")
                )
            )
        container.mux(stream.encode())


def rng_for(split: str, seed: int, number: int) -> np.random.Generator:
    """Chance for one clip; no two splits, seeds or numbers share it."""
    return np.random.default_rng([zlib.crc32(f"{NAME} {VERSION} {split}".encode()), seed, number])


def clip(rng: np.random.Generator) -> Clip:
    """Two to four things, of which none overlaps another before or after it moves."""
    things: list[Thing] = []
    acts: list[Action] = []
    names: set[tuple[str, str]] = set()
    palette, forms = (
        rng.choice(list(COLOURS), 3, replace=False),
        rng.choice(SHAPES, 3, replace=False),
    )
    for act in [_act(rng) for _ in range(int(rng.integers(2, 5)))]:
        for _ in range(60):  # a place for it; where there is none it is left out
            x, y = (float(value) for value in rng.uniform(10, SIDE - 10, 2))
            one = random_thing(rng, str(rng.choice(forms)), str(rng.choice(palette)), "small", x, y)
            ends = [
                _moved(other, other_act, 1.0) for other, other_act in zip(things, acts, strict=True)
            ]
            rests = [
                *ends,
                *(it for it, other in zip(things, acts, strict=True) if other.what != "move"),
            ]
            free = fits(one, things, SIDE) and fits(_moved(one, act, 1.0), rests, SIDE)
            if free and (one.colour, one.shape) not in names:
                things.append(one)
                acts.append(act)
                names.add((one.colour, one.shape))
                break
    return Clip(int(rng.integers(16, 65)), tuple(things), tuple(acts), int(rng.integers(2**31)))


def _act(rng: np.random.Generator) -> Action:
    what = str(rng.choice(["stay", "move", "appear", "disappear"], p=[0.15, 0.49, 0.18, 0.18]))
    if what == "move":
        begin = float(rng.uniform(0.05, 0.6))
        way = str(rng.choice(list(DIRECTIONS)))
        return Action(
            what, begin, begin + float(rng.uniform(0.2, 0.3)), way, float(rng.uniform(24, 48))
        )
    at = float(rng.uniform(0.2, 0.8))
    return Action(what, at, at)


def _moved(one: Thing, act: Action, now: float) -> Thing:
    if act.what != "move":
        return one
    share = min(1.0, max(0.0, (now - act.begin) / (act.end - act.begin)))
    x, y = DIRECTIONS[act.way]
    return replace(one, x=one.x + share * act.reach * x, y=one.y + share * act.reach * y)


def questions(shown: Clip, rng: np.random.Generator, number: int) -> list[Question]:
    """Up to `number` questions, of as many types as the clip has an answer to."""
    asked = (ask(shown, kind, rng) for kind in rng.permutation(list(ASKING)))
    return [question for question in asked if question][:number]


def ask(shown: Clip, kind: str, rng: np.random.Generator) -> Question | None:
    """A question of that type, or none if the clip has nothing that it could be about."""
    return ASKING[kind](shown, rng)


def _name(shown: Clip, number: int) -> str:
    return f"{shown.things[number].colour} {shown.things[number].shape}"


def _doing(shown: Clip, *what: str) -> list[int]:
    return [number for number, act in enumerate(shown.acts) if act.what in what]


def _mover(shown: Clip, rng: np.random.Generator) -> Question | None:
    moving = _doing(shown, "move")
    if (
        len(moving) != 1
        or sum(one.colour == shown.things[moving[0]].colour for one in shown.things) > 1
    ):
        return None
    wording = pick(
        rng, ["What colour is the {}?", "What color is the {}?", "Which colour does the {} have?"]
    )
    phrase = pick(rng, ["moving thing", "thing that moves"])
    return build_question(
        "mover", wording, [(phrase, "whole", moving)], shown.things[moving[0]].colour, list(COLOURS)
    )


def _moving(shown: Clip, rng: np.random.Generator) -> Question | None:
    """Yes and no are equally likely, and no is asked only where something else moves."""
    moving, others = _doing(shown, "move"), _doing(shown, "stay", "appear", "disappear")
    if not moving or not others:
        return None
    yes = rng.random() < 0.5
    number = int(rng.choice(moving if yes else others))
    wording = pick(rng, ["Does the {} move?", "Is the {} moving?", "Does the {} change its place?"])
    return build_question(
        "moving",
        wording,
        [(_name(shown, number), "whole", [number])],
        "yes" if yes else "no",
        ("yes", "no"),
    )


def _direction(shown: Clip, rng: np.random.Generator) -> Question | None:
    moving = _doing(shown, "move")
    if not moving:
        return None
    number = int(rng.choice(moving))
    wording = pick(
        rng,
        [
            "In which direction does the {} move?",
            "Which way does the {} move?",
            "Where does the {} go?",
        ],
    )
    return build_question(
        "direction",
        wording,
        [(_name(shown, number), "whole", [number])],
        shown.acts[number].way,
        list(DIRECTIONS),
    )


def _change(shown: Clip, rng: np.random.Generator) -> Question | None:
    what = str(rng.choice(CHANGES, p=[0.38, 0.38, 0.24]))  # something stays in most clips
    found = _doing(
        shown,
        *{"appears": ["appear"], "disappears": ["disappear"], "stays": ["stay", "move"]}[what],
    )
    if not found:
        return None
    number = int(rng.choice(found))
    wording = pick(
        rng,
        [
            "Say whether the {} appears, disappears or stays.",
            "What about the {}: appears, disappears or stays?",
        ],
    )
    return build_question("change", wording, [(_name(shown, number), "whole", [number])], what, CHANGES)


def _order(shown: Clip, rng: np.random.Generator) -> Question | None:
    events = _doing(shown, "move", "appear", "disappear")
    pairs = [
        (a, b)
        for a in events
        for b in events
        if a != b and shown.acts[a].end + _GAP <= shown.acts[b].begin
    ]
    if not pairs:
        return None
    first, second = pairs[int(rng.integers(len(pairs)))]
    before = rng.random() < 0.5
    asked, other = (first, second) if before else (second, first)
    wording = f"Does the {{}} {shown.acts[asked].what} before or after the {{}} {shown.acts[other].what}s?"
    if rng.random() < 0.5:
        wording = wording.replace("before or after", "after or before")
    phrases = [(_name(shown, number), "whole", [number]) for number in (asked, other)]
    return build_question("order", wording, phrases, "before" if before else "after", ("before", "after"))


def _count(shown: Clip, rng: np.random.Generator) -> Question | None:
    moving = _doing(shown, "move")
    if len(moving) >= len(COUNTS) or rng.random() > (0.9, 0.4, 0.5, 1.0)[len(moving)]:
        return None  # one and two would be the usual answers
    wording = pick(rng, ["How many {} move?", "How many {} are moving?", "Count the {} that move."])
    return build_question("count", wording, [("things", "whole", moving)], str(len(moving)), COUNTS)


ASKING: dict[str, Callable[[Clip, np.random.Generator], Question | None]] = {
    "mover": _mover,
    "moving": _moving,
    "direction": _direction,
    "change": _change,
    "order": _order,
    "count": _count,
}

BENCHMARK = Synthetic(NAME, VERSION, "video", make, CHANCE)
