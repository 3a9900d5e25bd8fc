"""Texts with URIs are shown without passwords and query strings."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest

from pipelines.metrics.summary import failure_lines, failures
from pipelines.results.run_record import RunRecord
from pipelines.text import describe_error, redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/x?secret_key=1", "s3://***@bucket/x"),
        ("s3://key:secret@bucket", "s3://***@bucket"),
        ("S3://KEY:se/cr+et=@bucket/x", "S3://***@bucket/x"),
        ("s3://key:s@e/c@ret@bucket/x", "s3://***@bucket/x"),
        ("s3://key:what?@bucket/x", "s3://***@bucket/x"),
        ("https://token@host/x", "https://***@host/x"),
        ("https://token@ten@host/x", "https://***@host/x"),
        ("http://user:5000@host:5000/x", "http://***@host:5000/x"),
        (
            "cannot open postgresql+psycopg2://u:p@h/db: refused",
            "cannot open postgresql+psycopg2://***@h/db: refused",
        ),
        ("from s3://a:b@c/x to 's3://d:e/f@g/y'", "from s3://***@c/x to 's3://***@g/y'"),
        ("s3://a:b@c/x,s3://d:e/f@g/y", "s3://***@c/x,s3://***@g/y"),
        ("s3://b/x?access_key=k&secret_key=s is not there", "s3://b/x is not there"),
        ("s3://b/x?endpoint_override=http://user:secret@host:9000", "s3://b/x"),
        ("s3://b?a=1 and gs://b?a=1", "s3://b and gs://b"),
    ],
)
def test_secrets_are_removed(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown
    assert describe_error(OSError(text)) == f"OSError: {shown}"
    assert RunRecord("run", config={"output": text}).snapshot()["config"] == {"output": shown}


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/folder",
        "sqlite:////home/a@b/mlflow.db",
        "http://host/team/a@b",
        "http://host:5000/team/a@b",
        "/data/what?.jsonl",
        "Who is a@b.c, and why at 10:30?",
    ],
)
def test_texts_without_secrets_do_not_change(text: str) -> None:
    assert redacted(text) == text


def test_control_characters_are_replaced() -> None:
    control = "\x1b[2J\x1b]0;title\x07 \x9b31m gone\rover\x08\x7f"
    shown = "one\n\ttwo \ufffd[2J\ufffd]0;title\ufffd \ufffd31m gone\ufffdover\ufffd\ufffd"
    assert redacted(f"one\n\ttwo {control}") == shown
    rows = pa.table(
        {"row_id": [f"id{control}\nmore"], "status": ["error"], "error": [f"Error: {control}"]}
    )
    lines = failure_lines(failures([rows]))
    assert all(line.isprintable() for line in lines.splitlines())
    assert len(lines.splitlines()) == 2


def test_shortened_error_shows_no_part_of_a_secret() -> None:
    text = describe_error(ValueError(f"{'x' * 470} s3://key:{'s' * 100}@bucket"))
    assert len(text) <= 500
    assert "sss" not in text


@pytest.mark.parametrize(
    "text", ["a" * 300_000, "a://b:" * 50_000, f"s3://k:{'s' * 300_000}", "a://b/?" * 50_000]
)
def test_long_text_is_redacted_in_linear_time(text: str) -> None:
    began = time.process_time()
    redacted(text)
    assert time.process_time() - began < 5
