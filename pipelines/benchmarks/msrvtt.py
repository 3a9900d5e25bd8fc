"""MSRVTT-QA: open questions about clips."""

from pipelines.benchmarks.video_qa import VideoQA

BENCHMARK = VideoQA("msrvtt", "MSRVTT", "videos/all", "videos", "all")
