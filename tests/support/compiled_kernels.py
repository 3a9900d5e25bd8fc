"""Compile ApET's Triton kernels ahead of time, for GPUs that this machine does not have.

    python -m tests.support.compiled_kernels    # registers, spills and shared memory of each

It prints what the installed Triton makes of them. Another Triton goes first on the path:
`pip install --no-deps --target FOLDER triton==3.6.0`, then PYTHONPATH=FOLDER:.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from apet.core import triton_launch

KERNELS = ("group_means", "distances_to_mean", "next_pick", "nearest_kept", "slot_means")
ARCHITECTURES = (80, 90, 100)
DTYPES = ("bf16", "fp16", "fp32")
WIDTH = 1024  # of CLIP's tokens

INT64_POINTERS = {
    "starts",
    "tile_starts",
    "slot_starts",
    "group_of_tile",
    "bases",
    "kept",
    "slot",
    "members",
    "bounds",
}


class Resources(NamedTuple):
    """Resources of a GPU that a compiled kernel takes."""

    registers: int  # of a thread
    stack: int  # bytes of a thread in slow memory, most of them spilled registers
    shared: int  # bytes of a program


def compile_kernel(name: str, architecture: int, dtype: str, width: int = WIDTH) -> Resources:
    """Compile for tokens of this dtype and width; raises what the compiler raises."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from apet.core import triton_kernels

    kernel = getattr(triton_kernels, name)
    types = {"tokens": f"*{dtype}", "step": "i32", "count": "i32", "WIDTH": "constexpr"}
    signature = {
        argument: types.get(argument, "*i64" if argument in INT64_POINTERS else "*fp64")
        for argument in kernel.arg_names
    }
    source = ASTSource(kernel, signature, {"WIDTH": width})
    target = GPUTarget("cuda", architecture, 32)
    built = triton.compile(source, target=target, options=triton_launch.FUSION)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.check_output([str(tool), "-res-usage", file.name], text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return Resources(int(found[1]), int(found[2]), built.metadata.shared)


def main() -> None:
    import triton

    print(f"Triton {triton.__version__}, tokens of {WIDTH} numbers")
    print("| kernel | sm | dtype | registers | stack (B) | shared (B) |")
    print("|---|---|---|---|---|---|")
    for name in KERNELS:
        for architecture in ARCHITECTURES:
            for dtype in DTYPES:
                used = compile_kernel(name, architecture, dtype)
                columns = name, architecture, dtype, *used
                print(f"| {' | '.join(map(str, columns))} |", flush=True)


if __name__ == "__main__":
    main()
