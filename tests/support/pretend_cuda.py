"""A pretend CUDA device: tensors on the CPU that claim to be on `cuda:0`.

    with PretendCuda() as device:
        model = device.move(model)
        Decode(model).answer(device.move_all(inputs), 4)
        device.waits  # where the host had to wait for the device

Code that asks for the device runs its CUDA paths: packed rows, pinned copies, streams, events and
captured graphs. A product of tensors on two devices raises. Everything that makes the host wait is
listed in `waits` with the line that did it, and raises inside a capture. A graph is replayed for
real: its operations run again on the addresses that they were captured with.

Nothing here is about speed or rounding: numbers are the CPU's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from apet.attention import packed_kernel
from apet.core import compression, triton_launch
from apet.core.group_layout import GroupLayout
from tests.support import flash

DEVICE = torch.device("cuda:0")
# Operations whose result, or its size, the host has to know.
READS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique_consecutive",
    "_unique2",
    "unique_dim",
    "bincount",
}
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}
COPIES = {"_to_copy", "copy_", "_pin_memory"}


class DeviceTensor(Tensor):
    """A tensor on the pretend device. `host` has its numbers."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> DeviceTensor:
        made: DeviceTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        made.host = host
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.host})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} outside of PretendCuda")


@dataclass(frozen=True)
class Wait:
    """Something that the host waited for."""

    what: str
    where: str  # the line of apet, pipelines or transformers that did it
    in_layers: bool  # between the entry of the decoder's first layer and its end


@dataclass
class PretendCuda:
    """The device, as a context."""

    waits: list[Wait] = field(default_factory=list)
    attention: list[str] = field(default_factory=list)  # the kernel of each call of SDPA
    captured: int = 0  # graphs
    replayed: int = 0
    in_layers: bool = False
    recording: list[Callable[[], None]] | None = None  # operations of the graph being captured
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        # Without a GPU, torch then no longer asks for the current one.
        torch._C._ensureCUDADeviceGuardSet()
        for owner, names in _patches(self).items():
            for name, value in names.items():
                self._stack.enter_context(mock.patch.object(owner, name, value))
        self._stack.enter_context(_Functions(self))
        self._stack.enter_context(_Operations(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    # ---- moving

    def move(self, module: nn.Module) -> nn.Module:
        """Move the module's weights, in place."""
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    moved = nn.Parameter(DeviceTensor(weight.data), requires_grad=False)
                    part._parameters[name] = moved
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = DeviceTensor(buffer)
        return module

    def move_all(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: DeviceTensor(tensor) for name, tensor in tensors.items()}

    @contextmanager
    def watching(self, decoder: Any) -> Iterator[None]:
        """Tell the waits between this decoder's first layer and its end from others."""

        def enter(*_: object) -> None:
            self.in_layers = True

        def leave(*_: object) -> None:
            self.in_layers = False

        hooks = [
            decoder.layers[0].register_forward_pre_hook(enter),
            decoder.register_forward_hook(leave),
        ]
        try:
            yield
        finally:
            self.in_layers = False
            for hook in hooks:
                hook.remove()

    # ---- running

    def wait(self, what: str) -> None:
        where = _caller()
        if self.recording is not None:
            raise RuntimeError(f"{what} at {where} is not permitted while a graph is captured")
        self.waits.append(Wait(what, where, self.in_layers))

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation of torch."""
        name = func.overloadpacket.__name__
        tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Tensor)]
        on_device = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        on_host = [t for t in tensors if not isinstance(t, DeviceTensor) and t.ndim > 0]
        requested = kwargs.get("device")
        target = torch.device(requested) if requested is not None else None
        to_device = bool(on_device) if target is None else target.type == "cuda"
        if name in COPIES:
            to_device = self._check_copy(name, args, kwargs, to_device)
        elif on_device:
            self._check(name, func, args, kwargs, on_host)
        if target is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if name == "_to_copy":
            kwargs = {key: kwargs[key] for key in kwargs if key != "non_blocking"}
        host_args, host_kwargs = tree_map(_host, (args, kwargs))
        if name == "_to_copy" and to_device != bool(on_device):
            # Otherwise a copy to the same dtype could be the tensor itself.
            out = host_args[0].to(host_kwargs.get("dtype") or host_args[0].dtype, copy=True)
            return DeviceTensor(out) if to_device else out
        out = func(*host_args, **host_kwargs)
        if not to_device:
            return out
        if self.recording is not None:
            self.recording.append(_Repeat(func, host_args, host_kwargs, out))
        known = {id(tensor.host): tensor for tensor in on_device}
        return tree_map(lambda item: _wrap(item, known), out)

    def _check_copy(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], to_device: bool
    ) -> bool:
        """Look for copies between host and device; returns where the result is."""
        if name == "copy_":
            target, source = args[:2]
            non_blocking = len(args) > 2 and args[2]
            to_device = isinstance(target, DeviceTensor)
        else:
            source, non_blocking = args[0], kwargs.get("non_blocking", False)
        from_device = isinstance(source, DeviceTensor)
        if from_device and not to_device:
            self.wait("copy to the host")
        elif to_device and not from_device and source.ndim:
            if not getattr(source, "pretends_pinned", False):
                self.wait("copy from pageable memory")
            elif not non_blocking:
                self.wait("blocking copy from pinned memory")
        return to_device

    def _check(
        self,
        name: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        on_host: list[Tensor],
    ) -> None:
        if name in INDEXING:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.wait(f"{name} by a mask")
            if any(not isinstance(index, DeviceTensor) for index in indices):
                self.wait(f"{name} by indices on the host")
            on_host = [tensor for tensor in on_host if not any(tensor is i for i in indices)]
        if on_host:
            raise RuntimeError(
                f"{func} at {_caller()} got tensors on {DEVICE} and on the CPU:"
                f" {[tuple(tensor.shape) for tensor in on_host]}"
            )
        if name in READS or (
            name == "repeat_interleave" and kwargs.get("output_size") is None and len(args) < 3
        ):
            self.wait(name)

    # ---- graphs

    @contextmanager
    def capture(self, graph: PretendGraph, **_: Any) -> Iterator[None]:
        assert self.recording is None
        self.recording = graph.operations
        try:
            yield
            self.captured += 1
        finally:
            self.recording = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Scaled dot-product attention, which chooses among the kernels as on an H100."""
        names = ("cudnn", "flash", "mem_efficient", "math")
        allowed = [name for name in names if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()]
        self.attention.append(allowed[0])
        mask = options.get("attn_mask")
        devices = {t.device for t in (query, key, value, mask) if t is not None}
        if len(devices) > 1:
            raise RuntimeError(f"attention got tensors on {devices}")
        call = tree_map(_host, (query, key, value)), tree_map(_host, options)
        out = F.scaled_dot_product_attention(*call[0], **call[1])
        if self.recording is not None:
            self.recording.append(_Repeat(F.scaled_dot_product_attention, *call, out))
        return DeviceTensor(out)

    def varlen(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        ends: Tensor,
        _: Tensor,
        longest: int,
        *__: Any,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        **___: Any,
    ) -> Tensor:
        """Flash attention of packed rows (T, H, d), fewer heads of keys allowed."""
        assert all(isinstance(t, DeviceTensor) for t in (query, key, value, ends))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        hosts = [_host(states).transpose(0, 1) for states in (query, key, value)]
        bounds = _host(ends).tolist()
        assert max(second - first for first, second in pairwise(bounds)) == longest
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        q, *others = hosts
        k, v = (states.repeat_interleave(len(q) // len(states), dim=0) for states in others)
        rows = [
            flash.attend(q[:, a:b], k[:, a:b], v[:, a:b], scale, window_size == (-1, 0))
            for a, b in pairwise(bounds)
        ]
        return DeviceTensor(torch.cat(rows, dim=1).transpose(0, 1).contiguous())

    def launch(
        self, tokens: Tensor, layout: GroupLayout, merge: bool
    ) -> triton_launch.FlatCompressed:
        """`launch_flat` in plain torch: the kernels need a real device."""
        assert isinstance(tokens, DeviceTensor)
        assert all(isinstance(part, DeviceTensor) for part in layout[1:])
        starts, keeps, bases = (
            _host(part).tolist() for part in (layout.starts, layout.keeps, layout.bases)
        )
        columns: list[list[Tensor]] = []
        for (start, end), keep, basis in zip(pairwise(starts), keeps, bases, strict=True):
            group = _host(tokens)[start:end][None]
            options = "fps", merge, 0, "paper", None, False
            out = compression._compress_in_torch(group.double(), keep, basis, *options)
            square = group.double().square().sum(-1)
            fields = out.tokens, out.index, out.error.double().square(), out.slot, square
            columns.append([column[0] for column in fields])
        return triton_launch.FlatCompressed(
            *(DeviceTensor(torch.cat(column)) for column in zip(*columns, strict=True))
        )


class _Repeat:
    """An operation of a graph."""

    def __init__(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.func, self.args, self.kwargs, self.out = func, args, kwargs, out
        inputs = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        self.storages = {t.untyped_storage().data_ptr() for t in inputs}

    def __call__(self) -> None:
        again = self.func(*self.args, **self.kwargs)
        pairs = zip(tree_flatten(self.out)[0], tree_flatten(again)[0], strict=True)
        for first, second in pairs:
            # Views and changes in place are in the same memory already.
            if isinstance(first, Tensor) and (
                first.untyped_storage().data_ptr() not in self.storages
            ):
                first.copy_(second)


class PretendGraph:
    def __init__(self, device: PretendCuda) -> None:
        self.device, self.operations = device, []

    def replay(self) -> None:
        self.device.replayed += 1
        for operation in self.operations:
            operation()


class _Operations(TorchDispatchMode):
    def __init__(self, device: PretendCuda) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # In inference mode, operations that are made of others arrive whole.
        with self:
            if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                return out
        return self.device.run(func, args, kwargs)


class _Functions(TorchFunctionMode):
    """Calls that torch answers in C++ from the device itself."""

    def __init__(self, device: PretendCuda) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.pin_memory:
            pinned = args[0].clone()
            pinned.pretends_pinned = True
            return pinned
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and (
            (target := kwargs.get("device", getattr(args[0], "device", "cpu"))) is not None
            and torch.device(target).type == "cuda"
            and not (func is torch.as_tensor and isinstance(args[0], Tensor))
        ):
            numbers = args[1] if func is Tensor.new_tensor else args[0]
            dtype = kwargs.get("dtype") or (args[0].dtype if func is Tensor.new_tensor else None)
            made = torch.tensor(numbers, dtype=dtype)
            if made.numel() and (made.ndim or self.device.recording is not None):
                self.device.wait("copy from pageable memory")
            return DeviceTensor(made)
        if func is Tensor.record_stream:
            return None
        if func is F.scaled_dot_product_attention and isinstance(args[0], DeviceTensor):
            return self.device.attend(*args, **kwargs)
        if func is Tensor.tolist and isinstance(args[0], DeviceTensor):
            self.device.wait("tolist")
            return args[0].host.tolist()
        return func(*args, **kwargs)


def _host(item: Any) -> Any:
    return item.host if isinstance(item, DeviceTensor) else item


def _wrap(item: Any, known: dict[int, DeviceTensor]) -> Any:
    if not isinstance(item, Tensor):
        return item
    return known[id(item)] if id(item) in known else DeviceTensor(item)


def _caller() -> str:
    """The innermost line of the code under test."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if any(f"/{package}/" in path for package in ("apet", "pipelines", "transformers")) and (
            "/tests/" not in path
        ):
            return f"{'/'.join(path.split('/')[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "a test"


class _Event:
    def __init__(self, device: PretendCuda, **_: Any) -> None:
        self.device = device

    def record(self, stream: object = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.device.wait("event")

    def elapsed_time(self, other: object) -> float:
        return 1.0


class _Stream:
    def __init__(self, device: PretendCuda) -> None:
        self.device = device

    def wait_stream(self, other: object) -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return event or _Event(self.device)


@contextmanager
def _nothing(*_: object, **__: object) -> Iterator[None]:
    yield


def _patches(device: PretendCuda) -> dict[Any, dict[str, Any]]:
    gib = 1 << 30
    numbers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "graph_pool_handle": (0, 1),
        "memory_allocated": gib,
        "max_memory_allocated": 2 * gib,
        "memory_reserved": gib,
        "mem_get_info": (64 * gib, 80 * gib),
    }
    cuda: dict[str, Any] = {name: mock.Mock(return_value=value) for name, value in numbers.items()}
    cuda |= {
        name: lambda *_, **__: None
        for name in ("_lazy_init", "empty_cache", "reset_peak_memory_stats")
    }
    cuda |= {
        "is_current_stream_capturing": lambda: device.recording is not None,
        "current_stream": lambda *_: _Stream(device),
        "Stream": lambda *_: _Stream(device),
        "Event": lambda **options: _Event(device, **options),
        "stream": _nothing,
        "device": _nothing,
        "device_of": _nothing,
        "CUDAGraph": lambda: PretendGraph(device),
        "graph": device.capture,
        "synchronize": lambda *_: device.wait("synchronize"),
    }
    return {
        torch.cuda: cuda,
        torch.backends.cuda: {"is_flash_attention_available": lambda: True},
        packed_kernel: {"varlen": SimpleNamespace(varlen_attn=device.varlen)},
        compression: {"kernels_usable": lambda tokens: isinstance(tokens, DeviceTensor)},
        triton_launch: {"launch_flat": device.launch},
    }
