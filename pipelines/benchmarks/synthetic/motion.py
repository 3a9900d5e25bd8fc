"""`motion`: questions about short clips in which things move, appear and disappear.

    manifest = make(Path("data"), "test")                  # 2,400 questions about some 480 clips
    manifest = make(Path("data"), "test", questions=200)   # the first 200 of them, in seconds

Clips have 16 to 64 frames, so that a model that reads eight of them sees events in steps. No
question can be answered from one frame. Shape and colour together identify a thing; all things are
small.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import av

from pipelines.benchmarks.synthetic import scenes
from pipelines.benchmarks.synthetic.base import Rng, Synthetic, load_wordings
from pipelines.benchmarks.synthetic.scenes import Draft, Phrase, Scene, Thing, pick

SIDE = 96
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COUNTS = ("0", "1", "2", "3")
CHANGES = {"appears": ("appear",), "disappears": ("disappear",), "stays": ("stay", "move")}
_FPS = 8
# Without its assembler code: that of AVX-512 writes different bytes each time, and each kind of
# CPU has its own.
_X264 = {"crf": "16", "preset": "veryfast", "threads": "1", "x264-params": "asm=0"}
_MIN_GAP = 0.15  # of the clip, between two events of which one is the first
_MAX_ATTEMPTS = 60  # to find a free position for a thing; it is then left out


@dataclass(frozen=True)
class Action:
    """An action of a thing between two times; times are shares of the clip."""

    kind: str  # "stay", "move", "appear" or "disappear"
    begin: float = 0.0
    end: float = 0.0
    direction: str = ""  # of a move
    distance: float = 0.0  # pixels


@dataclass(frozen=True)
class Clip:
    length: int  # frames
    things: tuple[Thing, ...]
    actions: tuple[Action, ...]
    backdrop: int

    def at(self, frame: int) -> Scene:
        """Return the scene at a frame; its `numbers` are those of the visible things."""
        now = frame / (self.length - 1)
        visible: dict[int, Thing] = {}
        for number, (thing, action) in enumerate(zip(self.things, self.actions, strict=True)):
            begun = now >= action.begin
            if not (action.kind == "disappear" if begun else action.kind == "appear"):
                visible[number] = _moved(thing, action, now)
        return Scene(SIDE, tuple(visible.values()), (), self.backdrop, tuple(visible))

    def numbers(self, *kinds: str) -> list[int]:
        """Return the numbers of the things with an action of these kinds."""
        return [number for number, action in enumerate(self.actions) if action.kind in kinds]


def clip(rng: Rng) -> Clip:
    """Draw two to four things, none of which overlaps another before or after it moves."""
    things: list[Thing] = []
    actions: list[Action] = []
    palette = rng.choice(list(scenes.COLOURS), 3, replace=False)
    forms = rng.choice(scenes.SHAPES, 3, replace=False)
    for action in [_action(rng) for _ in range(int(rng.integers(2, 5)))]:
        for _ in range(_MAX_ATTEMPTS):
            x, y = rng.uniform(10, SIDE - 10, 2).tolist()
            shape, colour = str(rng.choice(forms)), str(rng.choice(palette))
            thing = scenes.random_thing(rng, shape, colour, "small", x, y)
            ends = [_moved(other, its, 1.0) for other, its in zip(things, actions, strict=True)]
            free = scenes.fits(thing, things, SIDE)
            free = free and scenes.fits(_moved(thing, action, 1.0), ends, SIDE)
            if free and thing.name not in [other.name for other in things]:
                things.append(thing)
                actions.append(action)
                break
    length = int(rng.integers(16, 65))
    return Clip(length, tuple(things), tuple(actions), int(rng.integers(2**31)))


def _action(rng: Rng) -> Action:
    kind = str(rng.choice(["stay", "move", "appear", "disappear"], p=[0.15, 0.49, 0.18, 0.18]))
    if kind != "move":
        at = float(rng.uniform(0.2, 0.8))
        return Action(kind, at, at)
    begin = float(rng.uniform(0.05, 0.6))
    direction = str(rng.choice(list(DIRECTIONS)))
    end = begin + float(rng.uniform(0.2, 0.3))
    return Action(kind, begin, end, direction, float(rng.uniform(24, 48)))


def _moved(thing: Thing, action: Action, now: float) -> Thing:
    if action.kind != "move":
        return thing
    share = min(1.0, max(0.0, (now - action.begin) / (action.end - action.begin)))
    x, y = DIRECTIONS[action.direction]
    way = share * action.distance
    return replace(thing, x=thing.x + way * x, y=thing.y + way * y)


def _save(clip: Clip, file: Path) -> None:
    with av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_FPS, options=_X264)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for number in range(clip.length):
            picture = scenes.draw(clip.at(number), number)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _named(clip: Clip, numbers: Sequence[int], rng: Rng) -> Phrase:
    """Name one of these things."""
    number = int(rng.choice(numbers))
    return Phrase(clip.things[number].name, [number])


def _mover(clip: Clip, rng: Rng) -> Draft | None:
    moving = clip.numbers("move")
    colours = [thing.colour for thing in clip.things]
    if len(moving) != 1 or colours.count(colours[moving[0]]) > 1:
        return None
    wording = pick(rng, load_wordings("motion")["mover"])  # before its phrase
    phrase = Phrase(pick(rng, ["moving thing", "thing that moves"]), moving)
    return Draft([phrase], colours[moving[0]], wording)


def _moving(clip: Clip, rng: Rng) -> Draft | None:
    """Yes and no are equally likely, and no is asked only where something else moves."""
    moving, others = clip.numbers("move"), clip.numbers("stay", "appear", "disappear")
    if not moving or not others:
        return None
    answer = "yes" if rng.random() < 0.5 else "no"
    return Draft([_named(clip, moving if answer == "yes" else others, rng)], answer)


def _direction(clip: Clip, rng: Rng) -> Draft | None:
    moving = clip.numbers("move")
    if not moving:
        return None
    phrase = _named(clip, moving, rng)
    return Draft([phrase], clip.actions[phrase.numbers[0]].direction)


def _change(clip: Clip, rng: Rng) -> Draft | None:
    # Something stays in most clips, so it is asked less often.
    change = str(rng.choice(list(CHANGES), p=[0.38, 0.38, 0.24]))
    numbers = clip.numbers(*CHANGES[change])
    return Draft([_named(clip, numbers, rng)], change) if numbers else None


def _order(clip: Clip, rng: Rng) -> Draft | None:
    events, actions = clip.numbers("move", "appear", "disappear"), clip.actions
    pairs = [
        pair
        for pair in permutations(events, 2)
        if actions[pair[0]].end + _MIN_GAP <= actions[pair[1]].begin
    ]
    if not pairs:
        return None
    pair = pairs[int(rng.integers(len(pairs)))]
    answer = "before" if rng.random() < 0.5 else "after"
    one, other = pair if answer == "before" else pair[::-1]
    options = "before or after" if rng.random() >= 0.5 else "after or before"
    wording = f"Does the {{}} {actions[one].kind} {options} the {{}} {actions[other].kind}s?"
    phrases = [Phrase(clip.things[number].name, [number]) for number in (one, other)]
    return Draft(phrases, answer, wording)


def _count(clip: Clip, rng: Rng) -> Draft | None:
    moving = clip.numbers("move")
    # Without these chances, one and two would be the usual answers.
    if len(moving) >= len(COUNTS) or rng.random() > (0.9, 0.4, 0.5, 1.0)[len(moving)]:
        return None
    return Draft([Phrase("things", moving)], str(len(moving)))


BENCHMARK = Synthetic(
    "motion",
    "1",
    "video",
    "clips/{:06d}.mp4",
    questions_per_medium=5,
    random_subject=clip,
    save=_save,
    question_types={
        "mover": (_mover, tuple(scenes.COLOURS)),
        "moving": (_moving, ("yes", "no")),
        "direction": (_direction, tuple(DIRECTIONS)),
        "change": (_change, tuple(CHANGES)),
        "order": (_order, ("before", "after")),
        "count": (_count, COUNTS),
    },
)
CHANCE = BENCHMARK.chances
make, rng_for, questions = BENCHMARK.make, BENCHMARK.rng_for, BENCHMARK.questions
