"""How a device runs a merged program: natively where kernels cover it, else with PyTorch's operators."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hwnas.kernels import merged_program as gpu
from hwnas.supernet import execute_cpu, execute_cuda
from hwnas.supernet.execute import Execution, Load, TorchExecution, Weights
from hwnas.supernet.merge import Program


@contextmanager
def _no_collection() -> Iterator[None]:
    """Thousands of small objects are made and stay: looking for garbage among them takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def loader(program: Program, weights: Weights, device: torch.device) -> Load:
    """What makes a part of the program ready to run on the device, where the weights lie."""
    if device.type == "cpu" and execute_cpu.covers(program):
        return lambda part: execute_cpu.CpuExecution(part, weights)
    if gpu.available(device) and execute_cuda.covers(program):
        views = execute_cuda.Views(weights, device)

        def load(part: Program) -> Execution:
            with _no_collection():
                return execute_cuda.CudaExecution(part, views, device)

        return load
    return lambda part: TorchExecution(part, weights)
