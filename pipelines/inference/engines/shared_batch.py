"""A batch of rows that share prefixes: the same media, and the same tokens up to them."""

from collections.abc import Sequence
from itertools import accumulate, groupby

from apet.decoding.shared_steps import Suffixes
from pipelines.inference.engines.device_transfer import Inputs
from pipelines.inference.prepared_row import PreparedRow
from pipelines.inference.preprocess import Collator

SUFFIX_IDS, SUFFIX_VALID = "suffix_ids", "suffix_valid"  # in the inputs of a shared batch


def prefix_counts(rows: Sequence[PreparedRow]) -> list[int]:
    """How many rows continue each prefix. Rows of a prefix follow each other."""
    return [len(list(group)) for _, group in groupby(rows, key=lambda row: row.prefix_key)]


def first_rows(counts: Sequence[int]) -> list[int]:
    """The place of each prefix's first row in the batch."""
    return list(accumulate(counts[:-1], initial=0))


def collate_shared(collate: Collator, rows: Sequence[PreparedRow]) -> Inputs:
    """The inputs of each prefix once, and the left-padded rest (B, S) of each row's prompt."""
    tokens = [row.token_tensors() for row in rows]
    prefixes = [
        {name: each[:, : rows[place].prefix_tokens] for name, each in tokens[place].items()}
        | rows[place].media_tensors()
        for place in first_rows(prefix_counts(rows))
    ]
    rests = collate(
        [
            {name: each[:, row.prefix_tokens :] for name, each in own.items()}
            for row, own in zip(rows, tokens, strict=True)
        ]
    )
    valid = rests["attention_mask"].bool()
    return {**collate(prefixes), SUFFIX_IDS: rests["input_ids"], SUFFIX_VALID: valid}


def split_inputs(inputs: Inputs, counts: Sequence[int]) -> tuple[Inputs, Suffixes]:
    """The inputs of the prefixes, and what follows them."""
    prefixes = {name: each for name, each in inputs.items() if not name.startswith("suffix_")}
    return prefixes, Suffixes(inputs[SUFFIX_IDS], inputs[SUFFIX_VALID], counts)
