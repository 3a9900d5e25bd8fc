"""Training tasks: one interface over the benchmarks `shapes` and `motion`.

A picture is a sequence of frames: one for an image, the sampled ones for a clip.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from demo.training.patch_labels import labels
from demo.training.small_models import FRAMES
from pipelines.benchmarks.synthetic import motion, shapes
from pipelines.benchmarks.synthetic.scenes import Question, Scene, draw


class AttentionTarget(NamedTuple):
    """Where the token that ends at character `end` should attend: to patches, over all frames.

    sink: attend to the first token as well, as much as to one patch; without patches only to it
    says: words that the token should be near after that
    where: position of what is meant, or in a clip the times at which its action begins and ends
    """

    end: int
    head: int
    patches: np.ndarray
    sink: bool = False
    says: tuple[str, ...] = ()
    where: tuple[float, float] | None = None


class Task(Protocol):
    """Pictures of a benchmark, questions about them, and labels for auxiliary losses."""

    name: str
    frames: int
    cls: bool  # whether the decoder sees the tower's CLS token of each frame
    # Further labels of patches: the layer after which they are read, and how many kinds there are.
    told: dict[str, tuple[int, int]]

    def show(self, number: int) -> Any:
        """A scene or clip of the training split."""

    def scenes(self, shown: Any) -> list[Scene]:
        """Frames of a scene or clip."""

    def crowd(self, rng: np.random.Generator) -> Scene:
        """One frame full of things, for the tower alone."""

    def picture(self, scene: Scene, noise: int) -> np.ndarray:
        """Pixels of a frame as the model's processor reads them."""

    def ask(self, shown: Any, rng: np.random.Generator, number: int) -> list[Question]: ...

    def attention_targets(self, shown: Any, question: Question) -> list[AttentionTarget]: ...

    def tell(self, shown: Any) -> dict[str, np.ndarray]:
        """Kind of every patch of every frame, for each name in `told`; -1 for none."""


@dataclass(frozen=True)
class ShapesTask:
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

    def attention_targets(self, shown: Scene, question: Question) -> list[AttentionTarget]:
        """Head 0 attends to what is meant, head 1 to the centres of what is counted."""
        seen = labels(shown)
        attention_targets = []
        for end, part, which in question.targets:
            if part == "centre":
                attention_targets.append(
                    AttentionTarget(
                        end, 1, seen.centre[list(which)], sink=True, says=(question.answer,)
                    )
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
            attention_targets.append(
                AttentionTarget(
                    end, 0, np.flatnonzero(np.isin(where, which)), says=says, where=place
                )
            )
        return attention_targets

    def tell(self, shown: Scene) -> dict[str, np.ndarray]:
        return {}


@dataclass(frozen=True)
class MotionTask:
    name = "demo-video-llava"
    frames = FRAMES
    cls = True
    told = {"when": (2, FRAMES), "act": (5, 7)}  # noqa: RUF012

    def show(self, number: int) -> motion.Clip:
        return motion.clip(motion.rng_for("train", 0, number))

    def scenes(self, shown: motion.Clip) -> list[Scene]:
        return _sampled(shown)

    def crowd(self, rng: np.random.Generator) -> Scene:
        """A corner of a crowded picture of `shapes`, which has larger things as well."""
        shown = shapes.scene(rng, crowd=True)
        corner = [
            thing
            for thing in shown.things
            if thing.x < motion.SIDE - 8 and thing.y < motion.SIDE - 8
        ]
        return replace(shown, side=motion.SIDE, things=tuple(corner), glyphs=())

    def picture(self, scene: Scene, noise: int) -> np.ndarray:
        """Pixels after JPEG compression: its losses are like a video's, and it is much cheaper."""
        file = BytesIO()
        Image.fromarray(draw(scene, noise)).save(file, format="JPEG", quality=85)
        return np.asarray(Image.open(file))

    def ask(self, shown: motion.Clip, rng: np.random.Generator, number: int) -> list[Question]:
        asked: list[Question] = []
        for _ in range(number):
            asked += motion.questions(shown, rng, number - len(asked))
        return asked

    def attention_targets(self, shown: motion.Clip, question: Question) -> list[AttentionTarget]:
        """Heads 0 and 1 attend to its first and last frame, head 2 to the frames where it moves."""
        seen = [labels(scene).thing for scene in self.scenes(shown)]
        size, attention_targets = len(seen[0]), []
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
            says = [
                did.get(shown.actions[number].kind, shown.actions[number].direction)
                for number in which
            ]
            if question.type == "count":
                says = [question.answer]
            acts = [shown.actions[number] for number in which]
            times = (
                (acts[0].begin - 0.5, acts[0].end - 0.5)
                if len(acts) == 1 and acts[0].kind != "stay"
                else None
            )
            attention_targets.append(
                AttentionTarget(end, 0, _joined(parts[0]), says=tuple(says), where=times)
            )
            attention_targets += [
                AttentionTarget(end, head, _joined(parts[head])) for head in (1, 2)
            ]
        return attention_targets

    def tell(self, shown: motion.Clip) -> dict[str, np.ndarray]:
        """Index of the frame, and what a thing did once its action is over."""
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
