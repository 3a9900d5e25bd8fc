"""The decoder's stage: few visual tokens first, all of them last.

Few, chosen so that every thing is still there, make a step cheap while the model learns how to look things up, and
teach it that tokens may be missing. That is not what it is tested with: from halfway on pictures grow, to all tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers as hf
from torch import Tensor
from torch.nn import functional as F

from demo.training import state
from demo.training.lessons import Lesson, few, lesson
from demo.training.optimiser import muon
from demo.training.reader import Extras, named, study, vocabulary
from demo.training.schedule import Clock
from demo.training.subject import Subject
from pipelines.benchmarks.synthetic.scenes import labels

_ASKED = 12  # questions a picture
_SHARES = (
    (0.5, (0.11, 0.14, 0.2)),
    (0.8, (0.2, 0.33, 0.5)),
    (1.0, (0.2, 0.5, 1.0, 1.0)),
)  # until when, of the tokens
_TOKENS = 600  # visual tokens a step, roughly: fewer a picture, more pictures
_HELP = (
    0.7,
    0.2,
)  # until when all that is taught on the side counts in full, and what it counts afterwards


def run(
    subject: Subject,
    model: hf.PreTrainedModel,
    words: hf.PreTrainedTokenizerFast,
    features: np.ndarray,
    file: Path,
    clock: Clock,
    steps: int,
) -> None:
    """Train projector and decoder of `model`, in place, until `steps` are done."""
    device = model.device
    extras = Extras(subject.told, model.config.text_config.hidden_size).to(device)
    student = torch.nn.ModuleList(
        [model.model.multi_modal_projector, model.model.language_model, extras]
    )
    optimiser = muon(
        student, [model.model.multi_modal_projector, model.model.language_model.layers], rate=1.5e-3
    )
    tokens = vocabulary(words, device)
    done = 0
    known = state.load(file)
    if known:
        student.load_state_dict(known["student"])
        optimiser.load_state_dict(known["optimiser"])
        done = known["step"]

    def keep(step: int) -> None:
        state.save(file, student=student.state_dict(), optimiser=optimiser.state_dict(), step=step)

    for step in clock.steps("reader", done, steps, keep):
        model.train()
        given, seen, names, told, kinds = _batch(subject, words, features, step, steps)
        given, seen, names = (part.to(device) for part in (given, seen, names))
        told = {name: kind.to(device) for name, kind in told.items()}
        until, less = _HELP
        marks = study(
            model, tokens, extras, given, seen, names, told, 1.0 if step < until * steps else less
        )
        marks.loss.backward()
        optimiser.step(clock.share(step, steps))
        answers = marks.answers.float().cpu().numpy()
        right = {kind: answers[kinds == kind].mean() for kind in np.unique(kinds)}
        clock.note(**marks.parts, **{kind: float(value) for kind, value in right.items()})
    model.eval()


def _batch(
    subject: Subject, words: hf.PreTrainedTokenizerFast, features: np.ndarray, step: int, steps: int
) -> tuple[Lesson, Tensor, Tensor, dict[str, Tensor], np.ndarray]:
    rng = state.dice(3, step)
    frames, patches = features.shape[1], features.shape[2] - 1
    shares = next(shares for until, shares in _SHARES if step < until * steps or until == 1.0)
    number = max(4, round(patches * float(rng.choice(shares))))  # a frame
    first = [0] * subject.cls  # where CLS stands in a frame's features
    asked, chosen, seen, names = [], [], [], []
    told: dict[str, list[Tensor]] = {name: [] for name in subject.told}
    for which in rng.integers(0, len(features), max(2, min(10, _TOKENS // (number * frames)))):
        picture = subject.show(int(which))
        table, say = np.array(features[which]), subject.tell(picture)
        parts, rows, words_for = [], [], []
        said: dict[str, list[np.ndarray]] = {name: [] for name in say}
        for at, scene in enumerate(subject.scenes(picture)):
            part = few(labels(scene), number, rng)
            parts.append(part + at * patches)
            rows.append(table[at, np.concatenate([first, part + 1]).astype(int)])
            # CLS is no patch: it deserves none of the words, and nothing is told of it
            words_for.append(
                F.pad(named(scene)[torch.from_numpy(part)], (0, 0, len(first), 0), value=-1)
            )
            for name, kinds in say.items():
                said[name] += [np.full(len(first), -1), kinds[parts[-1]]]
        questions = subject.ask(picture, rng, _ASKED)
        asked.append([(question, subject.looks(picture, question)) for question in questions])
        chosen.append(np.concatenate(parts))
        seen.append(torch.from_numpy(np.concatenate(rows)).float())
        names.append(torch.cat(words_for))
        for name, kinds_of in said.items():
            told[name].append(torch.from_numpy(np.concatenate(kinds_of)))
    extra = [at * (number + 1) for at in range(frames)] if subject.cls else []
    given = lesson(words, asked, np.stack(chosen), extra)
    types = np.array([question.type for row in asked for question, _ in row])
    stacked = {name: torch.stack(rows_of) for name, rows_of in told.items()}
    return given, torch.stack(seen), torch.stack(names), stacked, types
