"""Arguments that make a space small or an op concrete. A plug-in that is not listed gets them by parameter name."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from hwnas.ir.op import Op
from hwnas.ir.tensor import TensorSpec
from hwnas.ops import op_class
from hwnas.plugins import load
from hwnas.space import Space

# Of each space: argument sets under which its contracts are checked. Together they should reach every op of the space.
SPACES: dict[str, list[dict[str, Any]]] = {
    "mobilenet": [
        {
            "input": (3, 16, 16),
            "classes": 5,
            "width": 0.25,
            "se": True,
            "act": "hardswish",
            "head": 24,
            "stages": ((24, 3, 2), (32, 2, 2)),
            "kernels": (3, 5),
            "expansions": (1, 3),
            "depths": (1, 2, 3),
        },
        {"input": (1, 9, 7), "classes": 3, "stages": ((8, 2, 1),), "head": 0, "depths": (1, 2), "widths": (0.5, 1.0, 2.0)},
    ],
    "nasbench201": [
        {"input": (3, 12, 12), "classes": 5, "channels": 4, "cells": 1},
        {"input": (2, 7, 9), "classes": 3, "channels": 2, "cells": 2},
    ],
    "darts": [
        {"input": (3, 12, 12), "classes": 5, "channels": 4, "cells": 3, "affine": True},
        {"input": (1, 9, 9), "classes": 3, "channels": 2, "cells": 2},
    ],
    "chain": [
        {"input": (1, 12, 12), "classes": 5, "layers": 3, "widths": (4, 6)},
        {"input": (3, 4, 4), "classes": 3, "kind": "dense", "layers": 3, "widths": (5, 8)},
        {"input": (6,), "classes": 2, "kind": "dense", "layers": 1, "widths": (4, 5), "activations": ("gelu",)},
    ],
}

# What a parameter is set to where its space or op is not listed.
BY_NAME: dict[str, Any] = {
    "input": (3, 16, 16),
    "classes": 5,
    "channels": 4,
    "cells": 2,
    "layers": 2,
    "out": 6,
    "kernel": 3,
    "kind": "max",
    "stride": 1,
    "expand": 2,
    "act": "relu",
    "groups": 1,
}

# What the fields of an op are varied over, by their names.
FIELD_VALUES: dict[str, tuple[Any, ...]] = {
    "out": (2, 4, 7),
    "kernel": (1, 3, 5),
    "stride": (1, 2),
    "act": ("relu", "hardswish", "gelu", "silu", "none"),
    "se": (False, True),
    "affine": (False, True),
    "kind": ("max", "avg"),
    "classes": (1, 5),
    "expand": (1, 3),
}

INPUTS = (
    (TensorSpec((4, 9, 6)),),
    (TensorSpec((5, 4, 4)),),
    (TensorSpec((7,)),),
    (TensorSpec((4, 5, 8)), TensorSpec((4, 5, 8))),
    (TensorSpec((2, 3, 3)), TensorSpec((5, 3, 3))),
)


def space_arguments(name: str) -> list[dict[str, Any]]:
    if name in SPACES:
        return SPACES[name]
    parameters = inspect.signature(load("hwnas.spaces", name, "space").space).parameters
    return [{p: BY_NAME[p] for p in parameters if p in BY_NAME}]


def build_space(name: str, arguments: dict[str, Any]) -> Space:
    space = load("hwnas.spaces", name, "space").space(**arguments)
    assert isinstance(space, Space)
    return space


def op_variants(name: str) -> list[Op]:
    """The op with every single field varied, from a base that its defaults and BY_NAME give."""
    cls = op_class(name)
    base = {f.name: BY_NAME[f.name] for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    found = [cls(**base)]
    for field in dataclasses.fields(cls):
        for value in FIELD_VALUES.get(field.name, ()):
            arguments = {**base, field.name: value}
            if cls(**arguments) not in found:
                found.append(cls(**arguments))
    return found
