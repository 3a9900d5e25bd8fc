"""`shapes`: its files, its splits, and its answers against an independent reading of the scene."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.benchmarks.synthetic import scenes as drawing
from pipelines.benchmarks.synthetic import shapes
from pipelines.benchmarks.synthetic.base import QUESTIONS
from pipelines.benchmarks.synthetic.scenes import Scene, Thing, draw

COLOURS = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "white"]
SHAPES = ["circle", "square", "triangle", "cross", "star"]
FEW = 180


def scenes(split: str, count: int) -> list[Scene]:
    return [shapes.scene(shapes.rng_for(split, 0, number)) for number in range(count)]


def rows(manifest: Path) -> list[dict]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def things(scene: Scene, text: str) -> list[Thing]:
    """Return all things that the words of `text` describe."""
    words = [
        "cross" if word == "crosses" else word.removesuffix("s") if word != "cross" else word
        for word in text.split()
    ]
    return [
        thing
        for thing in scene.things
        if all(word == thing.colour for word in words if word in COLOURS)
        and all(word == thing.shape for word in words if word in SHAPES)
        and all(word == thing.size for word in words if word in ("small", "large"))
    ]


def answer(scene: Scene, kind: str, text: str) -> str:
    """Answer the question from its words and the scene."""
    text = text.rstrip("?.")
    if kind == "relation":
        first, second = re.split(
            r"(?:left or right|right or left) of|above or below|below or above", text
        )
        axis = "x" if "left" in text else "y"
        (one,), (other,) = things(scene, re.sub(",", "", first)), things(scene, second)
        low, high = ("left", "right") if axis == "x" else ("above", "below")
        return low if getattr(one, axis) < getattr(other, axis) else high
    if kind == "reading":
        wanted = str.isdigit if "digit" in text else str.isalpha
        glyphs = [glyph for glyph in scene.glyphs if wanted(glyph.name)]
        if any(word in COLOURS for word in text.split()):
            (carrier,) = things(scene, text)
            glyphs = [g for g in glyphs if (g.x, g.y) == (carrier.x, carrier.y)]
        (glyph,) = glyphs
        return glyph.name
    if kind == "size":
        (one,) = things(scene, re.sub("small|large", "", text).replace(",", ""))
        return one.size
    result = things(scene, text)
    if kind == "existence":
        return "yes" if result else "no"
    if kind == "count":
        return str(len(result))
    assert len(result) == 1, text
    return getattr(result[0], kind)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.make(tmp_path_factory.mktemp("data"), "test", FEW)


def test_make_twice_writes_the_same_bytes(manifest: Path, tmp_path: Path) -> None:
    again = shapes.make(tmp_path, "test", FEW)
    assert again.read_bytes() == manifest.read_bytes()
    for row in rows(manifest):
        assert (again.parent / row["media"]).read_bytes() == (
            manifest.parent / row["media"]
        ).read_bytes()


def test_make_resumes_after_a_killed_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def dies(scene: Scene) -> np.ndarray:
        drawn.append(scene)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(scene)

    monkeypatch.setattr(drawing, "draw", dies)
    with pytest.raises(KeyboardInterrupt):
        shapes.make(tmp_path, "val", 60)
    files_left = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files_left) == 3
    assert all(file.suffix == ".png" for file in files_left)
    manifest = shapes.make(tmp_path, "val", 60)
    count = len(drawn)
    assert shapes.make(tmp_path, "val", 60) == manifest
    assert (
        len(drawn) == count == len({row["media"] for row in rows(manifest)}) + 1
    )  # the one that failed, again


def test_partial_manifest_is_the_beginning_of_the_full_one(manifest: Path) -> None:
    part = shapes.make(manifest.parents[2], "test", 50)
    assert rows(part) == rows(manifest)[:50]
    assert len(rows(part)) == 50


def test_manifest_rows_have_ids_options_and_images(manifest: Path) -> None:
    result = rows(manifest)
    assert len(result) == FEW
    assert len({row["id"] for row in result}) == FEW
    assert result[0]["id"] == "shapes-test-000000-0"
    for row in result:
        assert row["answers"][0] in row["options"]
        assert row["type"] in shapes.CHANCE
        with Image.open(manifest.parent / row["media"]) as image:
            assert image.size == (192, 192)


def test_splits_share_no_scene() -> None:
    made = {split: scenes(split, 40) for split in ("train", "val", "test")}
    assert len({scene.backdrop for split in made.values() for scene in split}) == 120
    assert len({scene.things for split in made.values() for scene in split}) == 120
    assert QUESTIONS["test"] >= 2_000
    with pytest.raises(ValueError, match=r"no split 'tests'; it has train, val, test"):
        shapes.make(Path("nowhere"), "tests")


def test_answers_match_the_scene() -> None:
    total = 0
    for number in range(150):
        rng = shapes.rng_for("test", 0, number)
        scene = shapes.scene(rng)
        for question in shapes.questions(scene, rng, 7):
            assert answer(scene, question.type, question.text) == question.answer, question.text
            total += 1
    assert total > 800


def test_answers_are_balanced_within_each_type() -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(400):
        rng = shapes.rng_for("test", 0, number)
        for question in shapes.questions(shapes.scene(rng), rng, 7):
            counts[question.type][question.answer] += 1
    assert set(counts) == set(shapes.CHANCE)
    for kind, answers in counts.items():
        total = sum(answers.values())
        assert answers.most_common(1)[0][1] / total < shapes.CHANCE[kind] + 0.1, (kind, answers)
    yes = counts["existence"]["yes"] / sum(counts["existence"].values())
    assert abs(yes - 0.5) < 0.1


def test_absent_pairs_have_colour_and_shape_in_the_picture() -> None:
    """The colour and the shape of nearly all absent pairs are in the picture, on other things."""
    near = []
    for number in range(200):
        rng = shapes.rng_for("test", 0, number)
        scene = shapes.scene(rng)
        for question in shapes.questions(scene, rng, 7):
            if question.type == "existence" and question.answer == "no":
                colour, shape = re.search("an? (\\w+) (\\w+)", question.text).groups()
                near.append(bool(things(scene, colour) and things(scene, shape)))
    assert sum(near) / len(near) > 0.9


def test_phrase_targets_end_at_their_noun() -> None:
    for number in range(40):
        rng = shapes.rng_for("train", 0, number)
        scene = shapes.scene(rng)
        for question in shapes.questions(scene, rng, 7):
            for target in question.targets:
                text = question.text[: target.end].split()
                if target.part == "thing":
                    assert all(text[-1] in (scene.things[n].shape, "thing") for n in target.numbers)
