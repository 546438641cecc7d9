"""Memory for what a kernel keeps between forward and backward and for its scratch, and tensors as kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor

from hwnas import _native


def uninitialised_bytes(count: int, device: torch.device) -> Tensor:
    """On the CPU out of a cache, because fresh pages of the system cost as much as the kernel that fills them."""
    if device.type == "cpu" and count:
        return torch.frombuffer(_native.memory.Block(count), dtype=torch.uint8)
    return torch.empty(count, dtype=torch.uint8, device=device)


def kept_bytes() -> int:
    """Bytes that the CPU's cache keeps: never more than were once in use together."""
    count: int = _native.memory.kept_bytes()
    return count


def release() -> None:
    """Gives what the CPU's cache keeps back to the system."""
    _native.memory.release()


def aligned(t: Tensor) -> Tensor:
    """Contiguous and on 16 bytes, as kernels with wide loads read it; copies only what is not."""
    t = t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()
