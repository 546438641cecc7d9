"""How a device runs a merged program: natively where kernels cover it, else with PyTorch's operators."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch

from hwnas.errors import UserError
from hwnas.kernels import merged_program as gpu
from hwnas.supernet.execute import Execution, Load, TorchExecution, Weights
from hwnas.supernet.execute_cpu import CpuExecution
from hwnas.supernet.execute_cuda import CudaExecution, CudaProgram, covers
from hwnas.supernet.fuse import fuse
from hwnas.supernet.merge import Program


def loader(program: Program, weights: Weights, device: torch.device) -> Load:
    """What makes candidates of the program ready to run on the device, where the weights lie."""
    fused = fuse(program)
    if gpu.available(device) and covers(fused):
        native = CudaProgram(fused, weights)
        return lambda candidates: CudaExecution(native, device, candidates)

    def load(candidates: Sequence[int]) -> Execution:
        if device.type == "cpu":
            with suppress(UserError):  # what the native program does not cover
                return CpuExecution(program, weights, candidates)
        return TorchExecution(fused, weights, candidates)

    return load
