"""The tower's stage: windows of crowded pictures first, whole ordinary pictures last."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demo.training import saved_state, tower_losses
from demo.training.optimiser import muon
from demo.training.patch_labels import PATCH
from demo.training.step_loop import StepLoop
from demo.training.tasks import Task

# Patches a side. Attention over a quarter of the picture costs a fraction.
_WINDOW = 12
# Per step. Many small steps teach a tower more than few large ones.
_PICTURES, _WINDOWS = 2, 3
_EARLY = 2  # layers after which outlines must be known


def run(
    task: Task,
    network: nn.Module,
    file: Path,
    loop: StepLoop,
    steps: int,
    elder: Path | None = None,
) -> None:
    """Train `network` in place up to step `steps`, the last tenth of them on whole pictures.

    elder: saved state of a tower of the same architecture for larger pictures, to start from
    """
    side = network.config.image_size // PATCH
    device = network.device
    heads = tower_losses.PatchHeads(network.config.hidden_size).to(device)
    optimiser = muon(nn.ModuleList([network, heads]), [network.encoder], rate=1.5e-3)
    done = 0
    saved = saved_state.load(file)
    if saved:
        network.load_state_dict(saved["network"])
        heads.load_state_dict(saved["heads"])
        optimiser.load_state_dict(saved["optimiser"])
        done = saved["step"]
    elif elder and elder.exists():
        inherit_weights(network, heads, saved_state.load(elder) or {})
    else:
        crowds = [task.crowd(saved_state.step_rng(1, number)) for number in range(64)]
        tower_losses.initialise(
            network.cpu(), tower_losses.pixels([task.picture(scene, 0) for scene in crowds])
        )
        network.to(device)

    def keep(step: int) -> None:
        parts = {
            "network": network.state_dict(),
            "heads": heads.state_dict(),
            "optimiser": optimiser.state_dict(),
        }
        saved_state.save(file, **parts, step=step)

    network.train()
    for step in loop.steps("tower", done, steps, keep):
        whole = side <= _WINDOW or step >= steps * 9 // 10
        pictures, places, truth = _batch(task, step, side, whole)
        pictures, places = pictures.to(device), places.to(device)
        truth = {name: label.to(device) for name, label in truth.items()}
        layers = list(_forward(network, pictures, places))
        loss, right = tower_losses.compute_loss(heads, layers[_EARLY - 1], layers[-1], truth)
        loss.backward()
        optimiser.step(loop.share(step, steps))
        loop.note(loss=float(loss.detach()), **right)
    network.eval()


def inherit_weights(network: nn.Module, heads: nn.Module, elder: dict[str, Any]) -> None:
    """Copy all weights of the elder; of its positions, a corner."""
    weights, name = elder["network"], "embeddings.position_embedding.weight"
    side, large = network.config.image_size // PATCH, int((len(weights[name]) - 1) ** 0.5)
    grid = 1 + torch.arange(large * large).view(large, large)[:side, :side].flatten()
    places = weights[name][torch.cat([torch.zeros(1, dtype=torch.long), grid])]
    network.load_state_dict(
        {**weights, name: places, "embeddings.position_ids": torch.arange(len(places))[None]},
        strict=False,
    )
    heads.load_state_dict(elder["heads"])


def _batch(
    task: Task, step: int, side: int, whole: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    rng = saved_state.step_rng(2, step)
    crowded = not whole or step % 2 > 0
    scenes = [
        task.crowd(rng) if crowded else task.scenes(task.show(_PICTURES * step + number))[-1]
        for number in range(_PICTURES)
    ]
    pictures, truth = (
        tower_losses.pixels([task.picture(scene, 0) for scene in scenes]),
        tower_losses.dense_labels(scenes),
    )
    grid = torch.arange(side * side).view(side, side)
    if whole:
        return pictures, grid.flatten().expand(len(scenes), -1), truth
    parts, places, truths = [], [], []
    for y, x in rng.integers(0, side - _WINDOW + 1, (_WINDOWS, 2)):
        inside = grid[y : y + _WINDOW, x : x + _WINDOW].flatten()
        rows, columns = (slice(PATCH * at, PATCH * (at + _WINDOW)) for at in (y, x))
        parts.append(pictures[:, :, rows, columns])
        places.append(inside.expand(len(scenes), -1))
        truths.append(
            {
                name: label if label.dim() == 2 and name == "picture" else label[:, inside]
                for name, label in truth.items()
            }
        )
    joined = {name: torch.cat([one[name] for one in truths]) for name in truth}
    return torch.cat(parts), torch.cat(places), joined


def _forward(network: nn.Module, pictures: Tensor, places: Tensor) -> Iterator[Tensor]:
    """Output of every layer, for windows at their positions in the picture."""
    embeddings = network.embeddings
    hidden = embeddings.patch_embedding(pictures).flatten(2).mT + embeddings.position_embedding(
        places + 1
    )
    first = embeddings.class_embedding + embeddings.position_embedding.weight[0]
    hidden = torch.cat([first.expand(len(hidden), 1, -1), hidden], 1)
    hidden = network.pre_layrnorm(hidden)
    for layer in network.encoder.layers:
        hidden = layer(hidden, None)
        yield hidden


@torch.inference_mode()
def features_of(network: nn.Module, task: Task, number: int) -> np.ndarray:
    """The tower's features of one training picture, (frames, CLS + patches, width) float16."""
    scenes = enumerate(task.scenes(task.show(number)))
    pictures = tower_losses.pixels([task.picture(scene, at) for at, scene in scenes]).to(
        network.device
    )
    places = torch.arange((network.config.image_size // PATCH) ** 2, device=network.device)
    *_, hidden = _forward(network, pictures, places.expand(len(pictures), -1))
    return hidden.half().cpu().numpy()
