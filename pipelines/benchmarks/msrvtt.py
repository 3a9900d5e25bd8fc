"""MSRVTT-QA: open questions about clips."""

from __future__ import annotations

from pipelines.benchmarks.video_qa import VideoQA

BENCHMARK = VideoQA("msrvtt", "MSRVTT", "videos/all", "videos", "all")
