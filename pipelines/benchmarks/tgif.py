"""TGIF-QA: open questions about GIFs."""

from pipelines.benchmarks.video_qa import VideoQA

BENCHMARK = VideoQA("tgif", "TGIF", "mp4", "videos")
