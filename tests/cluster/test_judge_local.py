"""A local model as a judge: its batches without Ray, and its pool of actors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines.judge import Item, Unavailable, protocol
from pipelines.results.storage import Folder
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings("default")  # Ray warns of itself
YES = '{"pred": "yes", "score": 4}'


def items(count: int) -> list[Item]:
    return [Item(f"What is in video {number}?", ("dog",), "A dog.") for number in range(count)]


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model as real ones are saved; its weights are random, so what it says is nonsense."""
    import transformers as hf

    folder = tmp_path_factory.mktemp("text-model")
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**tiny._TEXT))
    model.save_pretrained(folder)
    made = tiny.tokenizer(begin=True)
    made.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ message['role'] | upper }}: {{ message['content'] }}\n{% endfor %}ASSISTANT:"
    )
    made.save_pretrained(folder)
    return folder


def test_a_local_model_without_ray(text_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.judge.local import Reader

    reader = Reader(str(text_model), None, gpu=False, threads=1)
    texts = reader._text(protocol.messages(items(1)[0]))
    assert texts.startswith(f"USER: {protocol.SYSTEM}\n\nQuestion: What"), (
        "templates may refuse a system message"
    )
    assert texts.endswith("ASSISTANT:")
    (nonsense,) = reader.judge(items(1))
    assert nonsense.error is not None
    assert nonsense.error.startswith("malformed: ")

    asked: list[list[str]] = []

    def generate(texts: list[str]) -> list[str]:
        asked.append(texts)
        if len(texts) > 2:
            raise RuntimeError("out of memory")
        if any("video 3?" in text for text in texts):
            raise IndexError("too long")
        return [
            "?" if "video 1?" in text and "not the object" not in text else YES for text in texts
        ]

    monkeypatch.setattr(reader, "_generate", generate)
    verdicts = reader.judge(items(5))
    assert [verdict.correct for verdict in verdicts] == [True, True, True, None, True]
    assert verdicts[3].error == "failed: IndexError: too long"
    assert len(asked[-1]) == 1, "only what was malformed is asked again"


def test_a_local_model_in_a_pool_of_actors(
    cluster: None, text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a reader that dies once, and replies by what it is asked."""
    from pipelines.judge import local

    marker = tmp_path / "died"

    class Stub(local.Reader):
        def _generate(self, texts: list[str]) -> list[str]:
            if not marker.exists():
                marker.touch()
                os._exit(1)
            said = [text.rpartition("video ")[2].partition("?")[0] for text in texts]
            return [json.dumps({"pred": "yes", "score": int(number) % 6}) for number in said]

    monkeypatch.setattr(local, "Reader", Stub)
    cache = Folder.of(str(tmp_path / "cache"))
    judge = local.Local(str(text_model), cache=cache, actors=(1, 2), batch_size=2)
    assert judge.name.startswith("local/text-model")
    assert judge.version.startswith("1 sha256:")
    assert [verdict.score for verdict in judge.judge(items(9))] == [
        number % 6 for number in range(9)
    ]
    monkeypatch.setattr(local.Local, "_start", lambda self: pytest.fail("all of it is known"))
    assert [verdict.score for verdict in judge.judge(items(9))] == [
        number % 6 for number in range(9)
    ]
    broken = local.Local(str(tmp_path / "cache"))
    monkeypatch.undo()
    with pytest.raises(Unavailable, match=r"local/cache does not work: \w+"):
        list(broken.judge(items(1)))
