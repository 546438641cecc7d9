"""SynFlow (Tanaka et al. 2020; as a proxy Abdelfattah et al. 2021): the sum over weights of |theta * dR/dtheta|.

R is the sum of the outputs for an input of ones, all weights made positive, batch norm left out: the flow through all paths.
Reported as a logarithm, since it grows with the power of the depth.
"""

from __future__ import annotations

import math

from hwnas.evaluation.passes import Passes


def proxy(passes: Passes) -> float:
    total = sum(float((weight * gradient).abs().sum()) for weight, gradient in passes.synaptic_flow)
    return math.log(max(total, 1e-300))
