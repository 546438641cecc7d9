"""How a device runs a merged program: natively where kernels cover it, else with PyTorch's operators."""

from __future__ import annotations

import torch

from hwnas.kernels import merged_program as gpu
from hwnas.supernet import execute_cpu, execute_cuda
from hwnas.supernet.execute import Load, TorchExecution, Weights
from hwnas.supernet.merge import Program


def loader(program: Program, weights: Weights, device: torch.device) -> Load:
    """What makes a part of the program ready to run on the device, where the weights lie."""
    if device.type == "cpu" and execute_cpu.covers(program):
        return lambda part: execute_cpu.CpuExecution(part, weights)
    if gpu.available(device) and execute_cuda.covers(program):
        views = execute_cuda.Views(weights, device)
        return lambda part: execute_cuda.CudaExecution(part, views, device)
    return lambda part: TorchExecution(part, weights)
