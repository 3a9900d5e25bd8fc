"""The user's own questions: a manifest with answers, with options, or with neither.

An answer is right if it equals one of the reference answers, except for case, articles and outer
punctuation. With options the prompt lists them and asks for a letter; the letter or the option's
text is right. Rows without references are answered but not scored.
"""

from pipelines.benchmarks.base import Benchmark, Score, lettered, normalised, option_index
from pipelines.data.rows import Row

INSTRUCTION = "Answer with the option's letter from the given choices directly."


class ManifestBenchmark(Benchmark):
    name = "manifest"
    version = "2"
    kind = None

    def prompt(self, row: Row) -> str:
        if not row.options:
            return row.question
        return "\n".join([row.question, *lettered(row.options), INSTRUCTION])

    def score(self, row: Row, prediction: str) -> Score:
        if not row.answers:
            return Score(None, None)
        references = {normalised(answer) for answer in row.answers}
        text, options = normalised(prediction), [normalised(option) for option in row.options]
        index = options.index(text) if text in options else option_index(prediction, len(options))
        candidates = {text} if index is None else {options[index], chr(ord("a") + index)}
        return Score.of(bool((candidates & references) - {""}))


BENCHMARK = ManifestBenchmark()
