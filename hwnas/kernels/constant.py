"""Functions of sizes whose result `torch.compile` may take for a constant, because it cannot look into native code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def constant(function: F) -> F:
    """What torch.compiler.assume_constant_result does, without importing the compiler, which takes over a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
