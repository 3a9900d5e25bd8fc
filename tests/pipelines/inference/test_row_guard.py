"""Which errors a smaller batch avoids, and which end the worker."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from apet.decoding.cuda_graphs import CaptureError
from pipelines.inference.row_guard import EXIT_DEVICE_BROKEN, RowGuard, is_out_of_memory

CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def test_library_without_workspace_is_out_of_memory() -> None:
    assert is_out_of_memory(CUBLAS)
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (CaptureError("a CUDA graph could not be captured"), True),
        (ValueError("a row"), False),
    ],
)
def test_broken_device_ends_the_worker(
    error: Exception, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    tracker: Any = SimpleNamespace(worker="w")
    unused: Any = None
    RowGuard(tracker, unused, unused, 1.0)._exit_if_device_is_broken(error)
    assert exits == [EXIT_DEVICE_BROKEN] * ends
