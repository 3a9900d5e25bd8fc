"""One job from its config to its exit status: what is left to do, who does it, and what came out."""

from __future__ import annotations

import contextlib
import hashlib
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pipelines.config import hub
from pipelines.config.eval_config import EvalConfig, to_yaml
from pipelines.inference.benchmark_job import (
    BenchmarkJob,
    answers_of,
    records,
    tags,
    too_many_errors,
)
from pipelines.inference.job_progress import JobProgress
from pipelines.metrics import summary
from pipelines.results import answers
from pipelines.results.lock import Lock, Locked
from pipelines.results.run_record import RunRecord, State
from pipelines.results.storage import Folder, run_concurrently
from pipelines.text import describe_error, redacted

if TYPE_CHECKING:
    from pipelines.inference.worker import InferenceWorker
    from pipelines.results.mlflow_tracker import Tracker

PASSES = 3  # over rows that were lost on the way, with workers, before the job says that it cannot answer them
AGAIN = "the same command goes on from here"
FULL = ("No space left on device", "Disk quota exceeded")


def run(config: EvalConfig, worker: type[InferenceWorker] | None = None) -> int:
    """Do the job, or what is left of it. Returns the exit status: 0, 1 failed, 2 wrong use, 130 interrupted.

    worker: another Answerer, for tests and benchmarks
    """
    with guarded() as status:
        status.code = _run(config, worker)
    return status.code


def _run(asked: EvalConfig, worker: type[InferenceWorker] | None) -> int:
    work = BenchmarkJob.of(asked)
    config = work.config
    print(to_yaml(config))
    if not work.open:
        print("Everything asked for is answered already; nothing to do.\n")
        conclude([work])
        return status_of([work])
    work.refuse()
    work.index  # noqa: B018  read now: what is wrong with the ids is said before anything starts
    digest = hashlib.sha256("\n".join(unit.run_id for unit in work.units).encode()).hexdigest()[:8]
    job = job_record(config, f"job-{config.benchmark}-{digest}", config.to_dict(), tags(config))
    state = carry_out([[work]], job, worker)
    conclude([work])
    if state != "finished":
        return 130 if state == "killed" else 1
    return status_of([work])


class Status:
    """How a process will end."""

    code = 0


@contextlib.contextmanager
def guarded() -> Iterator[Status]:
    """What goes wrong inside becomes one line and an exit status."""
    status = Status()
    try:
        with _terminable():
            yield status
    except KeyboardInterrupt:
        print(f"interrupted; {AGAIN}", file=sys.stderr)
        status.code = 130
    except (ValueError, OSError, Locked) as error:
        print(f"error: {redacted(str(error))}", file=sys.stderr)
        status.code = 2 if isinstance(error, (ValueError, FileNotFoundError)) else 1


def job_record(
    config: EvalConfig, name: str, asked: Mapping[str, Any], tagged: Mapping[str, str]
) -> RunRecord:
    """The record of a job or sweep: the same for the same runs, so that one that goes on is one parent in MLflow."""
    record = RunRecord(name=name)
    with contextlib.suppress(FileNotFoundError):
        record = RunRecord.load(Folder.of(config.output).child(name))
    record.config, record.tags = dict(asked), {**record.tags, **tagged}
    return record


def carry_out(
    groups: Sequence[Sequence[BenchmarkJob]],
    job: RunRecord,
    worker: type[InferenceWorker] | None = None,
    finish: Callable[[Folder], list[str]] | None = None,
) -> State:
    """Answer what the runs lack, one group after the other, and write down how it went. A group shares its workers.

    What one group fails with is said, and the next one is begun; only an interruption ends all.
    finish: writes what is to be seen of all runs into the job's folder; returns the names of the files
    """
    from pipelines.results.mlflow_tracker import Tracker

    config = groups[0][0].config  # where all of it runs and is tracked
    works = [work for group in groups for work in group]
    folder = Folder.of(config.output).child(job.name)
    whole = JobProgress(job, folder, works)
    worst: State = "finished"
    messages = []
    with Lock(folder):
        for model in dict.fromkeys(
            (w.config.model, w.config.revision, w.revision) for w in works if w.open
        ):
            hub.note(*model, config.output)
        job.resume()
        job.save(folder)
        tracker = Tracker(config.tracking_uri, config.experiment)
        try:
            tracker.watch(job, folder)
            for group in groups:
                state, message = _group(group, whole, tracker, worker)
                messages += [message] if message else []
                worst = state if "killed" in (state, worst) or worst == "finished" else worst
                if worst == "killed":
                    break
            if finish is not None and worst != "killed":
                job.artifacts = finish(folder)
        except KeyboardInterrupt:
            worst, messages = "killed", [*messages, f"interrupted; {AGAIN}"]
        finally:
            _close(whole, worst, "; ".join(messages), tracker)
    for line in messages:
        print(line, file=sys.stderr)
    return worst


def _group(
    group: Sequence[BenchmarkJob],
    whole: JobProgress,
    tracker: Tracker,
    worker: type[InferenceWorker] | None,
) -> tuple[State, str]:
    """Answer what the runs of a group lack; how that ended, and a line on it unless it ended well."""
    with contextlib.ExitStack() as held:
        try:
            locks = _locked(group, held)
            for work in group:
                work.begin(whole.record)
        except (ValueError, OSError, Locked) as error:
            return "failed", redacted(str(error))
        for _, unit, record in records(group):
            tracker.watch(record, unit.folder)
            held.callback(tracker.loosen, record)  # before the locks are
        return _answer(group, whole, locks, tracker, worker)


def _locked(group: Sequence[BenchmarkJob], held: contextlib.ExitStack) -> list[Lock]:
    """The locks of all runs, side by side: a dead owner on another machine is watched for a minute."""
    locks = [Lock(unit.folder) for work in group for unit in work.units]
    with ThreadPoolExecutor(max(1, len(locks))) as pool:
        taken = [pool.submit(held.enter_context, lock) for lock in locks]
    for each in taken:
        each.result()
    return locks


def _answer(
    group: Sequence[BenchmarkJob],
    whole: JobProgress,
    locks: Sequence[Lock],
    tracker: Tracker,
    worker: type[InferenceWorker] | None,
) -> tuple[State, str]:
    began = time.monotonic()
    state: State = "failed"
    message = ""
    try:
        lost = _work(group, whole, locks, worker)
        state = "failed" if lost else "finished"
        message = f"{lost} answers could not be had; run the same command again" if lost else ""
    except KeyboardInterrupt:
        state, message = "killed", f"interrupted; {AGAIN}"
    except Locked as error:  # whoever has the runs now writes down how they end
        for _, _, record in records(group):
            tracker.drop(record)
        return "failed", str(error)
    except Exception as error:
        message = f"{_raised(error)}; what is answered is kept, and {AGAIN}"
        if not isinstance(error, ValueError):
            print(redacted(traceback.format_exc()), file=sys.stderr)
    for work in group:
        try:
            work.end(state, message, time.monotonic() - began)
        except Exception as error:
            print(redacted(traceback.format_exc()), file=sys.stderr)
            state = "killed" if state == "killed" else "failed"
            message = message or f"{describe_error(error)}; {AGAIN}"
    return state, message


def _raised(error: Exception) -> str:
    """What went wrong, on a line. Ray's errors carry a worker's traceback: what was raised first comes first."""
    text = str(error)
    first = (
        re.split(r"\n+(?:The above exception was|During handling of)", text)[0].strip().splitlines()
    )
    line = redacted(first[-1].strip()) if '  File "' in text else describe_error(error)
    return f"{line}; make room on that disk" if any(full in line for full in FULL) else line


def _work(
    group: Sequence[BenchmarkJob],
    whole: JobProgress,
    locks: Sequence[Lock],
    worker: type[InferenceWorker] | None,
) -> int:
    """Run the pipeline until nothing is missing, or no pass brings anything. Returns the answers still missing."""

    checked = time.monotonic()

    def check(least: float = 0.0) -> None:
        nonlocal checked
        if time.monotonic() - checked >= least:
            checked = time.monotonic()
            run_concurrently(Lock.check, locks)

    todo = [work.missing(retry_errors=work.config.retry_errors) for work in group]
    for attempt in range(PASSES):
        if not any(map(answers_of, todo)):
            break
        if attempt == 0:
            from pipelines.inference.plan import Pipeline  # Ray, torch and the model come with it

            pipeline = Pipeline(group, whole, **({"worker": worker} if worker else {}))
        for _ in pipeline.answer(todo):
            check(Lock.BEAT)
        check()
        before, todo = todo, [work.missing() for work in group]
        if sum(map(answers_of, todo)) == sum(map(answers_of, before)):
            break
    return sum(map(answers_of, todo))


def _close(whole: JobProgress, state: State, message: str, tracker: Tracker) -> None:
    whole.record.rows = whole.rows()
    failed = [
        unit.point.name
        for work, unit, record in records(whole.works)
        if too_many_errors(record, work.config)
    ]
    whole.record.end(
        state, {}, message or (f"too many errors: {', '.join(failed)}" if failed else "")
    )
    try:
        whole.record.save(whole.folder)
    except OSError as error:  # of a full disk, say: what is wrong is said, and the next command finds out the rest
        print(f"the job's record could not be written: {describe_error(error)}", file=sys.stderr)
    if not tracker.stop():
        print(tracker.problem, file=sys.stderr)


def conclude(works: Sequence[BenchmarkJob]) -> None:
    """The summary: a table, what went wrong, where things are and what to do next."""
    for work in works:
        if len(works) > 1:
            print(f"\n{work.config.benchmark}, {work.config.model_name}")
        print(
            summary.table(
                [(unit.point.name, record.metrics) for _, unit, record in records([work])]
            )
        )
    for _, unit, record in records(works):
        if record.rows["error"]:
            failures = summary.errors(answers.batches(unit.folder, summary.ERRORS))
            print(f"\n{unit.point.name}: rows without an answer\n{summary.error_lines(failures)}")
    print("\nanswers, one Parquet folder a method:")
    for _, unit, _ in records(works):
        print(f"  {redacted(unit.folder.uri)}")
    from pipelines.results.mlflow_tracker import dashboard

    print(f"compare the runs:\n  {dashboard(works[0].config.tracking_uri)}")


def status_of(works: Sequence[BenchmarkJob]) -> int:
    """1 if too many rows of a run ended in an error."""
    status = 0
    for work, unit, record in records(works):
        if failed := too_many_errors(record, work.config):
            print(
                f"\n{unit.point.name}: {failed}; --retry-errors takes them again", file=sys.stderr
            )
            status = 1
    return status


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Being told to stop is Ctrl-C: what has been answered is written down before the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
