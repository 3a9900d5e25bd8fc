"""The columns of an answer in Parquet. Readers outside this project rely on them."""

import pyarrow as pa

ANSWER_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),  # unique within a run, the same in every run
        ("benchmark", pa.string()),
        ("split", pa.string()),
        ("type", pa.string()),
        ("media", pa.list_(pa.string())),
        ("question", pa.string()),
        ("prompt", pa.string()),  # the question as the model got it
        ("reference", pa.list_(pa.string())),
        ("options", pa.list_(pa.string())),
        ("meta", pa.map_(pa.string(), pa.string())),  # Row.meta, needed to score a run again
        ("prediction", pa.string()),
        ("score", pa.float64()),  # null if the metric is not per row
        ("correct", pa.bool_()),
        ("status", pa.string()),  # ok or error
        ("error", pa.string()),  # class and message
        ("model", pa.string()),
        ("method", pa.string()),
        ("budget", pa.float64()),  # actual average of the row's tokens over the layers
        ("schedule", pa.string()),
        ("visual_tokens_in", pa.int64()),
        ("visual_tokens_kept", pa.list_(pa.int64())),  # one number a compression site
        ("prompt_tokens", pa.int64()),
        ("new_tokens", pa.int64()),
        ("batch_rows", pa.int64()),
        ("prefill_ms", pa.float64()),  # the row's share of the batch's
        ("decode_ms", pa.float64()),  # likewise
        ("compress_ms", pa.float64()),  # likewise
        ("peak_memory_bytes", pa.int64()),  # of all GPUs of the actor in this batch; null on a CPU
        ("shared_rows", pa.int64()),  # rows of the batch that continued this row's prefix
        ("shared_prefill_ms", pa.float64()),  # of that prefix; null if it was not shared
        ("answered_at", pa.timestamp("ms", tz="UTC")),
        ("actor", pa.string()),
        ("point", pa.string()),
        ("run_id", pa.string()),
    ]
)
