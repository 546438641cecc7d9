"""Gradient norm (Abdelfattah et al. 2021): the sum over layers of the Euclidean norm of the loss's gradient at a batch."""

from __future__ import annotations

from hwnas.evaluation.passes import Passes


def proxy(passes: Passes) -> float:
    return sum(float(g.double().norm()) for g in passes.gradients[0])
