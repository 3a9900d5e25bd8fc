"""Batches on their way to the device: copied while the previous batch is computed.

The host writes a batch into pinned memory, a CUDA stream of its own copies it and converts its
pixels to floats, and an event marks the end. Only the device waits for it, never the host. On a
CPU nothing is copied.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Inputs = dict[str, Tensor]


class TransferredBatch(NamedTuple):
    """A batch whose copy may still be running."""

    tensors: Inputs
    copied: torch.cuda.Event | None

    def wait(self) -> Inputs:
        """The tensors, for the current stream, which waits for the copy; the host does not."""
        if self.copied is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.copied)
            for tensor in self.tensors.values():
                # otherwise the copying stream could reuse the memory too early
                tensor.record_stream(stream)
        return self.tensors


class DeviceTransfer:
    """Copies batches to one device and finishes them there (`finish` runs beside the copy)."""

    def __init__(self, device: torch.device, finish: Callable[[Inputs], Inputs]) -> None:
        self._device, self._finish = device, finish
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, batch: Inputs) -> TransferredBatch:
        """Start the copy; may be called from any thread."""
        if self._stream is None:
            return TransferredBatch(self._finish(batch), None)
        with torch.cuda.stream(self._stream):
            copies = {
                name: tensor.pin_memory().to(self._device, non_blocking=True)
                for name, tensor in batch.items()
            }
            return TransferredBatch(self._finish(copies), self._stream.record_event())
