"""TGIF-QA: open questions about GIFs."""

from __future__ import annotations

from pipelines.benchmarks.video_qa import Clips

BENCHMARK = Clips("tgif", "TGIF", "mp4", "videos")
