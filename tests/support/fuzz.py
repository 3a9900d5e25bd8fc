"""Damages files by a seed and reads them: the result must be rows, pixels or a ValueError.

    python -m tests.support.fuzz --cases 10000     # of each kind: prints a table and the findings
    python -m tests.support.fuzz --kinds videos --first 4711 --cases 1     # one case again

A case is a number and the same file every time. Cases run in another process, which a decoder may
crash. A crash is a finding, as are an exception other than ValueError, more memory than any honest
file needs, and no response.
"""

from __future__ import annotations

import argparse
import queue
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from pipelines.data import spreadsheet
from pipelines.data.manifest import Manifest
from pipelines.data.media import images, videos
from pipelines.data.rows import Row
from tests.support import ROOT, samples

Read = Callable[[random.Random, Path], None]
MEMORY = 4 << 30  # bytes that a case may ask for, beside what the process has anyway
SILENCE = 60.0  # seconds for one case, on a machine that does other things as well
EDGES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63 - 1,
    2**64 - 1,
)

WORDS = (b"-1", b"99999999999", b"1e999", b"\0", b"[[[[", b'"', b"\xff\xfe", b"NaN", b"\n")


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A few kinds of damage, a few times; `other` is a file to take a piece from."""
    held = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(held) + 1)
        length = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(held) - at)
        act = rng.randrange(8)
        if act <= 1:
            held[at : at + 1] = bytes([rng.randrange(256)])
        elif act == 2:
            size = rng.choice((1, 2, 4, 8))
            held[at : at + size] = (rng.choice(EDGES) % 256**size).to_bytes(
                size, rng.choice(("little", "big"))
            )
        elif act == 3:
            del held[at : at + length]
        elif act == 4:
            held[at:at] = held[at : at + length] * rng.choice((1, 2, 200))
        elif act == 5:
            start = rng.randrange(len(other))
            held[at : at + length] = other[start : start + length]
        elif act == 6:
            held[at:at] = rng.choice(
                (b"-1", b"99999999999", b"1e999", b"\0", b"[[[[", b'"', b"\xff\xfe", b"NaN", b"\n")
            )
        elif rng.random() < 0.3:
            del held[at:]
    return checked(bytes(held)) if rng.random() < 0.5 else bytes(held)


def checked(data: bytes) -> bytes:
    """A PNG with right checksums: without them a reader stops at the first one."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    held, at = bytearray(data), 8
    while at + 12 <= len(held):
        (length,) = struct.unpack_from(">I", held, at)
        if at + 12 + length > len(held):
            break
        struct.pack_into(">I", held, at + 8 + length, zlib.crc32(held[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(held)


def of(files: Sequence[bytes], read: Callable[[bytes], None]) -> Read:
    def case(rng: random.Random, folder: Path) -> None:
        read(mutated(rng.choice(files), rng.choice(files), rng))

    return case


def image(data: bytes) -> None:
    pixels = images.decode(data)
    assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == ("uint8", 3, 3)


def video(data: bytes) -> None:
    clip = videos.decode(data, 4)
    assert (clip.frames.dtype, clip.frames.shape[0], len(clip.indices)) == ("uint8", 4, 4)
    assert max(clip.indices) < clip.total


def read_spreadsheet(data: bytes) -> None:
    assert all(isinstance(line, dict) for line in spreadsheet.read_xlsx(data))


def manifest(rng: random.Random, folder: Path) -> None:
    suffix, data = rng.choice(FILES)
    same = [each for end, each in FILES if end == suffix]
    path = folder / f"m{suffix}"
    path.write_bytes(mutated(data, rng.choice(same), rng))
    found = Manifest.of(str(path))
    index = found.index()
    rows = found.read(index)
    assert [row.row_id for row in rows] == index["row_id"].to_pylist()
    assert all(isinstance(row, Row) and (row.error or row.media) for row in rows)
    assert found.digest() == found.digest()


def crash(rng: random.Random, folder: Path) -> None:
    """No reader of ours: what a finding looks like, for the test of this very file."""
    how = rng.randrange(6)
    if how == 0:
        signal.raise_signal(signal.SIGSEGV)
    elif how == 1:
        bytearray(2 * MEMORY)
    elif how == 2:
        raise KeyError("no ValueError")
    elif how == 3:
        raise ValueError("as it should be")
    elif how == 4:
        time.sleep(3600)


FILES = samples.manifests()
KINDS: dict[str, Callable[[], Read]] = {
    "images": lambda: of(samples.images(), image),
    "videos": lambda: of(samples.videos(), video),
    "manifests": lambda: manifest,
    "spreadsheets": lambda: of(samples.spreadsheets(), read_spreadsheet),
    "crashes": lambda: crash,
}


def run_worker(kind: str, first: int, cases: int, folder: Path) -> None:
    """Run cases in this process, and say before and after each."""
    read = KINDS[kind]()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number in range(first, first + cases):
        print("begin", number, flush=True)
        began = time.monotonic()
        try:
            read(random.Random(f"{kind} {number}"), folder)
            said = "read"
        except ValueError:
            said = "refused"
        except Exception as error:
            said = f"found {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print("end", f"{time.monotonic() - began:.2f}", said, flush=True)


@dataclass
class Result:
    """Outcomes of the cases of one kind."""

    kind: str
    read: int = 0
    refused: int = 0
    slowest: tuple[float, int] = (0.0, 0)  # seconds, and which case
    findings: list[tuple[int, str]] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return self.read + self.refused + len(self.findings)

    def take(self, number: int, seconds: float, said: str) -> None:
        self.slowest = max(self.slowest, (seconds, number))
        self.read += said == "read"
        self.refused += said == "refused"
        if said.startswith("found"):
            self.findings.append((number, said.removeprefix("found ")))


def fuzz(kind: str, first: int, cases: int, silence: float = SILENCE) -> Result:
    """Run cases in another process; after a crash the next case gets a new one."""
    result, last = Result(kind), first + cases
    with tempfile.TemporaryDirectory() as folder:
        while first < last:
            given = [
                sys.executable,
                "-m",
                "tests.support.fuzz",
                "--worker",
                folder,
                "--kinds",
                kind,
            ]
            given += ["--first", str(first), "--cases", str(last - first)]
            with subprocess.Popen(
                given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
            ) as process:
                first = _followed(process, first, result, silence)
    return result


def _followed(process: subprocess.Popen[str], first: int, result: Result, silence: float) -> int:
    """Listen to a worker until its end. Returns the first case that it has not run."""
    heard: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    assert process.stderr is not None
    out, said = process.stdout, process.stderr
    threading.Thread(
        target=lambda: [heard.put(line) for line in chain(out, [""])], daemon=True
    ).start()
    noise: list[str] = []
    threading.Thread(target=lambda: noise.extend(said), daemon=True).start()
    number, under_way = first, False
    while True:
        try:
            line = heard.get(timeout=silence if under_way else SILENCE)
        except queue.Empty:
            process.kill()
            line = ""
        word, _, rest = line.strip().partition(" ")
        if word == "begin":
            number, under_way = int(rest), True
        elif word == "end":
            seconds, _, what = rest.partition(" ")
            result.take(number, float(seconds), what)
            number, under_way = number + 1, False
        else:
            break
    code = process.wait()
    if not under_way and code:
        raise RuntimeError(
            f"the worker ended with {code} outside of any case: {''.join(noise)[-2000:]}"
        )
    if under_way:
        how = (
            f"no answer in {silence:g} s"
            if code == -signal.SIGKILL
            else f"the process ended with {code}"
        )
        result.findings.append((number, how))
        number += 1
    return number


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=list(KINDS),
        default=[kind for kind in KINDS if kind != "crashes"],
    )
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        run_worker(given.kinds[0], given.first, given.cases, given.worker)
        return 0
    print("| files | cases | read | refused | findings | slowest |\n|---|---|---|---|---|---|")
    results = []
    for kind in given.kinds:
        each = fuzz(kind, given.first, given.cases)
        seconds, number = each.slowest
        counts = f"{each.cases:,} | {each.read:,} | {each.refused:,} | {len(each.findings):,}"
        print(f"| {kind} | {counts} | {seconds:.1f} s (case {number}) |", flush=True)
        results.append(each)
    for each in results:
        for number, what in each.findings:
            print(f"{each.kind} {number}: {what}")
    return 1 if any(each.findings for each in results) else 0


if __name__ == "__main__":
    sys.exit(main())
