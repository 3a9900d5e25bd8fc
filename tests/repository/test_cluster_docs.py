"""docs/cluster.md quotes real messages, metrics and files, its arithmetic adds up, and all pages
show pictures that exist."""

from __future__ import annotations

import re

from pipelines.config.eval_config import parse
from pipelines.inference.plan import stall_timeout_s
from tests.support import ROOT

GUIDE = (ROOT / "docs" / "cluster.md").read_text()
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "pipelines").rglob("*.py")))
MESSAGES = re.sub(r'"\s*\n\s*f?"', "", SOURCE)  # adjacent string literals joined


def test_quoted_messages_are_in_the_code() -> None:
    section = GUIDE.split("## What goes wrong")[1].split("Exit status")[0]
    quoted = [
        message
        for line in section.splitlines()
        if line.startswith("| ")
        for message in line.split(" | ")[0].split("`")[1::2]
    ]
    assert len(quoted) > 12
    for message in quoted:
        if message not in ("OSError", "OutOfMemoryError"):  # Python's and PyTorch's
            assert all(part in MESSAGES for part in message.split(" ... ")), message


def test_metrics_are_those_of_the_code() -> None:
    documented = set(re.findall(r"ray_(apet_\w+)", GUIDE))
    defined = set(re.findall(r'metrics\.(?:Counter|Gauge)\(\s*"(apet_\w+)"', SOURCE))
    assert {name.removesuffix("_total") for name in documented} == defined
    assert {name for name in documented if name.endswith("_total")} == {
        "apet_rows_total",
        "apet_visual_tokens_total",
    }
    section = GUIDE.split("## What to watch")[1].split("Prometheus")[0]
    for name in re.findall(r"`((?:system/)?[a-z_/]+)`", section):
        assert f'"{name}"' in SOURCE, name


def test_all_cluster_files_are_mentioned_and_mentioned_files_exist() -> None:
    for path in (ROOT / "cluster").iterdir():
        assert f"cluster/{path.name}" in GUIDE or path.suffix == ".dockerignore", path.name
    for name in re.findall(r"(?:cluster|tests|docs)/[\w./-]+\.\w+", GUIDE):
        assert (ROOT / name).exists(), name


def test_stall_timeout_is_that_of_the_plan() -> None:
    [minutes] = re.findall(
        r"nothing for (\d+) minutes \(eight times `--batch-timeout`, (\d+) minutes at least\)",
        GUIDE,
    )
    timeout = parse("image", []).batch_timeout
    assert [60 * int(number) for number in minutes] == [
        stall_timeout_s(timeout),
        stall_timeout_s(1),
    ]
    assert stall_timeout_s(10 * timeout) == 8 * 10 * timeout


def test_all_pictures_are_used_and_used_pictures_exist() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    used = {
        page.parent / name
        for page in pages
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
    }
    assert {path for path in used if not path.exists()} == set()
    assert set((ROOT / "docs" / "pictures").iterdir()) <= used


def test_costs_follow_from_the_rates() -> None:
    rows = re.findall(r"\| ([0-9.]+) \| ([0-9,]+) (?:machine|GPU) hours \|", GUIDE)
    assert len(rows) == 4
    for rate, hours in rows:
        assert abs(1e8 / float(rate) / 3600 / float(hours.replace(",", "")) - 1) < 0.01
    readme = (ROOT / "README.md").read_text()
    for rate, _ in rows[:2]:
        assert f" {rate} " in readme, "README.md has other rates: copy them to docs/cluster.md"
