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
from apet.methods.base import Method
from apet.models import load as load_model
from apet.models.compiled_towers import compile_towers
from pipelines.config.eval_config import EvalConfig
from pipelines.config.method_spec import MethodSpec
from pipelines.data.rows import Row
from pipelines.inference.batching import PROBE_SIDE, PROBE_TOKENS, measure_batch_tokens
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
from pipelines.inference.job_spec import JobSpec
from pipelines.inference.prepared_row import PreparedRow
from pipelines.inference.preprocess import Collator, job_processor, warm_up_inputs

WARM_UP_ROW = PreparedRow(0, Row("warm-up"), ())


class TransformersEngine:
    """One loaded model that answers batches of prepared rows under every method of the job.

    All methods share the model, the decoded rows and the outputs of the vision towers.
    """

    def __init__(self, job: JobSpec, device: torch.device) -> None:
        self.job, self.device = job, device
        self.processor = job_processor(job.config)
        self.collate = Collator(self.processor)
        self.transfer = DeviceTransfer(device, self.collate.normalise)
        self.utilization = DeviceUtilization(device)
        self.methods: dict[MethodSpec, Method] = {
            run.method: run.method.build() for spec in job.benchmarks for run in spec.runs
        }
        self.towers = Towers()
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
        if config.compile:
            compile_towers(self.model)
        self.decode = Decode(self.model)
        self._warm_up()

    def _warm_up(self) -> None:
        failures: list[Exception] = []
        for config, methods in self.job.by_kind():
            raw = warm_up_inputs(self.processor, config)
            for method in methods:
                try:
                    inputs = self.transfer.start(raw).wait()
                    self.answer(config, self.methods[method], [WARM_UP_ROW], inputs, 2)
                except Exception as error:
                    failures.append(error)  # its rows will report it; other methods may work
        if len(failures) == len(self.methods):
            raise failures[0]

    def start_transfer(self, rows: Sequence[PreparedRow]) -> TransferredBatch:
        """Collate rows and start copying them to the device; may run in any thread."""
        return self.transfer.start(self.collate([row.tensors() for row in rows]))

    @torch.inference_mode()
    def answer(
        self,
        config: EvalConfig,
        method: Method,
        rows: Sequence[PreparedRow],
        inputs: Inputs,
        max_new_tokens: int | None = None,
    ) -> list[dict[str, Any]]:
        """Answer one batch under one method: the answer columns of each row."""
        self.towers.spared_ms()  # discard what a failed batch has left
        gpus = range(torch.cuda.device_count()) if self.device.type == "cuda" else ()
        for gpu in gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        timer = GenerationTimer(self.device)
        seeds = [row_seed(config.seed, row.row_id) for row in rows]
        samplers = [Sampler(config.temperature, seeds)] if config.temperature else []
        towers = self.towers if self.share_towers else None
        with attach(self.model, method, towers=towers) as attached:
            attached.seeds = seeds
            with self.utilization.batch():
                timer.mark()
                token_ids = self.decode.answer(
                    inputs,
                    max_new_tokens or config.max_new_tokens,
                    LogitsProcessorList(samplers),
                    StoppingCriteriaList([timer]),
                )
                prefill_ms, decode_ms = timer.read()
            prefill_ms += self.towers.spared_ms()  # this method alone would have spent it
            stats = attached.stats
        texts = self.processor.batch_decode(token_ids, skip_special_tokens=True)
        ends = eos_token_ids(self.model, self.processor)
        prompt_tokens = inputs["attention_mask"].sum(dim=1).tolist()  # waits for a GPU once
        batch_columns = {
            "batch_rows": len(rows),
            "prefill_ms": prefill_ms / len(rows),
            "decode_ms": decode_ms / len(rows),
            "peak_memory_bytes": sum(map(torch.cuda.max_memory_allocated, gpus)) if gpus else None,
        }
        return [
            {
                "prediction": text.strip(),
                "budget": row_stats.budget,
                "schedule": ",".join(f"{site}={kept}" for site, kept in row_stats.kept.items()),
                "visual_tokens_in": row_stats.visual_tokens,
                "visual_tokens_kept": list(row_stats.kept.values()),
                "prompt_tokens": prompt,
                "new_tokens": answer_length(answer, ends),
                "compress_ms": row_stats.compress_ms,
                **batch_columns,
            }
            for text, row_stats, prompt, answer in zip(
                texts, stats, prompt_tokens, token_ids.tolist(), strict=True
            )
        ]

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
        raw = warm_up_inputs(self.processor, config, PROBE_SIDE)
        tokens = raw["input_ids"].shape[1]
        rows = max(1, PROBE_TOKENS // tokens)
        self.share_towers = len(methods) > 1  # their outputs take memory, too

        def probe(method: MethodSpec) -> None:
            with contextlib.suppress(Exception):  # errors other than memory are the rows' own
                # two tokens, so that a step after the prompt, and its graph, are measured as well
                self.answer(config, self.methods[method], [WARM_UP_ROW] * rows, inputs, 2)

        try:
            inputs = self.transfer.start(self.collate([raw] * rows)).wait()
            probes = [functools.partial(probe, method) for method in methods]
            return measure_batch_tokens(probes, rows * tokens, gpu_share())
        finally:
            self.towers.forget()
