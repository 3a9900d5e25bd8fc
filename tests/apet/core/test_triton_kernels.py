"""The Triton kernels give the results of the torch path and the oracle, for groups of any sizes.

On a GPU they run there. Elsewhere `test_kernels_in_interpreter` runs this file once more in a
separate process under Triton's interpreter, which must be chosen before Triton is imported. Blocks
are made small there, so that small groups cross their borders.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from apet import attach, compress
from apet.core import compression, group_layout, triton_launch
from apet.core.compression import Compressed
from apet.core.group_layout import GroupLayout
from apet.core.triton_launch import launch_flat
from apet.methods import build
from tests.apet.attach.test_no_device_waits import DeviceWaits
from tests.support import compiled_kernels, oracle, tiny

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_kernels = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="needs a CUDA device or Triton's interpreter",
)
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
# Triton 3.6 takes a number from an array of one, which is an error since NumPy 2.4.
BROKEN_INTERPRETER = find_spec("triton") is not None and version("triton").startswith("3.6.")
MAX_STACK = 128  # bytes of a thread: some compilers spill a few registers


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.skipif(
    INTERPRETED or torch.cuda.is_available(), reason="the kernels run in this process"
)
@pytest.mark.skipif(BROKEN_INTERPRETER, reason="Triton 3.6's interpreter fails with NumPy 2.4")
def test_kernels_in_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-x", "-p", "no:cacheprovider"],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.skipif(find_spec("triton") is None or INTERPRETED, reason="needs Triton's compiler")
@pytest.mark.parametrize("dtype", compiled_kernels.DTYPES)
@pytest.mark.parametrize("architecture", compiled_kernels.ARCHITECTURES)
def test_kernels_compile_without_gpu_and_spill_little(
    architecture: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name in compiled_kernels.KERNELS:
        used = compiled_kernels.compile_kernel(name, architecture, dtype)
        assert used.stack <= MAX_STACK, (name, used)
        assert used.shared <= 48 * 1024, (name, used)  # what every GPU has


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        from triton.language import constexpr

        from apet.core import triton_kernels

        monkeypatch.setattr(group_layout, "TILE", 16)
        for name, size in {"TILE": 16, "SLOTS": 8, "SCAN": 2, "COLUMNS": 32, "DEPTH": 16}.items():
            monkeypatch.setattr(triton_kernels, name, constexpr(size))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of groups of each set of launches."""
    counts: list[int] = []

    def counting(tokens: Tensor, layout: GroupLayout, merge: bool) -> triton_launch.FlatCompressed:
        counts.append(len(layout.keeps))
        return launch_flat(tokens, layout, merge)

    monkeypatch.setattr(triton_launch, "launch_flat", counting)
    return counts


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int) -> Tensor:
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(shape[0])).float()


def assert_equal_results(one: Compressed, other: Compressed) -> None:
    """Indices and slots must be equal, numbers up to the last bit or two."""
    assert torch.equal(one.index.cpu(), other.index.cpu())
    assert torch.equal(one.slot.cpu(), other.slot.cpu())
    assert one.tokens.dtype == other.tokens.dtype
    assert one.error.dtype == other.error.dtype
    largest = float(other.tokens.double().abs().max())
    rounding = torch.finfo(other.tokens.dtype).eps * largest
    torch.testing.assert_close(one.tokens.cpu(), other.tokens.cpu(), rtol=0, atol=rounding)
    torch.testing.assert_close(one.error.cpu(), other.error.cpu(), rtol=1e-6, atol=1e-6 * largest)


def check_against_torch_and_oracle(
    groups: list[Tensor], keeps: list[int], basis: int, merge: bool = True
) -> list[Compressed]:
    """Compare the kernels' result with the torch path and the oracle."""
    found = compress([group.to(DEVICE) for group in groups], keeps, basis, merge=merge)
    plain = compress(groups, keeps, basis, merge=merge, kernels=False)
    for group, keep, one, other in zip(groups, keeps, found, plain, strict=True):
        assert_equal_results(one, other)
        want = oracle.apet(group.double().numpy(), keep, basis, merge)
        largest = float(group.double().norm(dim=-1).max())
        assert one.index.tolist() == want.index
        assert np.abs(one.error.double().cpu().numpy() - want.error).max() <= 1e-4 * largest
        tolerance = torch.finfo(group.dtype).eps * largest
        assert np.abs(one.tokens.double().cpu().numpy() - want.tokens).max() <= tolerance
    return found


@needs_kernels
def test_groups_of_any_size_share_launches(launches: list[int]) -> None:
    """Groups smaller and larger than a tile; keep = basis, all but one, all, more than a block."""
    sizes = [4, 16, 17, 33, 5]
    keeps = [3, 3, 16, 10, 9]
    check_against_torch_and_oracle([normal(size, 40, seed=size) for size in sizes], keeps, 3)
    assert launches == [4]  # the last keeps all


@needs_kernels
def test_degenerate_data_matches_oracle(launches: list[int]) -> None:
    base = normal(16, 24, seed=1)
    groups = {
        "twins": integers(4, 24).repeat(4, 1),
        "all equal": base[:1].repeat(16, 1),
        "all zero": torch.zeros(16, 24),
        "zero rows": base.index_fill(0, torch.arange(3, 8), 0.0),
        "outlier": base * torch.where(torch.arange(16) == 13, 1e5, 1.0)[:, None],
        "rank 1": integers(16, 1) @ integers(1, 24),
        "rank 3": integers(16, 3) @ integers(3, 24),
        "nearly one token": base[:1] + 1e-4 * normal(16, 24, seed=3),
        "one-hot": torch.eye(24)[:8].repeat(2, 1),
        "huge": 1e4 * base,
    }
    check_against_torch_and_oracle(list(groups.values()), [5, 7] * 5, 5)
    assert launches == [10]


@needs_kernels
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_twins_in_different_tiles_match_oracle_in_any_dtype(dtype: str) -> None:
    few = normal(6, 24, seed=5).to(getattr(torch, dtype))
    check_against_torch_and_oracle(
        [few[torch.arange(36) % 6], normal(18, 24).to(few.dtype)],
        [9, 9],
        5,
        merge=dtype != "float64",
    )


@needs_kernels
def test_basis_of_more_tokens_than_dimensions_matches_oracle() -> None:
    check_against_torch_and_oracle(
        [normal(24, 6, seed=6)], [20], 9
    )  # nine tokens span all six dimensions


@needs_kernels
def test_group_result_is_independent_of_others() -> None:
    groups = [normal(size, 20, seed=size).to(DEVICE) for size in (33, 20)]
    for one, group in zip(compress(groups, [9, 4], 3), groups, strict=True):
        alone = compress(group, len(one.index), 3)
        for field in ("tokens", "index", "error", "slot"):
            assert torch.equal(getattr(one, field), getattr(alone, field))


@needs_kernels
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of which the interpreter is made
def test_nan_does_not_reach_other_groups() -> None:
    """Without the check, as inside a model, a group with NaN keeps as many tokens as any other."""
    batch = normal(3, 16, 20).to(DEVICE)
    want = compress(batch, 4, 2)
    batch[1, 3, 2], batch[2, 4, 4] = torch.nan, torch.inf
    out = compress(batch, 4, 2, check=False)
    for row in (0, 1, 2):
        assert len(set(out.index[row].tolist())) == 4
        assert 0 <= int(out.slot[row].min()) <= int(out.slot[row].max()) < 4
    assert torch.equal(out.tokens[0], want.tokens[0])
    with pytest.raises(ValueError, match="group 2 hold NaN or Inf"):
        compress([batch[0], batch[0, :9], batch[1]], 4, 2)


@needs_kernels
def test_groups_may_have_different_bases() -> None:
    """As in a model, where M is at most K."""
    batches = [normal(1, 20, 20).to(DEVICE), normal(1, 18, 20, seed=1).to(DEVICE)]
    found = compression.compress_batches(batches, [6, 2], [4, 2])
    for tokens, one, keep, basis in zip(batches, found, (6, 2), (4, 2), strict=True):
        assert_equal_results(one, compress(tokens.cpu(), keep, basis, kernels=False))


@needs_kernels
def test_no_launch_waits_for_device() -> None:
    """No shape depends on values either: a CUDA graph requires both."""
    groups = [normal(20, 8).to(DEVICE), normal(9, 8).to(DEVICE)]
    compress(groups, [4, 3], 2)  # on a GPU: compiles and checks the kernels once
    with DeviceWaits() as mode:
        compress(groups, [4, 3], 2, check=False)
        compress(groups[0][None], 4, 2, check=False, merge=False)
    assert mode.operations == []


@needs_kernels
def test_gradients_and_other_options_use_torch_path(launches: list[int]) -> None:
    tokens = normal(20, 8).to(DEVICE).requires_grad_()
    compress(tokens, 8, 4).tokens.sum().backward()
    assert tokens.grad is not None
    compress(tokens.detach(), 8, 4, sampling="random")
    compress(tokens.detach(), 8, 4, variant="release")
    compress(tokens.detach(), 8, 4, kernels=False)
    assert launches == []


@needs_kernels
@torch.no_grad()
def test_model_with_pictures_of_two_sizes_needs_one_launch_per_site(
    launches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"text": "One", "images": [tiny.image(30, 20, 1)]},
        {"text": "Two", "images": [tiny.image(50, 20, 2)]},
    ]
    model = tiny.model("qwen2_5_vl").to(DEVICE)
    inputs = {key: value.to(DEVICE) for key, value in tiny.inputs("qwen2_5_vl", rows).items()}
    with attach(model, build("apet", budget="40%")) as run:
        logits = model(**inputs).logits[:, -1]
        kept = [row.kept for row in run.stats]
    assert len(launches) == 2  # one at the encoder, one in the decoder
    monkeypatch.setattr(compression, "kernels_usable", lambda tokens: False)
    with attach(model, build("apet", budget="40%")) as run:
        torch.testing.assert_close(model(**inputs).logits[:, -1], logits)
        assert [row.kept for row in run.stats] == kept


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("groups", "count", "width", "keep"),
    [
        (64, 576, 1024, 96),
        (64, 96, 4096, 32),
        (8, 2048, 3584, 205),
        (300, 256, 512, 32),
        (1, 16_384, 128, 1638),
    ],
)
def test_shapes_of_real_models_match_torch_path(
    groups: int, count: int, width: int, keep: int, dtype: str
) -> None:
    tokens = normal(groups, count, width).to("cuda", getattr(torch, dtype))
    assert triton_launch.kernels_usable(tokens)
    one, other = compress(tokens, keep), compress(tokens, keep, kernels=False)
    assert_equal_results(one, other)
    again = compress(tokens, keep)
    assert torch.equal(one.tokens, again.tokens)


@pytest.mark.gpu
def test_torch_path_is_deterministic() -> None:
    tokens = normal(16, 576, 256).to("cuda", torch.float64)
    once = compress(tokens, 32, kernels=False).tokens
    assert all(torch.equal(once, compress(tokens, 32, kernels=False).tokens) for _ in range(5))


@pytest.mark.gpu
def test_cuda_graph_of_equal_groups_takes_new_tokens() -> None:
    """The graph is replayed on another batch than the one it was captured with."""
    tokens = normal(8, 300, 128).cuda()
    compress(tokens, 40, check=False)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = compress(tokens, 40, check=False)
    tokens.copy_(normal(8, 300, 128, seed=1))
    graph.replay()
    assert_equal_results(out, compress(normal(8, 300, 128, seed=1), 40, kernels=False))


@pytest.mark.gpu
def test_cuda_graph_of_unequal_groups_takes_new_tokens() -> None:
    sizes, keeps = [300, 40, 77], [40, 12, 76]
    groups = GroupLayout.from_sizes(sizes, keeps, [10] * 3, torch.device("cuda"))
    tokens = normal(sum(sizes), 128).cuda()
    launch_flat(tokens, groups, merge=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = launch_flat(tokens, groups, merge=True)
    tokens.copy_(normal(sum(sizes), 128, seed=1))
    graph.replay()
    want = compress(normal(sum(sizes), 128, seed=1), keeps, lengths=sizes, kernels=False)
    assert out.kept_index.tolist() == [index for one in want for index in one.index.tolist()]
    assert out.slot.tolist() == [slot for one in want for slot in one.slot.tolist()]
    torch.testing.assert_close(out.tokens.float().cpu(), torch.cat([one.tokens for one in want]))
