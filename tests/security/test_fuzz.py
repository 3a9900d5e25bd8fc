"""A short run of the fuzzer (tests/support/fuzz.py), and proof that it detects crashes."""

from __future__ import annotations

import signal

import pytest

from tests.support.fuzz import fuzz


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize(
    ("kind", "cases"), [("images", 400), ("videos", 120), ("manifests", 300), ("spreadsheets", 100)]
)
def test_damaged_files_never_crash(kind: str, cases: int) -> None:
    found = fuzz(kind, 0, cases)
    assert found.findings == []
    assert found.cases == cases
    assert found.read > cases // 20  # otherwise nothing was tested
    assert found.refused > cases // 20


@pytest.mark.usefixtures("subprocesses")
def test_fuzzer_detects_crashes() -> None:
    found = fuzz("crashes", 2, 7, silence=2)
    assert found.cases == 7
    assert {what for _, what in found.findings} == {
        f"the process ended with {-signal.SIGSEGV}",
        "no answer in 2 s",
        "MemoryError:",
        "KeyError: 'no ValueError'",
    }
    assert found.read == 3
