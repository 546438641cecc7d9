"""ZiCo (Li et al. 2023): sum_layers log sum_weights E[|g|] / sqrt(Var[|g|]), over the batches' gradients g.

Weights that get a large and steady gradient train fast. A layer without any gradient adds nothing.
"""

from __future__ import annotations

import math

import torch

from hwnas.evaluation.passes import Passes


def proxy(passes: Passes) -> float:
    total = 0.0
    for layer in zip(*passes.gradients, strict=True):
        size = torch.stack([g.double().abs() for g in layer])
        spread = size.std(0, unbiased=False)
        ratio = float((size.mean(0)[spread > 0] / spread[spread > 0]).sum())
        if ratio > 0:
            total += math.log(ratio)
    return total
