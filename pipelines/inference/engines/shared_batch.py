"""A batch of rows that share prefixes: the same media, and the same tokens up to them."""

from collections.abc import Sequence
from itertools import groupby

import torch

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
    return [sum(counts[:number]) for number in range(len(counts))]


def collate_shared(collate: Collator, rows: Sequence[PreparedRow]) -> Inputs:
    """The inputs of each prefix once, and the left-padded rest (B, S) of each row's prompt."""
    prefixes = []
    for place in first_rows(prefix_counts(rows)):
        row, tensors = rows[place], rows[place].tensors()
        shape = tensors["input_ids"].shape
        prefixes.append(
            {
                name: tensor[:, : row.prefix_tokens] if tensor.shape == shape else tensor
                for name, tensor in tensors.items()
            }
        )
    width = max(row.tokens - row.prefix_tokens for row in rows)
    ids = torch.full((len(rows), width), collate.pad)
    valid = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        own = row.token_ids()[row.prefix_tokens :]
        ids[number, width - len(own) :] = own
        valid[number, width - len(own) :] = True
    return {**collate(prefixes), SUFFIX_IDS: ids, SUFFIX_VALID: valid}


def split_inputs(inputs: Inputs, counts: Sequence[int]) -> tuple[Inputs, Suffixes]:
    """The inputs of the prefixes, and what follows them."""
    prefixes = {name: each for name, each in inputs.items() if not name.startswith("suffix_")}
    return prefixes, Suffixes(inputs[SUFFIX_IDS], inputs[SUFFIX_VALID], counts)
