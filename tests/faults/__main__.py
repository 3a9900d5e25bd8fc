"""python tests/faults --times 20: every fault so many times, a table, and one line of JSON last.

    python tests/faults --times 20 --only hangs --only store_busy
    python tests/faults --soak 30           # minutes of nights with one to three faults each, as the dice fall

An injection has a seed, which chooses the row, the moment and the size; a night is one job, and has several of them.
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

import conftest  # noqa: F401  the environment of all tests, before Ray is imported

from tests.faults import FAULTS, NIGHTS, ONCE
from tests.faults.places import mounts
from tests.faults.scene import Count, Theatre


@dataclass
class Tally:
    """What became of one fault."""

    fault: str
    injected: int = 0
    lost: int = 0  # in its nights, whichever fault it was
    doubled: int = 0
    failed: int = 0  # injections of nights after which anything else was not as it should be
    recoveries: list[float] = field(default_factory=list)

    def add(self, count: Count, recoveries: Sequence[float]) -> None:
        self.injected += 1
        self.lost += count.lost
        self.doubled += count.doubled
        self.recoveries += recoveries

    def line(self) -> dict[str, object]:
        median = round(statistics.median(self.recoveries), 1) if self.recoveries else None
        return {
            **{key: value for key, value in asdict(self).items() if key != "recoveries"},
            "recovery_s": median,
        }


def nights(names: Sequence[str], times: int) -> Iterator[list[str]]:
    for group in NIGHTS:
        some = [name for name in group if name in names]
        yield from [some] * times if some else ()


def soak(names: Sequence[str], minutes: float, dice: random.Random) -> Iterator[list[str]]:
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        some = dice.sample(list(names), dice.randint(1, 3))
        once = [name for name in some if name in ONCE]
        yield [name for name in some if name not in once[1:]]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python tests/faults", description="Faults, done for real, and counted."
    )
    parser.add_argument("--times", type=int, default=1, help="injections of each fault")
    parser.add_argument(
        "--soak", type=float, metavar="MINUTES", help="random faults for so long instead"
    )
    parser.add_argument(
        "--only", action="append", choices=FAULTS, metavar="FAULT", help=", ".join(FAULTS)
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = [name for name in args.only or FAULTS if name != "disk_full" or mounts()]
    if "disk_full" in (args.only or FAULTS) and "disk_full" not in names:
        print(
            "disk_full is left out: it mounts a small file system, which takes root",
            file=sys.stderr,
        )
    plan = (
        soak(names, args.soak, random.Random(args.seed)) if args.soak else nights(names, args.times)
    )
    tallies = {name: Tally(name) for name in names}
    total, began = Tally("all"), time.monotonic()
    with (
        contextlib.suppress(KeyboardInterrupt),
        Theatre() as theatre,
    ):  # after Ctrl-C: what has been counted
        for number, some in enumerate(plan):
            night = theatre.night(args.seed + number)
            try:
                count = night.play([FAULTS[name] for name in some])
            except Exception:
                traceback.print_exc()
                total.failed += len(some)
                for name in some:
                    tallies[name].failed += 1
                theatre.again()
                continue
            for name in some:
                tallies[name].add(count, night.recoveries.get(name, []))
                total.injected += 1
            total.lost, total.doubled = total.lost + count.lost, total.doubled + count.doubled
            print(f"night {number}, {', '.join(some)}: {count}", file=sys.stderr, flush=True)
    print(
        "| fault | injected | failed | rows lost | rows doubled | recovery, median s |\n|---|---|---|---|---|---|"
    )
    for tally in (*tallies.values(), total):
        line = tally.line()
        median = "" if line["recovery_s"] is None else line["recovery_s"]
        print(
            f"| {tally.fault} | {tally.injected} | {tally.failed} | {tally.lost} | {tally.doubled} | {median} |"
        )
    minutes = round((time.monotonic() - began) / 60, 1)
    print(
        json.dumps(
            {"minutes": minutes, "faults": [tally.line() for tally in (*tallies.values(), total)]}
        )
    )
    return 1 if total.failed or total.lost or total.doubled else 0


if __name__ == "__main__":
    sys.exit(main())
