"""MSRVTT-QA: open questions about clips."""

from __future__ import annotations

from pipelines.benchmarks.video_qa import Clips

BENCHMARK = Clips("msrvtt", "MSRVTT", "videos/all", "videos", "all")
