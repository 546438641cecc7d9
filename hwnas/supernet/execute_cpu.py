"""Candidates of a merged program on this machine's processor, as one native program."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hwnas.errors import UserError
from hwnas.kernels.candidate_plan import in_memory
from hwnas.kernels.candidate_program import CandidateProgram, Node
from hwnas.supernet.execute import Execution, Weights
from hwnas.supernet.merge import Program


class CpuExecution(Execution):
    """Depth first for the statistics; then a few images at a time through everything, so that they stay in the cache."""

    def __init__(self, program: Program, weights: Weights) -> None:
        nodes = [Node(v.prim, v.inputs, {w.name: weights(w) for w in v.weights}) for v in program.values]
        self.native = CandidateProgram(program.input, nodes, program.outputs)

    def memory(self, images: int) -> int:
        return max(self.native.calibration_bytes(images), self.native.run_bytes())

    def recalibrate(self, batches: Sequence[Tensor], limit: int) -> None:
        self.native.calibrate(batches)

    def logits(self, images: Tensor, limit: int, wanted: Sequence[int] | None = None) -> Tensor:
        return self.native.run(images, wanted)


def covers(program: Program) -> bool:
    """Whether the native program knows all of it."""
    if len(program.input.dims) != 3:
        return False
    try:
        in_memory(program.input, [(value.prim, value.inputs) for value in program.values])
    except UserError:
        return False
    return True
