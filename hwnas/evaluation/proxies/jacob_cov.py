"""Jacobian covariance (Mellor et al. 2020; Abdelfattah et al. 2021): how different the network's slopes at images are.

-sum_i (log(v_i + k) + 1 / (v_i + k)) over the eigenvalues v of the correlations between the images' Jacobians, k = 1e-5.
"""

from __future__ import annotations

import torch

from hwnas.evaluation.passes import Passes

_K = 1e-5


def proxy(passes: Passes) -> float:
    slopes = passes.jacobian.double()
    slopes = slopes - slopes.mean(1, keepdim=True)
    norms = slopes.norm(dim=1, keepdim=True)
    slopes = torch.where(norms > 0, slopes / norms.clamp_min(1e-300), 0.0)
    values = torch.linalg.eigvalsh(slopes @ slopes.T).clamp_min(0) + _K
    return -float((values.log() + 1 / values).sum())
