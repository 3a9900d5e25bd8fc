"""The user's own questions: a manifest with answers, with options, or with neither.

An answer is right if it equals one of the reference answers, but for case, articles and outer punctuation. With
options the prompt lists them and asks for a letter; the letter or the option's text is right. Rows without answers are
answered and not scored.
"""

from __future__ import annotations

from pipelines.benchmarks.base import Benchmark, Score, option_index, normalised
from pipelines.data.rows import Row


class ManifestBenchmark(Benchmark):
    name = "manifest"
    version = "2"
    kind = None

    def prompt(self, row: Row) -> str:
        if not row.options:
            return row.question
        lines = [f"{chr(ord('A') + place)}. {option}" for place, option in enumerate(row.options)]
        return "\n".join(
            [
                row.question,
                *lines,
                "Answer with the option's letter from the given choices directly.",
            ]
        )

    def score(self, row: Row, prediction: str) -> Score:
        if not row.answers:
            return Score(None, None)
        right = {normalised(answer) for answer in row.answers}
        said, texts = normalised(prediction), [normalised(option) for option in row.options]
        chosen = (
            texts.index(said)
            if said in texts
            else option_index(prediction, len(texts))
            if texts
            else None
        )
        given = {said} if chosen is None else {texts[chosen], chr(ord("a") + chosen)}
        return Score.of(bool((given & right) - {""}))


BENCHMARK = ManifestBenchmark()
