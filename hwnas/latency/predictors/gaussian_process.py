"""The calibrated latency table, corrected by a Gaussian process that whole networks inform.

    ms = calibrated table (1 + what follows, each a Gaussian process with a prior around zero)
       + sum over ops of price * d(op)                  alike for ops that are alike
       + sum over kernels saved of pass * e(kernel)     what the runtime fuses or shares across ops
       + weight bytes * h(weight bytes)                 weights that no longer fit into a cache

A sum of Gaussian processes is one (Duvenaud, Nickisch and Rasmussen 2011), so networks price ops, fusions and caches at once.
With few networks this is the calibrated table; with many it learns what isolated ops hid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.ir.arch import Arch
from hwnas.ir.tensor import TensorSpec
from hwnas.latency.additive import Calibration, PriceList, table_of
from hwnas.latency.predictor import LatencyTable
from hwnas.lower.features import describe_op, features, saved_kernels
from hwnas.lower.fusion import Kernel
from hwnas.regress.gaussian_process import fit_kernels, squared_exponential, standardised

Array = NDArray[np.float64]

OP_LENGTHS = (0.5, 2.0)  # of alikeness, in standard deviations of the descriptors of ops
CACHE_LENGTHS = (0.7, 2.0)  # in octaves of weight bytes
CACHE_OCTAVES = np.linspace(6.0, 32.0, 105)  # where h is kept; between them it is interpolated
LAUNCH_MS, ELEMENT_MS = 1e-3, 1e-7  # the scale of a pass over a tensor


class Model(PriceList):
    """`kernels`: ms of each kernel that fusion saves or adds. `cache`: ms per weight byte at CACHE_OCTAVES."""

    kernels: dict[Kernel, float]
    kinds: dict[str, float]
    cache: Array

    @classmethod
    def fit(cls, table: LatencyTable, archs: Sequence[Arch], latency_ms: Array) -> Model:
        calibration = Calibration(table_of(table), archs, latency_ms)
        ops, found = list(table.ops), [features(arch) for arch in archs]
        prices = np.array([calibration.price(op, table.ops[op]) for op in ops])
        saved = [saved_kernels(arch) for arch in archs]
        kernels = sorted({kernel for counts in saved for kernel in counts}, key=str)
        passes = np.array([_pass_ms(kernel) for kernel in kernels])
        weights = np.array([f.weight_bytes for f in found], np.float64)
        octaves = np.log2(1 + weights)[:, None]

        # Everything in shares of the measured latency: the error that is asked for is relative.
        op_shares = _counts([f.ops for f in found], ops) * prices / latency_ms[:, None]
        kernel_shares = _counts(saved, kernels) * passes / latency_ms[:, None]
        weight_shares = (weights * ELEMENT_MS / latency_ms)[:, None]
        points = standardised(np.array([describe_op(op) for op in ops]))
        one_kind = np.array([[float(a.kind == b.kind) for b in kernels] for a in kernels]).reshape(len(kernels), len(kernels))
        between_ops = [*(squared_exponential(points, points, length) for length in OP_LENGTHS), np.eye(len(ops))]
        between_kernels = [one_kind, np.eye(len(kernels))]
        grams = [op_shares @ k @ op_shares.T for k in between_ops]
        grams += [kernel_shares @ k @ kernel_shares.T for k in between_kernels]
        grams += [weight_shares @ weight_shares.T * squared_exponential(octaves, octaves, length) for length in CACHE_LENGTHS]
        start = [0.01, 0.01, 1e-3, 0.3, 0.1, 0.01, 0.01]
        fit = fit_kernels(grams, (latency_ms - calibration.fitted) / latency_ms, start, 1e-4)

        a, b, c = np.split(fit.amplitudes, [len(between_ops), len(between_ops) + len(between_kernels)])
        op_weights, kernel_weights = op_shares.T @ fit.weights, kernel_shares.T @ fit.weights
        corrections = prices * sum(x * k @ op_weights for x, k in zip(a, between_ops, strict=True))
        model = cls(calibration.fixed_ms, dict(zip(ops, (prices + corrections).tolist(), strict=True)))
        of_kind = b[0] * one_kind @ kernel_weights
        model.kernels = dict(zip(kernels, (passes * (of_kind + b[1] * kernel_weights)).tolist(), strict=True))
        model.kinds = {kernel.kind: float(share) for kernel, share in zip(kernels, of_kind, strict=True)}
        reached = [
            x * squared_exponential(CACHE_OCTAVES[:, None], octaves, length) for x, length in zip(c, CACHE_LENGTHS, strict=True)
        ]
        model.cache = ELEMENT_MS * sum(reached) @ (weight_shares[:, 0] * fit.weights)
        return model

    def estimate(self, archs: Sequence[Arch]) -> Array:
        fusion_ms = [self._fusion_ms(arch) for arch in archs]
        return np.asarray(super().estimate(archs) + np.array(fusion_ms, np.float64))

    def beside_ms(self, weight_bytes: Array) -> Array:
        """Weights that outgrow a cache."""
        return np.asarray(weight_bytes * np.interp(np.log2(1 + weight_bytes), CACHE_OCTAVES, self.cache))

    def _fusion_ms(self, arch: Arch) -> float:
        return sum(count * self._kernel_ms(kernel) for kernel, count in saved_kernels(arch).items())

    def _kernel_ms(self, kernel: Kernel) -> float:
        """Of a kernel that no network had, what its kind is worth."""
        return self.kernels.get(kernel, _pass_ms(kernel) * self.kinds.get(kernel.kind, 0.0))

    def to_json(self) -> dict[str, Any]:
        kernels = [[kernel.kind, list(kernel.output.dims), kernel.output.dtype, ms] for kernel, ms in self.kernels.items()]
        return {**super().to_json(), "kernels": kernels, "kinds": self.kinds, "cache": self.cache.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Model:
        model = super().from_json(values)
        assert isinstance(model, Model)
        model.kernels = {
            Kernel(str(kind), TensorSpec(tuple(dims), dtype)): float(ms) for kind, dims, dtype, ms in values["kernels"]
        }
        model.kinds = {str(kind): float(share) for kind, share in values["kinds"].items()}
        model.cache = np.array(values["cache"], np.float64)
        if model.cache.shape != CACHE_OCTAVES.shape:
            raise ValueError(f"the cache has {len(CACHE_OCTAVES)} points")
        return model


def _pass_ms(kernel: Kernel) -> float:
    return LAUNCH_MS + ELEMENT_MS * kernel.output.elements


def _counts(rows: Sequence[Mapping[Any, int]], columns: Sequence[Any]) -> Array:
    """[rows, columns]"""
    index = {column: i for i, column in enumerate(columns)}
    counts = np.zeros((len(rows), len(columns)))
    for row, found in enumerate(rows):
        for key, count in found.items():
            counts[row, index[key]] = count
    return counts
