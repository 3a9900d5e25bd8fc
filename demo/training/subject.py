"""What a student studies: one interface over the benchmarks `shapes` and `motion`.

A picture is a sequence of frames: one for an image, those that are sampled for a clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from demo.training.students import FRAMES
from pipelines.benchmarks.synthetic import motion, shapes
from pipelines.benchmarks.synthetic.scenes import Question, Scene, draw, labels


class Look(NamedTuple):
    """Where attention should go from the token that ends at `end`: to these patches, counted over all frames.

    `sink`: and to the first token, which then gets as much as one patch; without patches it gets everything.
    `says`: the words that the token should be near to after that look; `where`: two numbers that it should know then,
    the place of what is meant, or in a clip when it begins and ends to do what it does.
    """

    end: int
    head: int
    patches: np.ndarray
    sink: bool = False
    says: tuple[str, ...] = ()
    where: tuple[float, float] | None = None


class Subject(Protocol):
    name: str
    frames: int
    cls: bool  # whether the decoder sees the tower's CLS token of each frame
    told: dict[
        str, tuple[int, int]
    ]  # what else the decoder is told of patches: after how many layers, how many kinds

    def show(self, number: int) -> Any:
        """The training split's scene or clip of that number."""

    def scenes(self, shown: Any) -> list[Scene]:
        """Its frames."""

    def crowd(self, rng: np.random.Generator) -> Scene:
        """One frame full of things, for the tower alone."""

    def picture(self, scene: Scene, noise: int) -> np.ndarray:
        """A frame's pixels, as a model gets to see them."""

    def ask(self, shown: Any, rng: np.random.Generator, number: int) -> list[Question]: ...

    def looks(self, shown: Any, question: Question) -> list[Look]: ...

    def tell(self, shown: Any) -> dict[str, np.ndarray]:
        """For each name in `told` the kind of every patch of every frame; -1: nothing is told."""


@dataclass(frozen=True)
class Shapes:
    name = "demo-llava"
    frames = 1
    cls = False
    told = {}  # noqa: RUF012

    def show(self, number: int) -> Scene:
        return shapes.scene(shapes.rng_for("train", 0, number))

    def scenes(self, shown: Scene) -> list[Scene]:
        return [shown]

    def crowd(self, rng: np.random.Generator) -> Scene:
        return shapes.scene(rng, crowd=True)

    def picture(self, scene: Scene, noise: int) -> np.ndarray:
        return draw(scene, noise)

    def ask(self, shown: Scene, rng: np.random.Generator, number: int) -> list[Question]:
        asked: list[Question] = []
        while len(asked) < number:
            asked += shapes.questions(shown, rng, number - len(asked))
        return asked

    def looks(self, shown: Scene, question: Question) -> list[Look]:
        """Head 0 at what is meant; head 1 at the centres of what is counted, shared with the first token."""
        seen = labels(shown)
        looks = []
        for end, part, which in question.targets:
            if part == "centre":
                looks.append(
                    Look(end, 1, seen.centre[list(which)], sink=True, says=(question.answer,))
                )
                continue
            where = seen.glyph if part == "glyph" else seen.thing
            if part == "glyph":
                says = tuple(shown.glyphs[number].name for number in which)
                place = None
            else:
                of = [shown.things[number] for number in which[:1]]
                says = tuple(word for one in of for word in (one.colour, one.shape, one.size))
                place = (
                    (of[0].x / shown.side - 0.5, of[0].y / shown.side - 0.5)
                    if len(which) == 1
                    else None
                )
            if question.type == "existence":
                says = (*says, question.answer)
            looks.append(
                Look(end, 0, np.flatnonzero(np.isin(where, which)), says=says, where=place)
            )
        return looks

    def tell(self, shown: Scene) -> dict[str, np.ndarray]:
        return {}


@dataclass(frozen=True)
class Motion:
    name = "demo-video-llava"
    frames = FRAMES
    cls = True
    told = {"when": (2, FRAMES), "act": (5, 7)}  # noqa: RUF012

    def show(self, number: int) -> motion.Clip:
        return motion.clip(motion.rng_for("train", 0, number))

    def scenes(self, shown: motion.Clip) -> list[Scene]:
        return _sampled(shown)

    def crowd(self, rng: np.random.Generator) -> Scene:
        """A corner of a crowded picture of `shapes`: the same things, larger ones too."""
        shown = shapes.scene(rng, crowd=True)
        corner = [
            thing
            for thing in shown.things
            if thing.x < motion.SIDE - 8 and thing.y < motion.SIDE - 8
        ]
        return replace(shown, side=motion.SIDE, things=tuple(corner), glyphs=())

    def picture(self, scene: Scene, noise: int) -> np.ndarray:
        """Through a JPEG file, whose losses are like a video's, and much cheaper to have."""
        file = BytesIO()
        Image.fromarray(draw(scene, noise)).save(file, format="JPEG", quality=85)
        return np.asarray(Image.open(file))

    def ask(self, shown: motion.Clip, rng: np.random.Generator, number: int) -> list[Question]:
        asked: list[Question] = []
        for _ in range(number):
            asked += motion.questions(shown, rng, number - len(asked))
        return asked

    def looks(self, shown: motion.Clip, question: Question) -> list[Look]:
        """Of what is meant, heads 0 and 1 at its first and last frame, head 2 at those in which it moves."""
        seen = [labels(scene).thing for scene in self.scenes(shown)]
        size, looks = len(seen[0]), []
        now = np.linspace(0, 1, FRAMES)
        for end, _, which in question.targets:
            parts: list[list[np.ndarray]] = [[], [], []]
            for number in which:
                places = [
                    np.flatnonzero(frame == number) + at * size for at, frame in enumerate(seen)
                ]
                visible = [place for place in places if len(place)]
                act = shown.actions[number]
                moving = [
                    place
                    for place, at in zip(places, now, strict=True)
                    if act.begin - 0.1 < at < act.end + 0.1
                ]
                parts[0] += visible[:1]
                parts[1] += visible[-1:]
                parts[2] += moving if act.kind == "move" else []
            did = {"appear": "appears", "disappear": "disappears", "stay": "stays"}
            says = [did.get(shown.actions[number].kind, shown.actions[number].direction) for number in which]
            if question.type == "count":
                says = [question.answer]
            acts = [shown.actions[number] for number in which]
            times = (
                (acts[0].begin - 0.5, acts[0].end - 0.5)
                if len(acts) == 1 and acts[0].kind != "stay"
                else None
            )
            looks.append(Look(end, 0, _joined(parts[0]), says=tuple(says), where=times))
            looks += [Look(end, head, _joined(parts[head])) for head in (1, 2)]
        return looks

    def tell(self, shown: motion.Clip) -> dict[str, np.ndarray]:
        """Which frame it is, and, where its thing has been seen to the end, what the thing did."""
        scenes = self.scenes(shown)
        seen = [labels(scene).thing for scene in scenes]
        when = np.arange(FRAMES).repeat(len(seen[0]))
        kinds = ["stay", "appear", "disappear", *motion.DIRECTIONS]
        did = np.array([*(kinds.index(act.direction or act.kind) for act in shown.actions), -1])
        last = {number: at for at, scene in enumerate(scenes) for number in scene.numbers}
        act = [
            np.where(
                np.isin(frame, [number for number in last if last[number] <= at]), did[frame], -1
            )
            for at, frame in enumerate(seen)
        ]
        return {"when": when, "act": np.concatenate(act)}


@lru_cache(maxsize=16)
def _sampled(shown: motion.Clip) -> list[Scene]:
    return [shown.at(int(frame)) for frame in np.linspace(0, shown.length - 1, FRAMES)]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=int), *parts])
