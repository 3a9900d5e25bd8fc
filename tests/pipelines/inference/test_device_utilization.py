"""Device utilization with a clock set by hand; transfer of batches from another thread."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipelines.inference.engines import device_utilization
from pipelines.inference.engines.device_transfer import DeviceTransfer
from pipelines.inference.failure_tracker import FailureTracker, FailureTrackerClient
from pipelines.inference.progress import BusyTime

CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [0.0]
    monkeypatch.setattr(device_utilization, "clock", lambda: seconds[0])
    return seconds


def run_batch(
    worker: device_utilization.DeviceUtilization, now: list[float], began: float, ended: float
) -> None:
    now[0] = began
    with worker.batch():
        now[0] = ended


def test_utilization_counts_from_first_to_last_batch_end(now: list[float]) -> None:
    worker = device_utilization.DeviceUtilization(CPU)
    assert worker.drain() == BusyTime()
    run_batch(worker, now, 5, 9)  # the steady state has not begun
    assert worker.drain() == BusyTime()
    run_batch(worker, now, 10, 14)
    run_batch(worker, now, 14, 15)
    assert worker.drain() == BusyTime(busy_s=5, total_s=6)
    run_batch(worker, now, 19, 20)
    now[0] = 100  # time after the last batch does not count
    assert worker.drain() == BusyTime(busy_s=1, total_s=5)
    assert worker.drain() == BusyTime()


def test_overlapping_batches_count_once(now: list[float]) -> None:
    worker = device_utilization.DeviceUtilization(CPU)
    run_batch(worker, now, 0, 1)
    for began, ended in ((2, 6), (3, 5), (5.5, 8)):
        run_batch(worker, now, began, ended)
    assert worker.drain() == BusyTime(busy_s=6, total_s=7)  # 2 to 8, of 1 to 8


def test_failed_batch_counts_as_busy(now: list[float]) -> None:
    worker = device_utilization.DeviceUtilization(CPU)
    run_batch(worker, now, 0, 1)
    with contextlib.suppress(ValueError), worker.batch():
        now[0] = 3
        raise ValueError("of a row")
    assert worker.drain() == BusyTime(busy_s=2, total_s=2)


def test_tracker_sums_utilization_of_workers() -> None:
    tracker = FailureTracker()
    assert tracker.progress.utilization() == {}
    FailureTrackerClient(tracker, "w1").report_progress([], BusyTime(3.0, 4.0))
    FailureTrackerClient(tracker, "w2").report_progress([], BusyTime(1.0, 4.0))
    FailureTrackerClient(tracker, "w1").report_progress([], BusyTime())
    assert tracker.progress.utilization() == {"worker_busy": 0.5}
    FailureTrackerClient(tracker, "w1").report_progress([], BusyTime(1.0, 2.0, gpu=True))
    assert tracker.progress.utilization() == {"gpu_busy": 0.5}


def test_transfer_finishes_batches_on_the_device() -> None:
    transfer = DeviceTransfer(CPU, lambda batch: {name: 2 * value for name, value in batch.items()})
    with ThreadPoolExecutor(1) as thread:
        sent = thread.submit(transfer.start, {"a": torch.arange(3)}).result()
    assert sent.wait()["a"].tolist() == [0, 2, 4]


@pytest.mark.gpu
def test_gpu_waits_for_the_copy() -> None:
    gpu = torch.device("cuda")
    transfer = DeviceTransfer(
        gpu, lambda batch: {name: value.float() for name, value in batch.items()}
    )
    parts = [torch.full((1 << 24,), number, dtype=torch.uint8) for number in range(8)]
    with ThreadPoolExecutor(1) as thread:
        sent = [thread.submit(transfer.start, {"a": part}) for part in parts]
        sums = [each.result().wait()["a"].double().sum() for each in sent]
    assert [round(float(each)) for each in sums] == [number << 24 for number in range(8)]


@pytest.mark.gpu
def test_idle_gpu_is_not_busy() -> None:
    import time

    worker = device_utilization.DeviceUtilization(torch.device("cuda"))
    matrix = torch.ones(4096, 4096, device="cuda")
    for _ in range(3):
        with worker.batch():
            for _ in range(20):
                matrix = torch.tanh(matrix @ matrix)
        torch.cuda.synchronize()
        time.sleep(0.2)
    busy_time = worker.drain()
    assert busy_time.gpu
    assert 0 < busy_time.busy_s < busy_time.total_s - 0.3
