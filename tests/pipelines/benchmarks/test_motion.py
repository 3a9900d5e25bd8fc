"""`motion`: its files, and its answers against positions of the things in each frame."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.benchmarks.synthetic import motion
from pipelines.benchmarks.synthetic.base import QUESTIONS
from pipelines.benchmarks.synthetic.motion import Clip

FEW = 20


def rows(manifest: Path) -> list[dict]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return motion.make(tmp_path_factory.mktemp("data"), "test", FEW)


def path(clip: Clip, name: str) -> list[tuple[float, float] | None]:
    """Return the position of the thing of that name in each frame; None where it is hidden."""
    positions: list[tuple[float, float] | None] = []
    for frame in range(clip.length):
        result = [
            (thing.x, thing.y)
            for thing in clip.at(frame).things
            if f"{thing.colour} {thing.shape}" == name
        ]
        positions.append(result[0] if result else None)
    return positions


def direction(positions: list[tuple[float, float] | None]) -> str:
    visible = [position for position in positions if position]
    x, y = np.subtract(visible[-1], visible[0])
    if max(abs(x), abs(y)) < 1:
        return ""
    return ("left" if x < 0 else "right") if abs(x) > abs(y) else ("up" if y < 0 else "down")


def when(positions: list[tuple[float, float] | None]) -> float:
    """Return the first frame that differs from the one before."""
    return next(at for at, (before, after) in enumerate(pairwise(positions)) if before != after)


def answer(clip: Clip, kind: str, text: str) -> str:
    names = re.findall("((?:red|orange|yellow|green|cyan|blue|purple|white) \\w+)", text)
    everything = {f"{thing.colour} {thing.shape}" for thing in clip.things}
    moving = [name for name in everything if direction(path(clip, name))]
    if kind == "mover":
        (name,) = moving
        return name.split()[0]
    if kind == "count":
        return str(len(moving))
    if kind == "moving":
        return "yes" if names[0] in moving else "no"
    if kind == "direction":
        return direction(path(clip, names[0]))
    if kind == "order":
        asked, other = (when(path(clip, name)) for name in names)
        return "before" if asked < other else "after"
    first, *_, last = path(clip, names[0])
    return "appears" if first is None else "disappears" if last is None else "stays"


def test_answers_match_the_clip_and_are_balanced() -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(250):
        rng = motion.rng_for("test", 0, number)
        clip = motion.clip(rng)
        for question in motion.questions(clip, rng, 6):
            assert answer(clip, question.type, question.text) == question.answer, question.text
            counts[question.type][question.answer] += 1
    assert set(counts) == set(motion.CHANCE)
    for kind, answers in counts.items():
        assert answers.most_common(1)[0][1] / sum(answers.values()) < motion.CHANCE[kind] + 0.12, (
            kind,
            answers,
        )


def test_clips_have_the_frames_of_their_description(manifest: Path) -> None:
    result = rows(manifest)
    assert len({row["id"] for row in result}) == FEW
    for row in result:
        assert row["answers"][0] in row["options"]
        number = int(Path(row["media"]).stem)
        clip = motion.clip(motion.rng_for("test", 0, number))
        with av.open(str(manifest.parent / row["media"])) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert 16 <= len(frames) == clip.length <= 64
        assert frames[0].shape == (96, 96, 3)


def test_make_twice_writes_the_same_bytes(manifest: Path, tmp_path: Path) -> None:
    again = motion.make(tmp_path, "test", FEW)
    assert again.read_bytes() == manifest.read_bytes()
    for row in rows(manifest):
        assert (again.parent / row["media"]).read_bytes() == (
            manifest.parent / row["media"]
        ).read_bytes()


def test_splits_share_no_clip() -> None:
    made = [
        motion.clip(motion.rng_for(split, 0, number))
        for split in ("train", "val", "test")
        for number in range(40)
    ]
    assert len({clip.backdrop for clip in made}) == len({clip.things for clip in made}) == 120
    assert QUESTIONS["test"] >= 2_000
    with pytest.raises(ValueError, match="motion has no split 'tset'"):
        motion.make(Path("nowhere"), "tset")


def test_events_are_visible_in_eight_sampled_frames() -> None:
    """A thing that appears or disappears is in some of the eight frames and not in others."""
    for number in range(100):
        clip = motion.clip(motion.rng_for("test", 0, number))
        scenes = [clip.at(int(frame)) for frame in np.linspace(0, clip.length - 1, 8)]
        for which, act in enumerate(clip.actions):
            visible = [which in scene.numbers for scene in scenes]
            assert any(visible)
            assert all(visible) == (act.kind in ("stay", "move"))
