"""Initial weights of an arch, as arrays by IR name: for training from scratch and for measuring untrained networks."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.ir.prims import WeightSpec

Weights = dict[str, NDArray[np.float32]]


def init_weights(arch: Arch, seed: int = 0) -> Weights:
    """Kaiming-normal weights (He et al. 2015), zero biases, unit batch norms. A weight depends on its name and seed only."""
    return {name: init_weight(name, spec, seed) for name, spec in arch.weights()}


def check_weights(arch: Arch, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """UserError unless there is a weight of the right shape for every one that the arch needs."""
    for name, spec in arch.weights():
        if name not in weights:
            raise UserError("the arch needs a weight that is missing", got=name)
        if tuple(weights[name].shape) != spec.shape:
            raise UserError(f"weight {name} has shape {spec.shape}", got=tuple(weights[name].shape))


def init_weight(name: str, spec: WeightSpec, seed: int) -> NDArray[np.float32]:
    if spec.init == "zeros":
        return np.zeros(spec.shape, np.float32)
    if spec.init == "ones":
        return np.ones(spec.shape, np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return rng.normal(0.0, (2.0 / spec.fan_in) ** 0.5, spec.shape).astype(np.float32)
