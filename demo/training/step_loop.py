"""The loop over training steps: logs, saves, and sets the learning rate."""

import logging
import math
import time
from collections.abc import Callable, Iterator

_log = logging.getLogger(__name__)
_LOG_EVERY_S, _SAVE_EVERY_S = 30.0, 120.0


class StepLoop:
    """Counts the steps of a stage, logs every half minute and saves every two minutes."""

    def __init__(
        self, report: Callable[[dict[str, float], int], None] = lambda numbers, step: None
    ) -> None:
        self.report = report
        self.numbers: dict[str, float] = {}

    def steps(
        self, stage: str, done: int, until: int, keep: Callable[[int], None]
    ) -> Iterator[int]:
        self.numbers = {}
        began = told = saved = time.monotonic()
        for step in range(done, until):
            yield step
            now = time.monotonic()
            if now - told > _LOG_EVERY_S or step == until - 1:
                pace = (step + 1 - done) / (now - began)
                left = (until - step - 1) / pace / 60
                said = ", ".join(f"{name} {value:.3f}" for name, value in self.numbers.items())
                _log.info(
                    "%s %d/%d, %.2f steps/s, %.0f min left: %s",
                    stage,
                    step + 1,
                    until,
                    pace,
                    left,
                    said,
                )
                self.report(
                    {f"{stage}_{name}": value for name, value in self.numbers.items()}, step + 1
                )
                told = now
            if now - saved > _SAVE_EVERY_S or step == until - 1:
                keep(step + 1)
                saved = now

    def note(self, **numbers: float) -> None:
        """Add numbers for the log, smoothed over about fifty steps."""
        for name, value in numbers.items():
            if not math.isnan(value):
                self.numbers[name] = 0.98 * self.numbers.get(name, value) + 0.02 * value

    @staticmethod
    def share(step: int, steps: int) -> float:
        """Share of the learning rate: a short rise, then a long fall, when most is learned."""
        return min((step + 1) / 50, max(0.02, (steps - step) / steps))
