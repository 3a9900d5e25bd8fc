"""docs/cluster.md says what the code says: its messages, its metrics, its files, and arithmetic that adds up.

And all pages show the pictures that there are.
"""

from __future__ import annotations

import re

from pipelines.config.eval_config import parse
from pipelines.inference.plan import stall_timeout_s
from tests.support import ROOT

GUIDE = (ROOT / "docs" / "cluster.md").read_text()
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "pipelines").rglob("*.py")))
MESSAGES = re.sub(r'"\s*\n\s*f?"', "", SOURCE)  # texts over several lines as one


def test_every_message_is_one() -> None:
    section = GUIDE.split("## What goes wrong")[1].split("Exit status")[0]
    quoted = [
        part
        for line in section.splitlines()
        if line.startswith("| ")
        for part in line.split(" | ")[0].split("`")[1::2]
    ]
    assert len(quoted) > 12
    for message in quoted:
        if message not in ("OSError", "OutOfMemoryError"):  # Python's and PyTorch's
            assert all(part in MESSAGES for part in message.split(" ... ")), message


def test_every_metric_is_one() -> None:
    named = set(re.findall(r"ray_(apet_\w+)", GUIDE))
    known = set(re.findall(r'metrics\.(?:Counter|Gauge)\("(apet_\w+)"', SOURCE))
    assert {name.removesuffix("_total") for name in named} == known
    assert {name for name in named if name.endswith("_total")} == {
        "apet_rows_total",
        "apet_visual_tokens_total",
    }
    for name in re.findall(
        r"`((?:system/)?[a-z_/]+)`", GUIDE.split("## What to watch")[1].split("Prometheus")[0]
    ):
        assert f'"{name}"' in SOURCE, name


def test_every_file_is_named() -> None:
    for path in (ROOT / "cluster").iterdir():
        assert f"cluster/{path.name}" in GUIDE or path.suffix == ".dockerignore", path.name
    for name in re.findall(r"(?:cluster|tests|docs)/[\w./-]+\.\w+", GUIDE):
        assert (ROOT / name).exists(), name


def test_the_patience_is_the_plans() -> None:
    [said] = re.findall(
        r"nothing for (\d+) minutes \(eight times `--batch-timeout`, (\d+) minutes at least\)",
        GUIDE,
    )
    limit = parse("image", []).batch_timeout
    assert [60 * int(minutes) for minutes in said] == [stall_timeout_s(limit), stall_timeout_s(1)]
    assert stall_timeout_s(10 * limit) == 8 * 10 * limit


def test_every_picture_is_shown_and_there() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {
        page.parent / name
        for page in pages
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
    }
    assert {path for path in shown if not path.exists()} == set()
    assert set((ROOT / "docs" / "pictures").iterdir()) <= shown


def test_the_plan_adds_up() -> None:
    rows = re.findall(r"\| ([0-9.]+) \| ([0-9,]+) (?:machine|GPU) hours \|", GUIDE)
    assert len(rows) == 4
    for rate, hours in rows:
        assert abs(1e8 / float(rate) / 3600 / float(hours.replace(",", "")) - 1) < 0.01
    readme = (ROOT / "README.md").read_text()
    for rate, _ in rows[:2]:
        assert f" {rate} " in readme, "the README has other rates by now"
