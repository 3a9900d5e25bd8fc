"""The recipe of the demo models: packed lessons ask what the model will be asked, interruptions cost nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from demo.training import first, state, students, tower
from demo.training.exam import Mark
from demo.training.lessons import few, lesson
from demo.training.reader import Extras, named, study, vocabulary
from demo.training.schedule import Clock
from demo.training.students import ANSWER, QUESTION
from demo.training.subject import Motion, Shapes, Subject
from pipelines.benchmarks.synthetic.scenes import labels

SUBJECTS: list[Subject] = [Shapes(), Motion()]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_a_packed_lesson_asks_what_the_processor_asks(subject: Subject) -> None:
    """The same loss for the same answers: one sequence with a block mask, or each question alone through the model."""
    torch.manual_seed(0)
    shown, rng = subject.show(3), np.random.default_rng(0)
    scenes, questions = subject.scenes(shown), subject.ask(shown, rng, 4)
    words = students.tokenizer(
        [f"{QUESTION}\n{one.text}{ANSWER} {one.answer}" for one in questions] * 2
    )
    model, processor = (
        students.model(subject.name, words).eval(),
        students.processor(subject.name, words),
    )
    eye = model.model.vision_tower if subject.frames == 1 else model.model.video_tower
    features = torch.from_numpy(first.look(eye, subject, 3)).float()
    if not subject.cls:
        features = features[:, 1:]
    patches = len(labels(scenes[0]).thing)
    extra = [at * (patches + 1) for at in range(subject.frames)] if subject.cls else []
    asked = [[(one, subject.looks(shown, one)) for one in questions]]
    given = lesson(words, asked, np.arange(subject.frames * patches)[None], extra)
    names = torch.full((1, features.shape[0] * features.shape[1], 4), -1)
    with torch.no_grad():
        packed = study(
            model,
            vocabulary(words),
            Extras({}, 128),
            given,
            features.flatten(0, 1)[None],
            names,
            {},
            0.0,
        )
    alone = []
    for one in questions:
        kind = "image" if subject.frames == 1 else "video"
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": one.text}]}],
            add_generation_prompt=True,
        )
        pictures = np.stack([subject.picture(scene, at) for at, scene in enumerate(scenes)])
        media = {"images": pictures[0]} if kind == "image" else {"videos": [pictures]}
        inputs = processor(text=f"{prompt} {one.answer}</s>", **media, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        said = len(words(f" {one.answer}</s>", add_special_tokens=False).input_ids)
        alone.append(
            F.cross_entropy(
                logits[-1 - said : -1], inputs["input_ids"][0, -said:], reduction="none"
            )
        )
    torch.testing.assert_close(
        packed.loss, torch.cat(alone).mean(), rtol=2e-3, atol=2e-3
    )  # features are float16


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_looks_and_names_are_about_what_is_asked(subject: Subject) -> None:
    for number in range(20):
        shown, rng = subject.show(number), np.random.default_rng(number)
        scenes = subject.scenes(shown)
        seen = [labels(scene).thing for scene in scenes]
        for question in subject.ask(shown, rng, 6):
            for look in subject.looks(shown, question):
                frames, places = np.divmod(look.patches, len(seen[0]))
                assert set(question.text[: look.end].split()[-1]) & set(
                    "abcdefghijklmnopqrstuvwxyz"
                )
                if question.type in ("colour", "mover") and len(frames):
                    (thing,) = {
                        int(seen[frame][place]) for frame, place in zip(frames, places, strict=True)
                    }
                    assert shown.things[thing].colour == question.answer
            where = [look.where for look in subject.looks(shown, question) if look.where]
            if question.type == "relation":
                (x, y), (other_x, other_y) = where
                assert {
                    "left": x < other_x,
                    "right": x > other_x,
                    "above": y < other_y,
                    "below": y > other_y,
                }[question.answer]
            if question.type == "order":
                (begin, end), (other_begin, other_end) = where
                assert end < other_begin if question.answer == "before" else other_end < begin
        for scene, thing in zip(scenes, seen, strict=True):
            shape = named(scene)[:, 0].numpy()
            assert ((shape < 5) == (thing >= 0)).all()


def test_few_patches_hold_every_centre_and_glyph() -> None:
    for number in range(20):
        shown = labels(Shapes().show(number))
        kept = few(shown, 80, np.random.default_rng(0))
        assert len(kept) == 80
        assert (np.diff(kept) > 0).all()
        assert np.isin(shown.centre, kept).all()
        assert np.isin(np.flatnonzero(shown.glyph >= 0), kept).all()


def test_an_interrupted_tower_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    def trained(file: Path, stops: list[int]) -> dict[str, torch.Tensor]:
        for stop in stops:
            torch.manual_seed(0)
            network = students.model(
                "demo-video-llava", students.tokenizer(["a"])
            ).model.video_tower
            clock = Clock()
            clock.share = lambda step, steps: 1.0  # type: ignore[method-assign]
            first.run(Motion(), network, file, clock, stop)
        return network.state_dict()

    whole, parts = trained(tmp_path / "a.pt", [4]), trained(tmp_path / "b.pt", [2, 4])
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)


def test_a_killed_save_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.save(tmp_path / "a.pt", step=1)
    monkeypatch.setattr(
        state.os, "replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        state.save(tmp_path / "a.pt", step=2)
    assert (state.load(tmp_path / "a.pt") or {})["step"] == 1


def test_the_tower_starts_by_looking_at_neighbours() -> None:
    torch.manual_seed(0)
    network = students.model("demo-llava", students.tokenizer(["a"])).model.vision_tower
    pictures = tower.pixels(
        [Shapes().picture(Shapes().crowd(np.random.default_rng(n)), 0) for n in range(8)]
    )
    tower.start(network, pictures)
    network.set_attn_implementation("eager")
    with torch.no_grad():
        looked = network(pictures[:1], output_attentions=True).attentions[0][0, :, 1:, 1:]
    inner = torch.arange(24 * 24).view(24, 24)[1:-1, 1:-1].flatten()
    neighbours = [24 * y + x for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]
    found = torch.stack(
        [looked[head, inner].argmax(1) == inner + step for head, step in enumerate(neighbours)]
    )
    assert found.float().mean() > 0.8


def test_wilson() -> None:
    low, high = Mark(8, 10).interval
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)  # Newcombe, 1998
    assert replace(Mark(0, 10), right=10).interval[1] == pytest.approx(1.0)
