"""Rounds of training: how far each stage is when a checkpoint is written."""

from typing import NamedTuple


class Round(NamedTuple):
    """Totals of each stage at the end of a round; a stage continues from the round before."""

    tower_steps: int
    pictures: int
    steps: int


# Several, because an early checkpoint is useful. The committed demo-video-llava has finished the
# first round and demo-llava the second; the third would improve them.
ROUNDS = (Round(2_000, 1_500, 1_500), Round(4_500, 2_000, 3_750), Round(10_000, 4_000, 12_000))
