"""How a device runs a merged program: natively where kernels cover it, else with PyTorch's operators."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hwnas.kernels import merged_program as gpu
from hwnas.supernet import execute_cpu
from hwnas.supernet.execute import Execution, TorchExecution, Weights
from hwnas.supernet.execute_cuda import CudaExecution, Room
from hwnas.supernet.forms import Forms
from hwnas.supernet.merge import Program


def executor(weights: Weights, device: torch.device) -> Callable[[Program], Execution]:
    """What makes programs over these weights ready to run on the device, where the weights lie."""
    forms, room = (Forms(weights, device), Room(device)) if gpu.available(device) else (None, None)

    def execution(program: Program) -> Execution:
        if forms and room and forms.covers(program):
            return CudaExecution(program, forms, room)
        if device.type == "cpu" and execute_cpu.covers(program):
            return execute_cpu.CpuExecution(program, weights)
        return TorchExecution(program, weights)

    return execution
