"""The examples in README.md and docs/library.md run as they are, on tiny models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import ROOT, tiny

PAGES = ("README.md", "docs/library.md")
EXAMPLES = {
    f"{page} {number}": code
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL), 1
    )
}


def test_readme_has_a_short_example_of_attaching() -> None:
    lines = EXAMPLES["README.md 1"].splitlines()
    assert len([line for line in lines if line and not line.startswith(("from", "import"))]) <= 8


def test_readme_fits_on_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r'"([\w-]+/[\w.-]+)"', EXAMPLES[example]):
        tiny.save("llava", tmp_path / name)
    tiny.image(40, 30).save("cat.jpg")
    names: dict[str, object] = {}
    exec(EXAMPLES[example], names)
    if "run" in names:
        stats = names["run"].stats  # type: ignore[attr-defined]
        assert {row.visual_tokens for row in stats} == {36}
    if "out" in names:
        assert names["out"].tokens.shape == (8, 64, 1024)  # type: ignore[attr-defined]
