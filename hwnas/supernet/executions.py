"""How a device runs a merged program: natively where kernels cover it, else with PyTorch's operators."""

from __future__ import annotations

import torch

from hwnas.kernels import merged_program as gpu
from hwnas.supernet import execute_cpu, execute_cuda
from hwnas.supernet.execute import Load, TorchExecution, Weights
from hwnas.supernet.fuse import fuse
from hwnas.supernet.merge import Program


def loader(program: Program, weights: Weights, device: torch.device) -> Load:
    """What makes candidates of the program ready to run on the device, where the weights lie."""
    if device.type == "cpu" and execute_cpu.covers(program):
        return lambda candidates: execute_cpu.CpuExecution(program, weights, candidates)
    fused = fuse(program)
    if gpu.available(device) and execute_cuda.covers(fused):
        native = execute_cuda.CudaProgram(fused, weights)
        return lambda candidates: execute_cuda.CudaExecution(native, device, candidates)
    return lambda candidates: TorchExecution(fused, weights, candidates)
