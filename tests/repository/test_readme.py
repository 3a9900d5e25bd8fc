"""The README's code runs as it is written, on tiny models in the places of the real ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import tiny

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_three_examples() -> None:
    assert len(EXAMPLES) == 3
    assert (
        len(
            [
                line
                for line in EXAMPLES[0].splitlines()
                if line and not line.startswith(("from", "import"))
            ]
        )
        <= 8
    )


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r'"([\w-]+/[\w.-]+)"', example):
        tiny.save("llava", tmp_path / name)
    tiny.image(40, 30).save("cat.jpg")
    names: dict[str, object] = {}
    exec(example, names)
    if "run" in names:
        stats = names["run"].stats  # type: ignore[attr-defined]
        assert [row.visual_tokens for row in stats] == [36]
    if "out" in names:
        assert names["out"].tokens.shape == (8, 64, 1024)  # type: ignore[attr-defined]
