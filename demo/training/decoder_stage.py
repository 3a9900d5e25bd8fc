"""The decoder's stage: trains with few visual tokens first and with all of them last.

The few are chosen so that every thing is still visible. They make steps cheap while the model
learns to look things up, and teach it that tokens may be missing. It is not tested like that: from
halfway on the pictures grow to all tokens.
"""

from pathlib import Path

import numpy as np
import torch
import transformers as hf
from torch import Tensor
from torch.nn import functional as F

from demo.training import saved_state
from demo.training.batches import TrainingBatch, choose_patches, make_batch
from demo.training.decoder_losses import AuxiliaryHeads, compute_losses, vocabulary, word_targets
from demo.training.optimiser import muon
from demo.training.patch_labels import labels
from demo.training.step_loop import StepLoop
from demo.training.tasks import Task

_QUESTIONS = 12  # of each picture
# Shares of the visual tokens to choose from, until this share of the steps.
_SHARES = (
    (0.5, (0.11, 0.14, 0.2)),
    (0.8, (0.2, 0.33, 0.5)),
    (1.0, (0.2, 0.5, 1.0, 1.0)),
)
_TOKENS = 600  # visual tokens a step, roughly: with fewer in a picture there are more pictures
# Auxiliary losses have full weight until this share of the steps, and then the second number.
_AUXILIARY = (0.7, 0.2)


def run(
    task: Task,
    model: hf.PreTrainedModel,
    words: hf.PreTrainedTokenizerFast,
    features: np.ndarray,
    file: Path,
    loop: StepLoop,
    steps: int,
) -> None:
    """Train projector and decoder of `model` in place, up to step `steps`."""
    device = model.device
    extras = AuxiliaryHeads(task.told, model.config.text_config.hidden_size).to(device)
    student = torch.nn.ModuleList(
        [model.model.multi_modal_projector, model.model.language_model, extras]
    )
    optimiser = muon(
        student, [model.model.multi_modal_projector, model.model.language_model.layers], rate=1.5e-3
    )
    tokens = vocabulary(words, device)
    done = 0
    saved = saved_state.load(file)
    if saved:
        student.load_state_dict(saved["student"])
        optimiser.load_state_dict(saved["optimiser"])
        done = saved["step"]

    def keep(step: int) -> None:
        saved_state.save(
            file, student=student.state_dict(), optimiser=optimiser.state_dict(), step=step
        )

    for step in loop.steps("reader", done, steps, keep):
        model.train()
        given, seen, names, told, kinds = _batch(task, words, features, step, steps)
        given, seen, names = (part.to(device) for part in (given, seen, names))
        told = {name: kind.to(device) for name, kind in told.items()}
        until, less = _AUXILIARY
        marks = compute_losses(
            model, tokens, extras, given, seen, names, told, 1.0 if step < until * steps else less
        )
        marks.loss.backward()
        optimiser.step(loop.share(step, steps))
        answers = marks.answers.float().cpu().numpy()
        right = {kind: answers[kinds == kind].mean() for kind in np.unique(kinds)}
        loop.note(**marks.parts, **{kind: float(value) for kind, value in right.items()})
    model.eval()


def _batch(
    task: Task, words: hf.PreTrainedTokenizerFast, features: np.ndarray, step: int, steps: int
) -> tuple[TrainingBatch, Tensor, Tensor, dict[str, Tensor], np.ndarray]:
    rng = saved_state.step_rng(3, step)
    frames, patches = features.shape[1], features.shape[2] - 1
    shares = next(shares for until, shares in _SHARES if step < until * steps or until == 1.0)
    number = max(4, round(patches * float(rng.choice(shares))))  # a frame
    first = [0] * task.cls  # position of CLS in a frame's features
    asked, chosen, seen, names = [], [], [], []
    told: dict[str, list[Tensor]] = {name: [] for name in task.told}
    for which in rng.integers(0, len(features), max(2, min(10, _TOKENS // (number * frames)))):
        picture = task.show(int(which))
        table, say = np.array(features[which]), task.tell(picture)
        parts, rows, words_for = [], [], []
        said: dict[str, list[np.ndarray]] = {name: [] for name in say}
        for at, scene in enumerate(task.scenes(picture)):
            part = choose_patches(labels(scene), number, rng)
            parts.append(part + at * patches)
            rows.append(table[at, np.concatenate([first, part + 1]).astype(int)])
            # CLS is not a patch: it has no words and no labels.
            words_for.append(
                F.pad(word_targets(scene)[torch.from_numpy(part)], (0, 0, len(first), 0), value=-1)
            )
            for name, kinds in say.items():
                said[name] += [np.full(len(first), -1), kinds[parts[-1]]]
        questions = task.ask(picture, rng, _QUESTIONS)
        asked.append(
            [(question, task.attention_targets(picture, question)) for question in questions]
        )
        chosen.append(np.concatenate(parts))
        seen.append(torch.from_numpy(np.concatenate(rows)).float())
        names.append(torch.cat(words_for))
        for name, kinds_of in said.items():
            told[name].append(torch.from_numpy(np.concatenate(kinds_of)))
    extra = [at * (number + 1) for at in range(frames)] if task.cls else []
    given = make_batch(words, asked, np.stack(chosen), extra)
    types = np.array([question.type for row in asked for question, _ in row])
    stacked = {name: torch.stack(rows_of) for name, rows_of in told.items()}
    return given, torch.stack(seen), torch.stack(names), stacked, types
