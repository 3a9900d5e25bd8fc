"""The recipe of the demo models: packed batches, labels, and training that is interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from demo.training import saved_state, small_models, tower_losses, tower_stage
from demo.training.batches import choose_patches, make_batch
from demo.training.decoder_losses import AuxiliaryHeads, compute_losses, vocabulary, word_targets
from demo.training.evaluation import Accuracy
from demo.training.patch_labels import labels
from demo.training.small_models import BEFORE_ANSWER, BEFORE_QUESTION
from demo.training.step_loop import StepLoop
from demo.training.tasks import MotionTask, ShapesTask, Task

TASKS: list[Task] = [ShapesTask(), MotionTask()]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_packed_batch_has_the_loss_of_single_questions(task: Task) -> None:
    """One sequence with a block mask has the loss of the questions one by one."""
    torch.manual_seed(0)
    shown, rng = task.show(3), np.random.default_rng(0)
    scenes, questions = task.scenes(shown), task.ask(shown, rng, 4)
    words = small_models.tokenizer(
        [f"{BEFORE_QUESTION}\n{one.text}{BEFORE_ANSWER} {one.answer}" for one in questions] * 2
    )
    model, processor = (
        small_models.model(task.name, words).eval(),
        small_models.processor(task.name, words),
    )
    eye = model.model.vision_tower if task.frames == 1 else model.model.video_tower
    features = torch.from_numpy(tower_stage.features_of(eye, task, 3)).float()
    if not task.cls:
        features = features[:, 1:]
    patches = len(labels(scenes[0]).thing)
    extra = [at * (patches + 1) for at in range(task.frames)] if task.cls else []
    asked = [[(one, task.attention_targets(shown, one)) for one in questions]]
    given = make_batch(words, asked, np.arange(task.frames * patches)[None], extra)
    names = torch.full((1, features.shape[0] * features.shape[1], 4), -1)
    with torch.no_grad():
        packed = compute_losses(
            model,
            vocabulary(words),
            AuxiliaryHeads({}, 128),
            given,
            features.flatten(0, 1)[None],
            names,
            {},
            0.0,
        )
    alone = []
    for one in questions:
        kind = "image" if task.frames == 1 else "video"
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": one.text}]}],
            add_generation_prompt=True,
        )
        pictures = np.stack([task.picture(scene, at) for at, scene in enumerate(scenes)])
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


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_attention_targets_and_words_fit_the_question(task: Task) -> None:
    for number in range(20):
        shown, rng = task.show(number), np.random.default_rng(number)
        scenes = task.scenes(shown)
        seen = [labels(scene).thing for scene in scenes]
        for question in task.ask(shown, rng, 6):
            for look in task.attention_targets(shown, question):
                frames, places = np.divmod(look.patches, len(seen[0]))
                assert set(question.text[: look.end].split()[-1]) & set(
                    "abcdefghijklmnopqrstuvwxyz"
                )
                if question.type in ("colour", "mover") and len(frames):
                    (thing,) = {
                        int(seen[frame][place]) for frame, place in zip(frames, places, strict=True)
                    }
                    assert shown.things[thing].colour == question.answer
            where = [look.where for look in task.attention_targets(shown, question) if look.where]
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
            shape = word_targets(scene)[:, 0].numpy()
            assert ((shape < 5) == (thing >= 0)).all()


def test_chosen_patches_include_every_centre_and_glyph() -> None:
    for number in range(20):
        shown = labels(ShapesTask().show(number))
        kept = choose_patches(shown, 80, np.random.default_rng(0))
        assert len(kept) == 80
        assert (np.diff(kept) > 0).all()
        assert np.isin(shown.centre, kept).all()
        assert np.isin(np.flatnonzero(shown.glyph >= 0), kept).all()


def test_interrupted_tower_ends_with_the_same_weights(tmp_path: Path) -> None:
    def trained(file: Path, stops: list[int]) -> dict[str, torch.Tensor]:
        for stop in stops:
            torch.manual_seed(0)
            network = small_models.model(
                "demo-video-llava", small_models.tokenizer(["a"])
            ).model.video_tower
            loop = StepLoop()
            loop.share = lambda step, steps: 1.0  # type: ignore[method-assign]
            tower_stage.run(MotionTask(), network, file, loop, stop)
        return network.state_dict()

    whole, parts = trained(tmp_path / "a.pt", [4]), trained(tmp_path / "b.pt", [2, 4])
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)


def test_interrupted_save_leaves_the_previous_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_state.save(tmp_path / "a.pt", step=1)
    monkeypatch.setattr(
        saved_state.os, "replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        saved_state.save(tmp_path / "a.pt", step=2)
    assert (saved_state.load(tmp_path / "a.pt") or {})["step"] == 1


def test_initial_tower_attends_to_neighbours() -> None:
    torch.manual_seed(0)
    network = small_models.model("demo-llava", small_models.tokenizer(["a"])).model.vision_tower
    pictures = tower_losses.pixels(
        [ShapesTask().picture(ShapesTask().crowd(np.random.default_rng(n)), 0) for n in range(8)]
    )
    tower_losses.initialise(network, pictures)
    network.set_attn_implementation("eager")
    with torch.no_grad():
        looked = network(pictures[:1], output_attentions=True).attentions[0][0, :, 1:, 1:]
    inner = torch.arange(24 * 24).view(24, 24)[1:-1, 1:-1].flatten()
    neighbours = [24 * y + x for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]
    found = torch.stack(
        [looked[head, inner].argmax(1) == inner + step for head, step in enumerate(neighbours)]
    )
    assert found.float().mean() > 0.8


def test_interval_of_accuracy_is_wilsons() -> None:
    low, high = Accuracy(8, 10).interval
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)  # Newcombe, 1998
    assert replace(Accuracy(0, 10), right=10).interval[1] == pytest.approx(1.0)
