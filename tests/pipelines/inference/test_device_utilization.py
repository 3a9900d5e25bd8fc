"""How busy a worker was, with a clock set by hand; and that batches reach the model whole, from another thread."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipelines.inference.engines import device_utilization
from pipelines.inference.engines.device_transfer import DeviceTransfer
from pipelines.inference.failure_tracker import BusyTime, FailureTracker, FailureTrackerClient

CPU = torch.device("cpu")


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(device_utilization, "clock", lambda: now[0])
    return now


def work(
    worker: device_utilization.DeviceUtilization, at: list[float], began: float, ended: float
) -> None:
    at[0] = began
    with worker.batch():
        at[0] = ended


def test_from_the_first_answers_to_the_last(at: list[float]) -> None:
    worker = device_utilization.DeviceUtilization(CPU)
    assert worker.told() == BusyTime()
    work(worker, at, 5, 9)  # before it and in it nothing is steady yet
    assert worker.told() == BusyTime()
    work(worker, at, 10, 14)
    work(worker, at, 14, 15)
    assert worker.told() == BusyTime(busy_s=5, whole_s=6)
    work(worker, at, 19, 20)
    at[0] = 100  # what comes after the last is no part of it
    assert worker.told() == BusyTime(busy_s=1, whole_s=5)
    assert worker.told() == BusyTime()


def test_batches_that_overlap_count_once(at: list[float]) -> None:
    worker = device_utilization.DeviceUtilization(CPU)
    work(worker, at, 0, 1)
    for began, ended in ((2, 6), (3, 5), (5.5, 8)):
        work(worker, at, began, ended)
    assert worker.told() == BusyTime(busy_s=6, whole_s=7)  # 2 to 8, of 1 to 8


def test_a_batch_that_fails_was_work(at: list[float]) -> None:
    worker = device_utilization.DeviceUtilization(CPU)
    work(worker, at, 0, 1)
    with contextlib.suppress(ValueError), worker.batch():
        at[0] = 3
        raise ValueError("of a row")
    assert worker.told() == BusyTime(busy_s=2, whole_s=2)


def test_the_ledger_adds_workers_up() -> None:
    book = FailureTracker()
    assert book.progress.busy() == {}
    FailureTrackerClient(book, "w1").end([], BusyTime(3.0, 4.0))
    FailureTrackerClient(book, "w2").end([], BusyTime(1.0, 4.0))
    FailureTrackerClient(book, "w1").end([], BusyTime())
    assert book.progress.busy() == {"worker_busy": 0.5}
    FailureTrackerClient(book, "w1").end([], BusyTime(1.0, 2.0, gpu=True))
    assert book.progress.busy() == {"gpu_busy": 0.5}


def test_a_batch_arrives_whole() -> None:
    feed = DeviceTransfer(CPU, lambda batch: {name: 2 * value for name, value in batch.items()})
    with ThreadPoolExecutor(1) as aside:
        sent = aside.submit(feed.send, {"a": torch.arange(3)}).result()
    assert sent.taken()["a"].tolist() == [0, 2, 4]


@pytest.mark.gpu
def test_a_batch_is_waited_for_by_the_device() -> None:
    gpu = torch.device("cuda")
    feed = DeviceTransfer(gpu, lambda batch: {name: value.float() for name, value in batch.items()})
    parts = [torch.full((1 << 24,), number, dtype=torch.uint8) for number in range(8)]
    with ThreadPoolExecutor(1) as aside:
        sent = [aside.submit(feed.send, {"a": part}) for part in parts]
        sums = [each.result().taken()["a"].double().sum() for each in sent]
    assert [round(float(each)) for each in sums] == [number << 24 for number in range(8)]


@pytest.mark.gpu
def test_a_gpu_that_waits_is_not_busy() -> None:
    import time

    worker = device_utilization.DeviceUtilization(torch.device("cuda"))
    matrix = torch.ones(4096, 4096, device="cuda")
    for _ in range(3):
        with worker.batch():
            for _ in range(20):
                matrix = torch.tanh(matrix @ matrix)
        torch.cuda.synchronize()
        time.sleep(0.2)
    shift = worker.told()
    assert shift.gpu
    assert 0 < shift.busy_s < shift.whole_s - 0.3
