"""The actor: one loaded model that answers blocks of prepared rows under every point of the job.

All points share the loaded model, the decoded rows and what the vision tower makes of them. Whatever happens to one row
is that row's answer: a batch that does not fit into memory is halved, a batch that fails is answered row by row, and a
row that fails alone is an error row. Only what no `except` sees, a worker that dies, is the ledger's business.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any

import pyarrow as pa
import ray
import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.utils import logging as transformers_logging

from apet import Decode, Towers, attach
from apet.methods.base import Method
from apet.models import load as load_model
from apet.models.compiled import compile_towers
from pipelines.config.method_spec import MethodSpec
from pipelines.data.rows import Row
from pipelines.inference import batching
from pipelines.inference.answer_buffer import FLUSH, AnswerBuffer, Writer
from pipelines.inference.cluster import gpu_share
from pipelines.inference.engines.device_transfer import DeviceTransfer, Inputs, TransferredBatch
from pipelines.inference.engines.device_utilization import DeviceUtilization
from pipelines.inference.engines.generation import (
    GenerationTimer,
    Sampler,
    answer_length,
    eos_token_ids,
    row_seed,
)
from pipelines.inference.failure_tracker import FailureTrackerClient
from pipelines.inference.job_spec import BenchmarkSpec, JobSpec
from pipelines.inference.prepared_row import PreparedRow
from pipelines.inference.preprocess import (
    Collator,
    deserialize_inputs,
    processor_of,
    warm_up_inputs,
)
from pipelines.results.run_record import NAME
from pipelines.results.storage import run_concurrently
from pipelines.text import describe_error, redacted

WARM_UP_ROW = PreparedRow(0, Row("warm-up"), ())
LOOKS = 5  # at the output, in ten seconds


class InferenceWorker:
    """A callable class for Ray Data's `map_batches`: prepared rows in, receipts out, answers on disk between."""

    def __init__(self, job: JobSpec, ledger: Any) -> None:
        began = time.monotonic()
        self.job = job
        self.worker = (ray.is_initialized() and ray.get_runtime_context().get_actor_id()) or "alone"
        check_output_visible(job)
        self.desk = FailureTrackerClient(ledger, self.worker)
        careful = self.desk.arrive()
        mine = not ray.is_initialized() or ray.get_gpu_ids()
        self.device = torch.device("cuda" if torch.cuda.is_available() and mine else "cpu")
        self.processor = processor_of(job.sections[0].recipe)
        self.collate = Collator(self.processor)
        self.feed, self.busy = (
            DeviceTransfer(self.device, self.collate.normalised),
            DeviceUtilization(self.device),
        )
        self.methods = {
            run.point: run.point.build() for section in job.sections for run in section.runs
        }
        self.towers, self.sharing = Towers(), False
        # a worker that died does nothing on the side any more: what it dies of next is what it was told to do
        self._ahead = None if careful else ThreadPoolExecutor(1, thread_name_prefix="collate")
        self.load()
        self.most_tokens = self._most_tokens()
        self.busy = DeviceUtilization(self.device)  # warming up was no work
        self.desk.ready(time.monotonic() - began)

    def load(self) -> None:
        """Load the model, and answer once under each method before anything is measured."""
        transformers_logging.disable_progress_bar()
        if self.job.threads:
            torch.set_num_threads(self.job.threads)
        recipe = self.job.sections[0].recipe
        self.model = load_model(
            recipe.model,
            revision=recipe.revision,
            dtype=self.job.dtype,
            attn=self.job.attn,
            device="auto" if ray.is_initialized() and len(ray.get_gpu_ids()) > 1 else self.device,
            trust_remote_code=recipe.trust_remote_code,
        )[0]
        if self.job.compile:
            compile_towers(self.model)
        self.decode = Decode(self.model)
        self._warm_up()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Answer the rows that each point still lacks."""
        rows = [PreparedRow.of(fields) for fields in block.to_pylist()]
        for number, some in groupby(rows, key=lambda row: row.section):
            self._section(self.job.sections[number], list(some))
        return pa.table({"rows": [len(rows)]})

    def _section(self, section: BenchmarkSpec, rows: list[PreparedRow]) -> None:
        """Answer rows of one benchmark."""
        writer = Writer(self.worker, self.job.model_name)
        methods = [self.methods[run.point] for run in section.runs]
        sheets = run_concurrently(
            lambda place: AnswerBuffer(writer, section, place, methods[place], rows),
            range(len(methods)),
        )
        for row in rows:
            if row.error is not None:
                for sheet in sheets:
                    sheet.fail(row, row.error)
        fine = sorted(
            (row for row in rows if row.error is None), key=lambda row: (row.tokens, row.row_id)
        )
        slowest = 0.0  # a batch under one method, in seconds
        for batch, inputs in self._batches(fine, section.max_new_tokens, sheets):
            for some, alone in self._safe(batch, sheets):
                its = (
                    inputs
                    if len(some) == len(batch) and inputs is not None
                    else self._made(self._inputs, some)
                )
                lacking = [sheet for sheet in sheets if any(map(sheet.lacks, some))]
                self.sharing = len(lacking) > 1
                for sheet in lacking:
                    began = time.monotonic()
                    self._answer(sheet, some, its)
                    slowest = max(slowest, time.monotonic() - began)
                    for each in sheets:
                        # what is answered before a row takes its worker down stays answered
                        each.flush(within=FLUSH if alone else slowest)
                self.towers.forget()
                self._told(sheets)
        run_concurrently(AnswerBuffer.flush, sheets)
        self._told(sheets)

    def _batches(
        self, rows: list[PreparedRow], room: int, sheets: list[AnswerBuffer]
    ) -> Iterator[tuple[list[PreparedRow], Inputs | None]]:
        """Batches with their inputs on the device; the next one is made while this one is worked on.

        Of a batch that some rows are still wanted of, all are answered again: numbers depend on the company.
        """
        parts = batching.cut(rows, self.job.batch_size, self.most_tokens, room)
        todo = [
            batch for batch in parts if any(sheet.lacks(row) for row in batch for sheet in sheets)
        ]
        if self._ahead is None:
            yield from ((batch, None) for batch in todo)
            return
        ahead: list[Future[TransferredBatch]] = (
            [self._ahead.submit(self._sent, todo[0])] if todo else []
        )
        for place, batch in enumerate(todo):
            sent = ahead.pop()
            if place + 1 < len(todo):
                ahead.append(self._ahead.submit(self._sent, todo[place + 1]))
            yield batch, self._made(lambda sent=sent: sent.result().taken())

    def _made(self, make: Callable[..., Inputs], *given: Any) -> Inputs | None:
        """The inputs of a batch; None if they cannot be made, for then `_answer` finds out why."""
        try:
            return make(*given)
        except Exception:
            return None

    def _inputs(self, rows: Sequence[PreparedRow]) -> Inputs:
        return self._sent(rows).taken()

    def _sent(self, rows: Sequence[PreparedRow]) -> TransferredBatch:
        return self.feed.send(self.collate([deserialize_inputs(row.inputs) for row in rows]))

    def _safe(
        self, batch: list[PreparedRow], sheets: list[AnswerBuffer]
    ) -> Iterator[tuple[list[PreparedRow], bool]]:
        """The batch, once the ledger knows of it; rows that a worker died with come one by one, or not at all."""
        suspects, lost = self.desk.begin([row.key for row in batch])
        if not suspects and not lost:
            yield batch, False
            return
        for row in batch:
            if row.key in lost and self._given_up(row, sheets, lost[row.key]):
                suspects.append(row.key)
        calm = [row for row in batch if row.key not in {*suspects, *lost}]
        if calm:
            self.desk.begin([row.key for row in calm])
            yield calm, False
        for row in batch:
            if row.key in suspects:
                self.desk.alone(row.key)
                yield [row], True

    def _given_up(self, row: PreparedRow, sheets: list[AnswerBuffer], why: str) -> bool:
        """A row that its worker died of: an error under the method that it died in. May the others still try?"""
        lacking = [sheet for sheet in sheets if sheet.lacks(row)]
        others = bool(lacking) and self.desk.pardon(row.key)
        for sheet in lacking[:1] if others else lacking:
            sheet.fail(row, f"{why} each time it answered this row alone")
            sheet.flush()
        return others and len(lacking) > 1

    def _answer(self, sheet: AnswerBuffer, rows: list[PreparedRow], inputs: Inputs | None) -> None:
        """Answer `rows` for one point, whatever it takes."""
        began, freed = time.monotonic(), False
        try:
            with self.desk.within(self.job.batch_timeout):
                found = self.generate(
                    sheet.section, sheet.method, rows, inputs or self._inputs(rows)
                )
        except torch.OutOfMemoryError as error:
            trouble: Exception = error
            freed = self.decode.forget()  # then all of them once more
            half = len(rows) if freed else (len(rows) + 1) // 2
        except Exception as error:
            if "CUDA error" in str(error) or isinstance(
                error, getattr(torch, "AcceleratorError", ())
            ):
                print(
                    f"worker {self.worker} ends: {describe_error(error)}",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(
                    70
                )  # the device is of no use to this process any more; the ledger takes it from here
            trouble = error
            half = 1
        else:
            sheet.add(rows, found, time.monotonic() - began)
            return
        if len(rows) == 1 and not freed:
            sheet.fail(rows[0], describe_error(trouble))
            return
        del trouble  # its traceback holds the batch's tensors
        if half > 1 or freed:
            self.towers.forget()
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        rows = [row for row in rows if sheet.lacks(row)]
        for start in range(0, len(rows), half):
            self._answer(sheet, rows[start : start + half], None)

    @torch.inference_mode()
    def generate(
        self,
        section: BenchmarkSpec,
        method: Method,
        rows: Sequence[PreparedRow],
        inputs: Inputs,
        tokens: int | None = None,
    ) -> list[dict[str, Any]]:
        """One batch under one method: what there is to say of each row's answer."""
        self.towers.spared_ms()  # of a batch that failed
        gpus = (
            range(torch.cuda.device_count()) if self.device.type == "cuda" else ()
        )  # those that this worker has
        for gpu in gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        clock, seeds = (
            GenerationTimer(self.device),
            [row_seed(section.seed, row.row_id) for row in rows],
        )
        luck = [Sampler(section.temperature, seeds)] if section.temperature else []
        with attach(self.model, method, towers=self.towers if self.sharing else None) as attached:
            attached.seeds = seeds
            with self.busy.batch():
                clock.mark()
                new = self.decode.answer(
                    inputs,
                    tokens or section.max_new_tokens,
                    LogitsProcessorList(luck),
                    StoppingCriteriaList([clock]),
                )
                prefill_ms, decode_ms = clock.read()
            prefill_ms += self.towers.spared_ms()  # what this method would have spent alone
            stats = attached.stats
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        ends = eos_token_ids(self.model, self.processor)
        count, lengths = (
            len(rows),
            inputs["attention_mask"].sum(dim=1).tolist(),
        )  # waits for a GPU once
        peak = sum(map(torch.cuda.max_memory_allocated, gpus)) if gpus else None
        return [
            {
                "prediction": text.strip(),
                "budget": stat.budget,
                "schedule": ",".join(f"{site}={kept}" for site, kept in stat.kept.items()),
                "visual_tokens_in": stat.visual_tokens,
                "visual_tokens_kept": list(stat.kept.values()),
                "prompt_tokens": tokens_in,
                "new_tokens": answer_length(answer, ends),
                "batch_rows": count,
                "prefill_ms": prefill_ms / count,
                "decode_ms": decode_ms / count,
                "compress_ms": stat.compress_ms,
                "peak_memory_bytes": peak,
            }
            for text, stat, tokens_in, answer in zip(
                texts, stats, lengths, new.tolist(), strict=True
            )
        ]

    def _warm_up(self) -> None:
        """One answer for each point before anything is measured."""
        failed: list[Exception] = []
        for section, points in self.job.kinds():
            raw = warm_up_inputs(self.processor, section.recipe, section.kind)
            for point in points:
                try:
                    self.generate(
                        section,
                        self.methods[point],
                        [WARM_UP_ROW],
                        self.feed.send(raw).taken(),
                        tokens=2,
                    )
                except Exception as error:
                    failed.append(error)  # its rows will say so, and the other points' will not
        if len(failed) == len(self.methods):
            raise failed[0]

    def _most_tokens(self) -> int | None:
        """Of a batch: what the job says, or what its first worker found to fit; without a GPU any number."""
        known = self.job.batch_tokens or self.desk.most_tokens()
        if known is None and self.device.type == "cuda":
            known = min(self._fitting(section, points) for section, points in self.job.kinds())
        return None if known is None else self.desk.most_tokens(known)

    def _fitting(self, section: BenchmarkSpec, points: Sequence[MethodSpec]) -> int:
        """The tokens of a batch for which the memory suffices, measured with grey pictures under every point."""
        raw = warm_up_inputs(self.processor, section.recipe, section.kind, batching.SIDE)
        tokens = raw["input_ids"].shape[1]
        rows = max(1, batching.PROBE // tokens)
        self.sharing = len(points) > 1  # what the towers made is held, too

        def answer(point: MethodSpec) -> None:
            with contextlib.suppress(Exception):  # but for memory, its rows will say why
                # with a step after the prompt: then a graph's keys and values are held as well
                self.generate(section, self.methods[point], [WARM_UP_ROW] * rows, inputs, tokens=2)

        try:
            inputs = self.feed.send(self.collate([raw] * rows)).taken()
            ways = [functools.partial(answer, point) for point in points]
            return batching.fitting(ways, rows * tokens, gpu_share())
        finally:
            self.towers.forget()

    def _told(self, sheets: Sequence[AnswerBuffer]) -> None:
        self.desk.end([sheet.told() for sheet in sheets], self.busy.told())


def check_output_visible(job: JobSpec) -> None:
    """A folder on a disk of this machine alone would take answers that nobody finds.

    What is shared may be late to say what it has, and a store that does not answer now says nothing: writing will.
    """
    run = next(run for section in job.sections for run in section.runs)
    for look in range(LOOKS):
        time.sleep(look)
        try:
            if run.folder.exists(NAME):
                return
        except OSError:
            return
    raise FileNotFoundError(
        f"a worker's machine does not see {redacted(run.folder.uri)}, where answers go; --output must be a"
        " folder that all machines share, or s3:// or gs://"
    )
