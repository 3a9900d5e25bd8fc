"""A ceiling on memory where files from outside are unpacked: a few bytes of them may stand for any number of values."""

from __future__ import annotations

import contextlib
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

_STATM = Path("/proc/self/statm")
_one = threading.RLock()  # the ceiling is the process's


@contextlib.contextmanager
def bounded(limit: int) -> Iterator[None]:
    """Who takes more than `limit` bytes in here, beside what the process has, gets a MemoryError. Linux only."""
    if not _STATM.exists():
        yield
        return
    with _one:
        before, most = resource.getrlimit(resource.RLIMIT_AS)
        ceiling = int(_STATM.read_text().split()[0]) * resource.getpagesize() + limit
        lower = ceiling if before == resource.RLIM_INFINITY else min(before, ceiling)
        resource.setrlimit(resource.RLIMIT_AS, (lower, most))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (before, most))
