"""The engine that runs transformers models with compression methods attached."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import ray
import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.utils import logging as transformers_logging

from apet import Decode, Towers, attach
from apet.decoding.cuda_graphs import CaptureError
from apet.decoding.shared_steps import Suffixes
from apet.methods.base import Method
from apet.models import load as load_model
from apet.models.compiled_towers import compile_towers
from pipelines.config.eval_config import EvalConfig
from pipelines.config.method_spec import MethodSpec
from pipelines.data.rows import Row
from pipelines.inference.batching import PROBE_SIDE, PROBE_TOKENS, measure_batch_tokens
from pipelines.inference.cluster import gpu_share
from pipelines.inference.encoded_prompt import EncodedPrompt
from pipelines.inference.engines.device_transfer import DeviceTransfer, Inputs, TransferredBatch
from pipelines.inference.engines.device_utilization import DeviceUtilization
from pipelines.inference.engines.generation import (
    GenerationTimer,
    Sampler,
    answer_length,
    apply_generation,
    clean_answer,
    eos_token_ids,
    row_seed,
)
from pipelines.inference.engines.shared_batch import (
    SUFFIX_IDS,
    collate_shared,
    first_rows,
    prefix_counts,
    split_inputs,
)
from pipelines.inference.job_spec import JobSpec
from pipelines.inference.prepared_row import PreparedRow
from pipelines.inference.preprocess import (
    PIXELS,
    Collator,
    job_processor,
    placeholder_ids,
    warm_up_inputs,
)

# Passes of a tower that methods share, until a batch is answered under all of them: methods that
# read the question answer a batch of shared prefixes in parts.
MAX_PASSES = 64


class TransformersEngine:
    """One loaded model that answers batches of prepared rows under every method of the job.

    All methods share the model, the decoded rows and the outputs of the vision towers.
    """

    def __init__(self, job: JobSpec, device: torch.device) -> None:
        self.job, self.device = job, device
        self.processor = job_processor(job.config)
        self.collate = Collator(self.processor)
        self.placeholders = placeholder_ids(job.config)
        self.transfer = DeviceTransfer(device, self.collate.normalise)
        self.utilization = DeviceUtilization(device)
        self.methods: dict[MethodSpec, Method] = {
            run.method: run.method.build() for spec in job.benchmarks for run in spec.runs
        }
        # Questions about a picture share its tokens, as far as methods allow (--share).
        self.shares_prefixes = job.config.share == "prefix" and not all(
            method.reads_question for method in self.methods.values()
        )
        self.towers = Towers(remember=MAX_PASSES)
        self.share_towers = False  # between methods: worth their memory if there are several

    def load(self) -> None:
        """Load the model, and answer once under each method before anything is measured."""
        transformers_logging.disable_progress_bar()
        if self.job.threads:
            torch.set_num_threads(self.job.threads)
        config = self.job.config
        several_gpus = ray.is_initialized() and len(ray.get_gpu_ids()) > 1
        self.model = load_model(
            config.model,
            revision=config.revision,
            dtype=config.dtype,
            attn=config.attn,
            device="auto" if several_gpus else self.device,
            trust_remote_code=config.trust_remote_code,
        )[0]
        if self.device.type == "cuda" and (share := gpu_share()) < 1:
            # Otherwise one of the workers on a GPU takes what the others need.
            torch.cuda.set_per_process_memory_fraction(share)
        apply_generation(self.model, config.generation)
        if config.compile:
            compile_towers(self.model)
        self.decode = Decode(self.model)
        self._warm_up()

    def _warm_up(self) -> None:
        failures: list[Exception] = []
        for config, methods in self.job.by_kind():
            rows = self._noise_rows(config, 1)
            for method in methods:
                try:
                    inputs = self.start_transfer(rows).wait()
                    self.answer(config, self.methods[method], rows, inputs, 2)
                except CaptureError:
                    raise
                except Exception as error:
                    failures.append(error)  # its rows will report it; other methods may work
        if len(failures) == len(self.methods):
            raise failures[0]

    def _noise_rows(self, config: EvalConfig, count: int, side: int = 64) -> list[PreparedRow]:
        """Questions about noise of side x side pixels: equal pictures would be encoded once."""
        inputs = warm_up_inputs(self.processor, config, side)
        rows = []
        for number in range(count):
            noise = {name: torch.randint_like(inputs[name], 256) for name in PIXELS & inputs.keys()}
            prompt = EncodedPrompt.of("", {**inputs, **noise}, self.placeholders)
            rows.append(PreparedRow.of(0, Row(str(number)), (), prompt))
        return rows

    def start_transfer(self, rows: Sequence[PreparedRow]) -> TransferredBatch:
        """Collate rows and start copying them to the device; may run in any thread."""
        if self.shares_prefixes and len(prefix_counts(rows)) < len(rows):
            return self._start(collate_shared(self.collate, rows))
        return self._start_whole(rows)

    def _start_whole(self, rows: Sequence[PreparedRow]) -> TransferredBatch:
        return self._start(self.collate([row.tensors() for row in rows]))

    def _start(self, batch: Inputs) -> TransferredBatch:
        """Start copying a batch, with positions that the device would compute row by row."""
        positions = self.decode.family.positions(batch)
        return self.transfer.start(
            batch if positions is None else {**batch, "position_ids": positions}
        )

    def answer(
        self,
        config: EvalConfig,
        method: Method,
        rows: Sequence[PreparedRow],
        inputs: Inputs,
        max_new_tokens: int | None = None,
    ) -> list[dict[str, Any]]:
        """Answer one batch under one method: the answer columns of each row.

        inputs: as `start_transfer` has made them
        """
        tokens = max_new_tokens or config.max_new_tokens
        if SUFFIX_IDS not in inputs:  # no two rows share a prefix
            return self._answer(config, method, rows, inputs, tokens, [1] * len(rows))
        counts = prefix_counts(rows)
        prefix = max(row.prefix_tokens for row in rows)
        width = prefix + max(row.tokens - row.prefix_tokens for row in rows)
        if not method.reads_question and self.decode.can_share(width + tokens):
            return self._answer(config, method, rows, inputs, tokens, counts)
        # A batch of shared prefixes has more rows than fit without sharing.
        answers: list[dict[str, Any]] = []
        for start in range(0, len(rows), self.job.batch_size):
            part = rows[start : start + self.job.batch_size]
            whole = self._start_whole(part).wait()
            answers += self._answer(config, method, part, whole, tokens, [1] * len(part))
        return answers

    @torch.inference_mode()
    def _answer(
        self,
        config: EvalConfig,
        method: Method,
        rows: Sequence[PreparedRow],
        inputs: Inputs,
        max_new_tokens: int,
        counts: Sequence[int],
    ) -> list[dict[str, Any]]:
        """Answer a batch that was collated for this method.

        counts: rows that continue each of the batch's prefixes; all 1 if nothing is shared
        """
        self.towers.spared_ms()  # discard what a failed batch has left
        gpus = range(torch.cuda.device_count()) if self.device.type == "cuda" else ()
        for gpu in gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        timer = GenerationTimer(self.device)
        seeds = [row_seed(config.seed, row.row_id) for row in rows]
        samplers = [Sampler(config.temperature, seeds)] if config.temperature else []
        suffixes: Suffixes | None = None
        if SUFFIX_IDS in inputs:
            inputs, suffixes = split_inputs(inputs, counts)
        firsts = [rows[place] for place in first_rows(counts)]
        with attach(self.model, method, towers=self._shared_towers(suffixes)) as attached:
            attached.seeds = [row_seed(config.seed, media_name(row)) for row in firsts]
            with self.utilization.batch():
                timer.mark("start")
                token_ids = self.decode.answer(
                    inputs,
                    max_new_tokens,
                    LogitsProcessorList(samplers),
                    StoppingCriteriaList([timer]),
                    suffixes,
                    functools.partial(timer.mark, "prefixes"),
                )
                times = timer.read()
            stats = attached.stats
        # A prefix, which this method alone would have paid for; without sharing, the whole prompt.
        first = "prefixes" if suffixes else "first token"
        prefix_ms = (times[first] + self.towers.spared_ms()) / len(counts)
        suffix_ms = times["first token"] / len(rows) if suffixes else 0.0
        texts = self.processor.batch_decode(token_ids, skip_special_tokens=True)
        ends = eos_token_ids(self.model, self.processor)
        batch_columns = {
            "batch_rows": len(rows),
            "decode_ms": times["end"] / len(rows),
            "peak_memory_bytes": sum(map(torch.cuda.max_memory_allocated, gpus)) if gpus else None,
        }
        shared = [
            {
                "budget": row_stats.budget,
                "schedule": ",".join(f"{site}={kept}" for site, kept in row_stats.kept.items()),
                "visual_tokens_in": row_stats.visual_tokens,
                "visual_tokens_kept": list(row_stats.kept.values()),
                "prefill_ms": prefix_ms / count + suffix_ms,
                "compress_ms": row_stats.compress_ms / count,
                "shared_rows": count,
                "shared_prefill_ms": prefix_ms if suffixes else None,
            }
            for row_stats, count in zip(stats, counts, strict=True)
            for _ in range(count)
        ]
        return [
            {
                "prediction": clean_answer(text, self.model.config.model_type),
                "prompt_tokens": row.tokens,
                "new_tokens": answer_length(answer, ends),
                **columns,
                **batch_columns,
            }
            for row, text, answer, columns in zip(
                rows, texts, token_ids.tolist(), shared, strict=True
            )
        ]

    def _shared_towers(self, suffixes: Suffixes | None) -> Towers | None:
        """Towers that encode equal media once, in a batch and between methods; None: no sharing."""
        if self.job.config.share == "none":
            return None
        if self.share_towers:
            return self.towers
        return None if suffixes else Towers(remember=0)  # prefixes have distinct media

    def forget_media(self) -> None:
        """Drop the tower outputs that methods shared."""
        self.towers.forget()

    def release_graphs(self) -> bool:
        """Free the memory of captured CUDA graphs; True if there was any."""
        return bool(self.decode.forget())

    def measure_batch_tokens(self) -> int | None:
        """The tokens of a batch that fit into memory, measured with grey pictures under every
        method; None without a GPU: there any number fits."""
        if self.device.type != "cuda":
            return None
        return min(self._measure(config, methods) for config, methods in self.job.by_kind())

    def _measure(self, config: EvalConfig, methods: Sequence[MethodSpec]) -> int:
        tokens = self._noise_rows(config, 1, PROBE_SIDE)[0].tokens
        rows = self._noise_rows(config, max(1, PROBE_TOKENS // tokens), PROBE_SIDE)
        self.share_towers = len(methods) > 1  # their outputs take memory, too

        def probe(method: MethodSpec) -> None:
            with contextlib.suppress(Exception):  # errors other than memory are the rows' own
                # two tokens, so that a step after the prompt, and its graph, are measured as well
                self.answer(config, self.methods[method], rows, inputs, 2)

        try:
            inputs = self.start_transfer(rows).wait()
            probes = [functools.partial(probe, method) for method in methods]
            return measure_batch_tokens(probes, len(rows) * tokens, gpu_share())
        finally:
            self.towers.forget()


def media_name(row: PreparedRow) -> str:
    """The row's media by name, for methods that draw: the same tokens for all of their questions.

    Rows without media, which have no tokens to draw, have their own name.
    """
    return "\n".join(medium.name for medium in row.row.media) or row.row_id
