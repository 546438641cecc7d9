"""The closed set of primitives. Each is data: its attributes, the shape of its output and the weights it owns.

Shapes leave the batch out; images are (channels, height, width). A prim raises ShapeError when its input does not fit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hwnas.errors import UserError
from hwnas.ir.tensor import TensorSpec

ActivationKind = Literal["relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu", "elu", "leaky_relu"]
ACTIVATIONS: tuple[ActivationKind, ...] = (
    "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu", "elu", "leaky_relu",
)  # fmt: skip


class ShapeError(UserError):
    """A prim does not fit its input."""


@dataclass(frozen=True)
class WeightSpec:
    """A weight of a prim. `fan_in` is the number of inputs of one output, for initialisation; buffers are not parameters."""

    name: str
    shape: tuple[int, ...]
    init: Literal["kaiming", "zeros", "ones"]
    fan_in: int = 1
    buffer: bool = False


@dataclass(frozen=True)
class Prim(ABC):
    """A primitive operation."""

    @abstractmethod
    def output(self, xs: Sequence[TensorSpec]) -> TensorSpec:
        """The output's spec for inputs of these specs."""

    def weights(self, xs: Sequence[TensorSpec]) -> tuple[WeightSpec, ...]:
        """The weights it owns, for inputs of these specs."""
        return ()


def _image(prim: Prim, xs: Sequence[TensorSpec]) -> TensorSpec:
    if len(xs) != 1 or len(xs[0].dims) != 3:
        raise ShapeError(f"{type(prim).__name__} takes one (channels, height, width) input", got=[str(x) for x in xs])
    return xs[0]


def _one(prim: Prim, xs: Sequence[TensorSpec]) -> TensorSpec:
    if len(xs) != 1:
        raise ShapeError(f"{type(prim).__name__} takes one input", got=[str(x) for x in xs])
    return xs[0]


def _at_least(prim: Prim, **least: int) -> None:
    """UserError unless these fields are whole numbers of at least these values."""
    for field, bound in least.items():
        value = getattr(prim, field)
        if type(value) is not int or value < bound:
            raise UserError(f"{field} of {type(prim).__name__} is a whole number of at least {bound}", got=value)


def _same(prim: Prim, xs: Sequence[TensorSpec]) -> TensorSpec:
    if not xs or any(x != xs[0] for x in xs):
        raise ShapeError(f"{type(prim).__name__} takes inputs of one shape", got=[str(x) for x in xs])
    return xs[0]


def _window(prim: Prim, x: TensorSpec, kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int]:
    """Height and width after sliding a window: floor((n + 2 p - d (k - 1) - 1) / s) + 1."""
    height, width = ((n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in x.dims[1:])
    if height < 1 or width < 1:
        raise ShapeError(f"{type(prim).__name__} of kernel {kernel} needs a larger input", got=str(x))
    return height, width


@dataclass(frozen=True)
class Conv(Prim):
    """2-D cross-correlation; weight [out, in / groups, kernel, kernel]."""

    out: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False

    def __post_init__(self) -> None:
        _at_least(self, out=1, kernel=1, stride=1, padding=0, dilation=1, groups=1)

    def output(self, xs: Sequence[TensorSpec]) -> TensorSpec:
        x = _image(self, xs)
        if x.channels % self.groups or self.out % self.groups:
            raise ShapeError(f"Conv needs channels divisible by its {self.groups} groups", got=f"{x.channels} -> {self.out}")
        return TensorSpec((self.out, *_window(self, x, self.kernel, self.stride, self.padding, self.dilation)), x.dtype)

    def weights(self, xs: Sequence[TensorSpec]) -> tuple[WeightSpec, ...]:
        ins = xs[0].channels // self.groups
        weight = WeightSpec("weight", (self.out, ins, self.kernel, self.kernel), "kaiming", ins * self.kernel**2)
        return (weight, WeightSpec("bias", (self.out,), "zeros")) if self.bias else (weight,)


@dataclass(frozen=True)
class BatchNorm(Prim):
    """Per channel (x - mean) / sqrt(var + eps), then scale and shift if affine."""

    affine: bool = True
    eps: float = 1e-5

    def output(self, xs: Sequence[TensorSpec]) -> TensorSpec:
        return _one(self, xs)

    def weights(self, xs: Sequence[TensorSpec]) -> tuple[WeightSpec, ...]:
        shape = (xs[0].channels,)
        affine = (WeightSpec("weight", shape, "ones"), WeightSpec("bias", shape, "zeros")) if self.affine else ()
        mean = WeightSpec("running_mean", shape, "zeros", buffer=True)
        return (*affine, mean, WeightSpec("running_var", shape, "ones", buffer=True))


@dataclass(frozen=True)
class Activation(Prim):
    """A function of each element."""

    kind: ActivationKind = "relu"

    def __post_init__(self) -> None:
        if self.kind not in ACTIVATIONS:
            raise UserError("unknown activation", got=self.kind, remedy=f"known: {', '.join(ACTIVATIONS)}")

    def output(self, xs: Sequence[TensorSpec]) -> TensorSpec:
        return _one(self, xs)


@dataclass(frozen=True)
class Pool(Prim):
    """Windowed maximum or average; padding counts neither as a maximum nor in an average."""

    kind: Literal["max", "avg"]
    kernel: int
    stride: int = 1
    padding: int = 0

    def __post_init__(self) -> None:
        _at_least(self, kernel=1, stride=1, padding=0)
        if self.kind not in ("max", "avg"):
            raise UserError("a pool is max or avg", got=self.kind)

    def output(self, xs: Sequence[TensorSpec]) -> TensorSpec:
        x = _image(self, xs)
        return TensorSpec((x.channels, *_window(self, x, self.kernel, self.stride, self.padding, 1)), x.dtype)


@dataclass(frozen=True)
class GlobalPool(Prim):
    """Average over height and width, which stay as dims of 1."""

    def output(self, xs: Sequence[TensorSpec]) -> TensorSpec:
        x = _image(self, xs)
        return TensorSpec((x.channels, 1, 1), x.dtype)


@dataclass(frozen=True)
class Flatten(Prim):
    """All dims into one."""

    def output(self, xs: Sequence[TensorSpec]) -> TensorSpec:
        x = _one(self, xs)
        return TensorSpec((x.elements,), x.dtype)


@dataclass(frozen=True)
class Linear(Prim):
    """x W^T + b; weight [out, in]."""

    out: int
    bias: bool = True

    def __post_init__(self) -> None:
        _at_least(self, out=1)

    def output(self, xs: Sequence[TensorSpec]) -> TensorSpec:
        if len(xs) != 1 or len(xs[0].dims) != 1:
            raise ShapeError("Linear takes one vector", got=[str(x) for x in xs], remedy="flatten it first")
        return TensorSpec((self.out,), xs[0].dtype)

    def weights(self, xs: Sequence[TensorSpec]) -> tuple[WeightSpec, ...]:
        weight = WeightSpec("weight", (self.out, xs[0].dims[0]), "kaiming", xs[0].dims[0])
        return (weight, WeightSpec("bias", (self.out,), "zeros")) if self.bias else (weight,)


@dataclass(frozen=True)
class Add(Prim):
    """The sum of one or more inputs of one shape."""

    def output(self, xs: Sequence[TensorSpec]) -> TensorSpec:
        return _same(self, xs)


@dataclass(frozen=True)
class Scale(Prim):
    """The first input, [c, h, w], times the second, [c, 1, 1]: the gate of a squeeze-and-excite block."""

    def output(self, xs: Sequence[TensorSpec]) -> TensorSpec:
        if len(xs) != 2 or xs[1].dims != (xs[0].channels, 1, 1):
            raise ShapeError("Scale takes [c,h,w] and [c,1,1]", got=[str(x) for x in xs])
        return xs[0]


@dataclass(frozen=True)
class Concat(Prim):
    """Inputs one after another along the channels."""

    def output(self, xs: Sequence[TensorSpec]) -> TensorSpec:
        if not xs or any(x.dims[1:] != xs[0].dims[1:] for x in xs):
            raise ShapeError("Concat takes inputs that differ in channels only", got=[str(x) for x in xs])
        return TensorSpec((sum(x.channels for x in xs), *xs[0].dims[1:]), xs[0].dtype)


@dataclass(frozen=True)
class Shift(Prim):
    """y[i, j] = x[i + 1, j + 1], zero beyond the border: the odd pixels of a factorized reduction."""

    def output(self, xs: Sequence[TensorSpec]) -> TensorSpec:
        return _image(self, xs)


@dataclass(frozen=True)
class Zero(Prim):
    """Zeros in the shape of every stride-th pixel."""

    stride: int = 1

    def __post_init__(self) -> None:
        _at_least(self, stride=1)

    def output(self, xs: Sequence[TensorSpec]) -> TensorSpec:
        x = _image(self, xs)
        return TensorSpec((x.channels, *_window(self, x, 1, self.stride, 0, 1)), x.dtype)
