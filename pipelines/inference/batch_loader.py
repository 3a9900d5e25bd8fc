"""Moves batches to the device, one ahead of the batch that is being answered."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipelines.inference.engines.device_transfer import Inputs, TransferredBatch
from pipelines.inference.prepared_row import PreparedRow

Rows = Sequence[PreparedRow]


class BatchLoader:
    """Makes the model's inputs of rows.

    start_transfer: collates rows and starts copying them to the device
    prefetch: collate the next batch in a thread while the current one is answered
    """

    def __init__(self, start_transfer: Callable[[Rows], TransferredBatch], prefetch: bool) -> None:
        self._start_transfer = start_transfer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="collate") if prefetch else None

    def load(self, rows: Rows) -> Inputs:
        return self._start_transfer(rows).wait()

    def try_load(self, rows: Rows) -> Inputs | None:
        """The inputs, or None if they cannot be made: `RowGuard.answer` finds out why."""
        try:
            return self.load(rows)
        except Exception:
            return None

    def load_each(
        self, batches: Sequence[list[PreparedRow]]
    ) -> Iterator[tuple[list[PreparedRow], Inputs | None]]:
        """The batches in order with their inputs; None where they are not, or cannot be, made."""
        if self._thread is None:
            yield from ((batch, None) for batch in batches)
            return
        upcoming: Future[TransferredBatch] | None = None
        for number, batch in enumerate(batches):
            current = upcoming or self._thread.submit(self._start_transfer, batch)
            if number + 1 < len(batches):
                upcoming = self._thread.submit(self._start_transfer, batches[number + 1])
            try:
                inputs = current.result().wait()
            except Exception:
                yield batch, None
            else:
                yield batch, inputs
