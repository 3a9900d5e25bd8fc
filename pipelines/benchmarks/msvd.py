"""MSVD-QA: 13,157 open questions about clips."""

from __future__ import annotations

from pipelines.benchmarks.video_qa import VideoQA

BENCHMARK = VideoQA("msvd", "MSVD", "videos")
