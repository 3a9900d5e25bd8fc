"""The columns of an answer, as Parquet has them. Readers outside this project rely on them."""

from __future__ import annotations

import pyarrow as pa

ANSWER_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),  # unique within a point, the same in every run
        ("benchmark", pa.string()),
        ("split", pa.string()),
        ("type", pa.string()),
        ("media", pa.list_(pa.string())),
        ("question", pa.string()),
        ("prompt", pa.string()),  # the question as the model was asked it
        ("reference", pa.list_(pa.string())),
        ("options", pa.list_(pa.string())),
        ("meta", pa.map_(pa.string(), pa.string())),  # Row.meta: with it a run is scored from these columns alone
        ("prediction", pa.string()),
        ("score", pa.float64()),  # null where the metric is not per row
        ("correct", pa.bool_()),
        ("status", pa.string()),  # ok or error
        ("error", pa.string()),  # class and message
        ("model", pa.string()),
        ("method", pa.string()),
        ("budget", pa.float64()),  # the layer average that the row really had
        ("schedule", pa.string()),
        ("visual_tokens_in", pa.int64()),
        ("visual_tokens_kept", pa.list_(pa.int64())),  # one a site
        ("prompt_tokens", pa.int64()),
        ("new_tokens", pa.int64()),
        ("batch_rows", pa.int64()),
        ("prefill_ms", pa.float64()),  # of the batch, divided by its rows; so are the next two
        ("decode_ms", pa.float64()),
        ("compress_ms", pa.float64()),
        ("peak_memory_bytes", pa.int64()),  # of all the actor's GPUs, in this batch; null on a CPU
        ("answered_at", pa.timestamp("ms", tz="UTC")),
        ("actor", pa.string()),
        ("point", pa.string()),
        ("run_id", pa.string()),
    ]
)
