"""Three ways to choose the basis: the M tokens that approximate all others (Table 5 of the paper).

Each takes a `Gram` of B groups and returns the chosen indices (B, M). The choice for a group does
not depend on its batch, and no token is chosen twice, however many tokens are equal.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from apet.core.gram import NOISE, Gram, first_argmax, stable_topk
from apet.device import copy_async

NEIGHBOURS = 5  # density is measured over the nearest five, the usual choice for DPC-KNN
TIE_TOLERANCE = 2.0**-32  # densities and scores, of order one, differ by less for equal tokens
MAX_BLOCK_ENTRIES = 1 << 22  # Gram entries in memory at a time where all rows are needed


def farthest_points(gram: Gram, size: int, seed: int) -> Tensor:
    """Farthest point sampling: each pick is the token farthest from all picks so far, in order.

    The first pick is the token farthest from the mean. (The authors start at a random token, so
    their runs cannot be repeated.)
    """
    pick = first_argmax(*gram.distances_to_mean())
    picks = [pick]
    nearest = noise = torch.full_like(gram.norms, torch.inf)
    for _ in range(size - 1):
        distance, distance_noise = (values[:, 0] for values in gram.distances(pick))
        noise = torch.where(distance < nearest, distance_noise, noise)
        nearest = torch.minimum(distance, nearest).scatter(1, pick, -torch.inf)
        pick = first_argmax(nearest, noise)
        picks.append(pick)
    return torch.cat(picks, dim=1)


def density_peaks(gram: Gram, size: int, seed: int) -> Tensor:
    """Density peak clustering (DPC-KNN): tokens in dense areas, far from any denser token.

    Score = density x distance to the nearest denser token, with density = exp(-mean squared
    distance to the nearest five). Distances are in units of the group's own spread, so that scaling
    the tokens changes no choice. Reads all N x N entries, a block of rows at a time.
    """
    batch, count = gram.norms.shape
    neighbours = min(NEIGHBOURS, count - 1)
    # The mean squared distance of two tokens.
    spread = 2 * gram.distances_to_mean()[0].mean(dim=1)[:, None, None]
    unit = torch.where(spread > NOISE * gram.squares.mean(dim=1)[:, None, None], spread, 1.0)
    positions = torch.arange(count, device=unit.device).expand(batch, count)
    blocks = torch.split(positions, max(1, MAX_BLOCK_ENTRIES // max(1, batch * count)), dim=1)

    def block_distances(block: Tensor) -> Tensor:
        distance = gram.distances(block)[0] / unit
        return distance.scatter(2, block[..., None], torch.inf)  # no token neighbours itself

    nearest = [block_distances(block).topk(neighbours, dim=2, largest=False) for block in blocks]
    density = (-torch.cat([top.values.mean(dim=2) for top in nearest], dim=1)).exp()
    separations = []
    for block in blocks:
        distance = block_distances(block)
        excess = density[:, None] - density.gather(1, block)[..., None]
        # Among equally dense tokens, the earlier counts as denser: a cluster of twins has one peak.
        earlier = positions[:, None] < block[..., None]
        denser = (excess > TIE_TOLERANCE) | ((excess >= -TIE_TOLERANCE) & earlier)
        separation = distance.masked_fill(~denser, torch.inf).amin(dim=2)
        # The densest token of all has none denser: it gets its largest distance.
        farthest = distance.masked_fill(distance.isinf(), 0.0).amax(dim=2)
        separations.append(torch.where(separation.isinf(), farthest, separation))
    return stable_topk(density * torch.cat(separations, dim=1).sqrt(), size, TIE_TOLERANCE)


def random_tokens(gram: Gram, size: int, seed: int) -> Tensor:
    """Sample without replacement: the same draw for every group of a size, on every device."""
    batch, count = gram.norms.shape
    draw = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size]
    return copy_async(draw, gram.norms.device).expand(batch, size)


SAMPLING: dict[str, Callable[[Gram, int, int], Tensor]] = {
    "fps": farthest_points,
    "dpc": density_peaks,
    "random": random_tokens,
}
