"""Inject faults many times: a table for people, and one JSON line last.

    python tests/faults --times 20
    python tests/faults --times 20 --only row_hangs --only media_throttled
    python tests/faults --soak 30    # minutes of scenarios with one to three random faults each

The seed of a scenario chooses rows, moments and sizes. A scenario is one job with several faults.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

# The environment of all tests, before Ray is imported.
import tests.conftest  # noqa: F401
from tests.faults import EXCLUSIVE, FAULTS, SCENARIOS
from tests.faults.capacity import can_mount
from tests.faults.scenario import Count, Testbed


@dataclass
class Tally:
    """Results of one fault. Lost and duplicated rows count for all faults of a scenario."""

    fault: str
    injected: int = 0
    lost: int = 0
    doubled: int = 0
    failed: int = 0  # injections in scenarios where any other check failed
    recoveries: list[float] = field(default_factory=list)

    def add(self, count: Count, recoveries: Sequence[float]) -> None:
        self.injected += 1
        self.lost += count.lost
        self.doubled += count.duplicated
        self.recoveries += recoveries

    def summary(self) -> dict[str, object]:
        fields = asdict(self)
        recoveries = fields.pop("recoveries")
        median = round(statistics.median(recoveries), 1) if recoveries else None
        return {**fields, "recovery_s": median}


def repeated(names: Sequence[str], times: int) -> Iterator[list[str]]:
    """Each scenario `times` times, with the chosen faults only."""
    for scenario in SCENARIOS:
        chosen = [name for name in scenario if name in names]
        yield from [chosen] * times if chosen else ()


def soak(names: Sequence[str], minutes: float, rng: random.Random) -> Iterator[list[str]]:
    """Scenarios of one to three random faults until the time is over."""
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        chosen = rng.sample(list(names), rng.randint(1, 3))
        exclusive = [name for name in chosen if name in EXCLUSIVE]
        yield [name for name in chosen if name not in exclusive[1:]]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python tests/faults", description="Inject real faults into real jobs, and count rows."
    )
    parser.add_argument("--times", type=int, default=1, help="injections of each fault")
    parser.add_argument(
        "--soak", type=float, metavar="MINUTES", help="random faults for this long instead"
    )
    parser.add_argument(
        "--only", action="append", choices=FAULTS, metavar="FAULT", help=", ".join(FAULTS)
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = list(args.only or FAULTS)
    if "disk_full" in names and not can_mount():
        names.remove("disk_full")
        print(
            "skipping disk_full: it mounts a small file system, which takes root", file=sys.stderr
        )
    if args.soak:
        scenarios = soak(names, args.soak, random.Random(args.seed))
    else:
        scenarios = repeated(names, args.times)
    tallies = {name: Tally(name) for name in names}
    total, began = Tally("all"), time.monotonic()
    # After Ctrl-C, what has been counted so far is printed.
    with contextlib.suppress(KeyboardInterrupt), Testbed() as testbed:
        for number, chosen in enumerate(scenarios):
            scenario = testbed.scenario(args.seed + number)
            try:
                count = scenario.run([FAULTS[name] for name in chosen])
            except Exception:
                traceback.print_exc()
                total.failed += len(chosen)
                for name in chosen:
                    tallies[name].failed += 1
                testbed.replace_machines()
                continue
            for name in chosen:
                tallies[name].add(count, scenario.recoveries.get(name, []))
                total.injected += 1
            total.lost += count.lost
            total.doubled += count.duplicated
            print(f"scenario {number}, {', '.join(chosen)}: {count}", file=sys.stderr, flush=True)
    lines = [tally.summary() for tally in (*tallies.values(), total)]
    print("| fault | injected | failed | rows lost | rows doubled | recovery, median s |")
    print("|---|---|---|---|---|---|")
    columns = ("fault", "injected", "failed", "lost", "doubled", "recovery_s")
    for line in lines:
        cells = ["" if line[column] is None else str(line[column]) for column in columns]
        print(f"| {' | '.join(cells)} |")
    minutes = round((time.monotonic() - began) / 60, 1)
    print(json.dumps({"minutes": minutes, "faults": lines}))
    return 1 if total.failed or total.lost or total.doubled else 0


if __name__ == "__main__":
    sys.exit(main())
