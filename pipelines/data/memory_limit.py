"""A memory limit for decoding untrusted files, of which a few bytes may expand to any size."""

import contextlib
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

_STATM = Path("/proc/self/statm")
_one_at_a_time = threading.RLock()  # the limit applies to the whole process


@contextlib.contextmanager
def bounded(limit: int) -> Iterator[None]:
    """Raise MemoryError if the process needs over `limit` bytes more than now. Linux only."""
    if not _STATM.exists():
        yield
        return
    with _one_at_a_time:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        ceiling = int(_STATM.read_text().split()[0]) * resource.getpagesize() + limit
        lower = ceiling if soft == resource.RLIM_INFINITY else min(soft, ceiling)
        resource.setrlimit(resource.RLIMIT_AS, (lower, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
