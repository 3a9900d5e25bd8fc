"""Batches on their way to the device: copied while the one before is computed, and waited for by the device alone.

The host writes a batch into pinned memory, a stream of its own copies it and makes floats of its pixels, and an event
says when that is done. Where the device is the CPU nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Inputs = dict[str, Tensor]


class TransferredBatch(NamedTuple):
    """A batch that may still be on its way."""

    tensors: Inputs
    there: torch.cuda.Event | None

    def taken(self) -> Inputs:
        """For who computes with it: its stream waits for the copy, and the host goes on."""
        if self.there is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.there)
            for tensor in self.tensors.values():
                tensor.record_stream(
                    stream
                )  # or the copying stream could take its memory again too early
        return self.tensors


class DeviceTransfer:
    """The way to one device; `finish` is done there, beside the copy."""

    def __init__(self, device: torch.device, finish: Callable[[Inputs], Inputs]) -> None:
        self._device, self._finish = device, finish
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, batch: Inputs) -> TransferredBatch:
        """From any thread."""
        if self._stream is None:
            return TransferredBatch(self._finish(batch), None)
        with torch.cuda.stream(self._stream):
            there = {
                name: value.pin_memory().to(self._device, non_blocking=True)
                for name, value in batch.items()
            }
            return TransferredBatch(self._finish(there), self._stream.record_event())
