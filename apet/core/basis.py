"""Three ways to choose the basis: the M tokens that all others are approximated from (Table 5 of the paper).

All take a `Gram` of B groups and return the chosen indices (B, M). None depends on the batch that a group is in,
and none chooses a token twice, however many tokens are equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from apet.core.gram import NOISE, Gram, first_largest, largest

NEIGHBOURS = 5  # density is measured over the nearest five, the usual choice for DPC-KNN
TWIN = 2.0**-32  # densities and scores, numbers of order one, differ by less between equal tokens
BLOCK = 1 << 22  # Gram entries held at a time where all rows are needed


def farthest_points(gram: Gram, size: int, seed: int) -> Tensor:
    """Farthest point sampling: each pick is the token farthest from all picks so far, in the order of picking.

    The first is the token farthest from the mean. (The authors start anywhere, so their runs cannot be repeated.)
    """
    pick = first_largest(*gram.distances_to_mean())
    picks = [pick]
    nearest = noise = torch.full_like(gram.norms, torch.inf)
    for _ in range(size - 1):
        distance, its_noise = (part[:, 0] for part in gram.distances(pick))
        noise = torch.where(distance < nearest, its_noise, noise)
        nearest = torch.minimum(distance, nearest).scatter(1, pick, -torch.inf)
        pick = first_largest(nearest, noise)
        picks.append(pick)
    return torch.cat(picks, dim=1)


def density_peaks(gram: Gram, size: int, seed: int) -> Tensor:
    """Density peak clustering (DPC-KNN): tokens in dense places, far from any token in a denser one.

    Score = density x distance to the nearest denser token, with density = exp(-mean squared distance to the
    nearest five). Distances are in units of the group's own spread, so that scaling the tokens changes no choice.
    Reads all N x N entries, a block of rows at a time.
    """
    batch, count = gram.norms.shape
    near = min(NEIGHBOURS, count - 1)
    spread = (
        2 * gram.distances_to_mean()[0].mean(dim=1)[:, None, None]
    )  # the mean squared distance of two tokens
    unit = torch.where(spread > NOISE * gram.squares.mean(dim=1)[:, None, None], spread, 1.0)
    everyone = torch.arange(count, device=unit.device).expand(batch, count)
    blocks = torch.split(everyone, max(1, BLOCK // max(1, batch * count)), dim=1)

    def distances(block: Tensor) -> Tensor:
        apart = gram.distances(block)[0] / unit
        return apart.scatter(2, block[..., None], torch.inf)  # a token is not its own neighbour

    crowd = [
        distances(block).topk(near, dim=2, largest=False).values.mean(dim=2) for block in blocks
    ]
    density = (-torch.cat(crowd, dim=1)).exp()
    scores = []
    for block in blocks:
        apart = distances(block)
        more = density[:, None] - density.gather(1, block)[..., None]
        # Of equally dense tokens the earlier counts as denser, so that a cluster of twins has one peak.
        denser = (more > TWIN) | ((more >= -TWIN) & (everyone[:, None] < block[..., None]))
        reach = apart.masked_fill(~denser, torch.inf).amin(dim=2)
        farthest = apart.masked_fill(apart.isinf(), 0.0).amax(
            dim=2
        )  # what the densest of all reaches
        scores.append(torch.where(reach.isinf(), farthest, reach))
    return largest(density * torch.cat(scores, dim=1).sqrt(), size, TWIN)


def random_tokens(gram: Gram, size: int, seed: int) -> Tensor:
    """Without replacement; the same draw for every group of a size, on every device."""
    batch, count = gram.norms.shape
    draw = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size]
    return draw.to(gram.norms.device).expand(batch, size)


SAMPLING: dict[str, Callable[[Gram, int, int], Tensor]] = {
    "fps": farthest_points,
    "dpc": density_peaks,
    "random": random_tokens,
}
