"""TensorSpec: dims and dtype of one activation, batch left out."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from hwnas.errors import UserError

_BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class TensorSpec:
    """`dims` are (channels, height, width) of an image or (features,) of a vector."""

    dims: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.dims or any(type(d) is not int or d < 1 for d in self.dims):
            raise UserError("a tensor needs one or more dims of at least 1", got=self.dims)
        if self.dtype not in _BYTES:
            raise UserError("unknown dtype", got=self.dtype, remedy=f"known: {', '.join(_BYTES)}")

    @property
    def elements(self) -> int:
        return prod(self.dims)

    @property
    def bytes(self) -> int:
        return self.elements * _BYTES[self.dtype]

    @property
    def channels(self) -> int:
        return self.dims[0]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"
