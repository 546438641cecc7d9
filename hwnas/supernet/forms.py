"""forms: the rows of a GPU's tasks as far as tasks are alike: the same prim on the same specs with the same weights.

Most tasks of most candidates have a form that is known already, so a row is copied instead of made.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hwnas.ir import prims
from hwnas.ir.prims import Prim
from hwnas.ir.tensor import TensorSpec
from hwnas.kernels import merged_program as kernel
from hwnas.kernels.merged_program import ACTIVATIONS, KINDS, PACK, PROBLEM, Tiling, Window
from hwnas.supernet.execute import Weights
from hwnas.supernet.gather import Task
from hwnas.supernet.merge import Program, Weight
from hwnas.supernet.problems import Problem, is_dense, problem_of

_BESIDE = np.dtype(
    [(name, "i8") for name in ("shape", "places", "at_once", "parts", "normed", "before", "gamma", "beta")] + [("eps", "f8")]
)
_OWN = (
    "kind", *Window._fields, *Tiling._fields, "terms", "after", "last", "bias", "normed", "before", "gamma", "beta", "eps",
    "weight",
)  # fmt: skip


class Forms:
    """Of weights on a device. Each is looked up once; those of dense convolutions are packed, which takes as much again.

    rows: of each form a PROBLEM without the addresses and sizes of values; beside: what is no part of it.
    """

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self.device = device
        self.rows, self.beside = np.zeros(0, PROBLEM), np.zeros(0, _BESIDE)
        self._weights = weights
        self._known: dict[tuple[object, ...], int] = {}
        self._new: list[tuple[Task, TensorSpec]] = []
        self._tensors: dict[Weight, Tensor] = {}
        self._packed: dict[Weight, Tensor] = {}
        self._unpacked: list[tuple[int, ...]] = []
        self._kept: list[object] = []  # what is known by its place in memory, which nothing else may take
        self._problems: dict[tuple[int, ...], Problem | None] = {}

    def covers(self, program: Program) -> bool:
        """Whether the kernels know every prim, and no candidate's logits are the images."""
        specs = [program.input, *(value.spec for value in program.values)]
        for value in program.values:
            if self._problem(value.prim, len(value.inputs), specs[value.inputs[0]], value.spec) is None:
                return False
        return all(program.outputs)

    def _problem(self, prim: Prim, terms: int, x: TensorSpec, y: TensorSpec) -> Problem | None:
        key = id(prim), terms, id(x), id(y)
        if key not in self._problems:
            self._problems[key] = problem_of(prim, terms, x, y)
            self._kept.append((prim, x, y))
        return self._problems[key]

    def __call__(self, task: Task, x: TensorSpec) -> int:
        """The number of its form, whose first input has spec x; `settle` puts it into the tables."""
        norm = task.norm
        key = (
            id(task.prim), id(x), id(task.spec), id(task.weight), len(task.inputs), task.before, task.after, task.last,
            norm and norm.eps, norm and id(norm.scale),
        )  # fmt: skip
        number = self._known.get(key)
        if number is None:
            number = self._known[key] = len(self._known)
            self._new.append((task, x))
        return number

    def settle(self) -> None:
        """Makes the rows of forms that are new, and packs their weights."""
        if not self._new:
            return
        made = [self._columns(task, x) for task, x in self._new]
        rows, beside = np.zeros(len(made), PROBLEM), np.zeros(len(made), _BESIDE)
        for name, column in zip(_OWN, zip(*made, strict=True), strict=True):
            if name == "weight":
                address, *strides = np.array(column, np.int64).T
                rows["weight"], rows["weight_stride"] = address, np.stack(strides, 1)
                continue
            for table in (rows, beside):
                if name in (table.dtype.names or ()):
                    table[name] = column
        self.rows, self.beside = np.concatenate([self.rows, rows]), np.concatenate([self.beside, beside])
        self._kept += self._new
        self._new = []
        self._pack()

    def _columns(self, task: Task, x: TensorSpec) -> tuple[object, ...]:
        """What _OWN says."""
        problem = self._problem(task.prim, 1 if is_dense(task.prim) else len(task.inputs), x, task.spec)
        assert problem is not None
        dense, norm = problem.kind == "dense", task.norm
        weight: tuple[int, ...] = (0,) * 5
        if task.weight is not None:
            weight = self._packing(task.weight) if dense else self._view(task.weight)
        return (
            KINDS[problem.kind], *problem.window, *problem.tiling,
            0 if type(task.prim) is prims.Zero else len(task.inputs), ACTIVATIONS[task.after], ACTIVATIONS[task.last],
            self._address(task.bias), norm is not None, ACTIVATIONS[task.before],
            self._address(norm and norm.scale), self._address(norm and norm.shift), norm.eps if norm else 0.0, weight,
        )  # fmt: skip

    def _view(self, weight: Weight) -> tuple[int, ...]:
        """Address and strides."""
        tensor = self._tensors.get(weight)
        if tensor is None:
            tensor = self._tensors[weight] = self._weights(weight)
        return tensor.data_ptr(), *(*tensor.stride(), 0, 0, 0)[:4]

    def _address(self, weight: Weight | None) -> int:
        return self._view(weight)[0] if weight else 0

    def _packing(self, weight: Weight) -> tuple[int, ...]:
        """The address alone; what lies there is known once `_pack` has run."""
        if weight not in self._packed:
            o, c, *kernels = weight.shape
            kernel_h, kernel_w = kernels or (1, 1)
            tensor = torch.empty(kernel.packed_floats(o, c, kernel_h * kernel_w), device=self.device)
            self._packed[weight] = tensor
            address, *strides = self._view(weight)
            self._unpacked.append((address, tensor.data_ptr(), *strides, o, c, kernel_h, kernel_w))
        return self._packed[weight].data_ptr(), 0, 0, 0, 0

    def _pack(self) -> None:
        if self._unpacked:
            table = np.zeros(len(self._unpacked), PACK)
            columns = np.array(self._unpacked, np.int64).T
            table["weight"], table["packed"], table["weight_stride"] = columns[0], columns[1], columns[2:6].T
            for name, column in zip(("o", "c", "kernel_h", "kernel_w"), columns[6:], strict=True):
                table[name] = column
            self._unpacked = []
            kernel.run(kernel.prepare([(table, np.full(len(table), kernel.PACKS))], self.device))
