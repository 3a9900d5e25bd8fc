"""Copies from the host to a device."""

import torch
from torch import Tensor


def copy_async(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device without waiting for it."""
    # CUDA copies asynchronously from pinned memory only.
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
