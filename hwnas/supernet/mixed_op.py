"""The mixed op: the weighted sum of a slot's options (Liu et al. 2019, equation 2), for any space."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hwnas.errors import UserError
from hwnas.ir.op import Op
from hwnas.kernels.weighted_sum import weighted_sum
from hwnas.ops.zero import Zero


def mixed_op(options: Sequence[tuple[Op, Tensor | None]], run: Callable[[Op], Tensor]) -> Tensor:
    """`sum_o weight_o * run(op_o)`, each [n, c, h, w]; a lone option without a weight runs as it is."""
    if len(options) == 1 and options[0][1] is None:
        return run(options[0][0])
    # Zeros add nothing and pass no gradient, so they are not computed unless there is nothing else.
    terms = [(op, weight) for op, weight in options if not isinstance(op, Zero)] or list(options[:1])
    outputs = [run(op) for op, _ in terms]
    if any(y.shape != outputs[0].shape for y in outputs):
        shapes = ", ".join(sorted({str(tuple(y.shape[1:])) for y in outputs}))
        raise UserError(
            "options that are mixed need outputs of one shape", got=shapes, remedy="give the choice of shapes a number"
        )
    weights = torch.stack([torch.ones_like(outputs[0][0, 0, 0, 0]) if w is None else w for _, w in terms])
    return weighted_sum(outputs, weights)
