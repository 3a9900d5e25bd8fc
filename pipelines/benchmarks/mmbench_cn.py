"""MMBench-CN (dev): MMBench in Chinese, with the same rules."""

from pipelines.benchmarks.mmbench import MMBench

FILES = {
    "dev": ("mmbench_dev_cn_20231003.tsv", "MMBench_DEV_CN.tsv"),
    "test": ("mmbench_test_cn_20231003.tsv", "MMBench_TEST_CN.tsv"),
}
BENCHMARK = MMBench("mmbench_cn", "cn", "\n请直接回答选项字母。", FILES)
