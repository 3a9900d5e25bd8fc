"""MSVD-QA: 13,157 open questions about clips."""

from pipelines.benchmarks.video_qa import VideoQA

BENCHMARK = VideoQA("msvd", "MSVD", "videos")
