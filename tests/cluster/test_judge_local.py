"""The local judge: batches of one loaded model without Ray, and a pool of actors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines.judge import Unavailable, protocol
from pipelines.results.storage import Folder
from tests.pipelines.judge.chat_server import YES, make_items
from tests.support import tiny

NO_SYSTEM_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ message['role'] | upper }}: {{ message['content'] }}\n"
    "{% endfor %}ASSISTANT:"
)


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text model with random weights, whose replies are nonsense."""
    import transformers as hf

    folder = tmp_path_factory.mktemp("text-model")
    hf.LlamaForCausalLM(hf.LlamaConfig(**tiny._TEXT)).save_pretrained(folder)
    tokenizer = tiny.tokenizer(begin=True)
    tokenizer.chat_template = NO_SYSTEM_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def test_reader_halves_failing_batches_and_repeats_malformed_replies(
    text_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.judge.local import Reader

    reader = Reader(str(text_model), None, gpu=False, threads=1)
    questions = [protocol.messages(item) for item in make_items(5)]
    text = reader._text(questions[0])
    # the template refuses a system message, so that it becomes part of the user's
    assert text.startswith(f"USER: {protocol.SYSTEM}\n\nQuestion: What")
    assert text.endswith("ASSISTANT:")
    (nonsense,) = reader.judge(questions[:1])
    assert nonsense.error is not None
    assert nonsense.error.startswith("malformed: ")

    batches: list[list[str]] = []

    def generate(texts: list[str]) -> list[str]:
        batches.append(texts)
        if len(texts) > 2:
            raise RuntimeError("out of memory")
        if any("video 3?" in text for text in texts):
            raise IndexError("too long")
        malformed = ["video 1?" in text and "not the object" not in text for text in texts]
        return ["?" if is_malformed else YES for is_malformed in malformed]

    monkeypatch.setattr(reader, "_generate", generate)
    verdicts = reader.judge(questions)
    assert [verdict.correct for verdict in verdicts] == [True, True, True, None, True]
    assert verdicts[3].error == "failed: IndexError: too long"
    assert len(batches[-1]) == 1, "only the malformed reply is requested again"


def test_pool_survives_the_death_of_an_actor_and_uses_the_cache(
    cluster: None, text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.judge import local

    marker = tmp_path / "died"

    class MortalReader(local.Reader):
        """Dies once; its score is the number of the video."""

        def _generate(self, texts: list[str]) -> list[str]:
            if not marker.exists():
                marker.touch()
                os._exit(1)
            videos = [text.rpartition("video ")[2].partition("?")[0] for text in texts]
            return [json.dumps({"pred": "yes", "score": int(video) % 6}) for video in videos]

    monkeypatch.setattr(local, "Reader", MortalReader)
    cache, expected = Folder.of(str(tmp_path / "cache")), [video % 6 for video in range(9)]
    judge = local.Local(str(text_model), cache=cache, actors=(1, 2), batch_size=2)
    assert judge.name.startswith("local/text-model")
    assert judge.version.startswith("1 sha256:")
    assert [verdict.score for verdict in judge.judge(make_items(9))] == expected
    monkeypatch.setattr(local.Local, "_start", lambda self: pytest.fail("all are in the cache"))
    assert [verdict.score for verdict in judge.judge(make_items(9))] == expected
    broken = local.Local(str(tmp_path / "cache"))
    monkeypatch.undo()
    with pytest.raises(Unavailable, match=r"local/cache does not work: \w+"):
        list(broken.judge(make_items(1)))
