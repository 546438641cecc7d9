"""Many networks over shared weights as one native program (float32, CPU): recalibrated and evaluated without PyTorch's ops.

A program is made of primitives with their weights, in which networks may share whatever they have in common; `outputs` are
the values that hold each network's logits. Its definition is the primitives' PyTorch lowering, one after another; here batch
norm, activations, sums and gates become part of the convolutions around them.

    program = CandidateProgram(spec, nodes, outputs)
    program.calibrate(batches)       # statistics of every batch norm, as `recalibrate` of a single network finds them
    logits = program.run(images)     # [outputs, n, classes]

`run` takes a few images at a time through the whole program, so that activations stay in the cache: its memory hardly depends
on the number of images or networks. `calibrate` takes a batch through node after node, depth first in the order of `outputs`
(put networks that share much next to each other): its memory is what is live at once, times the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hwnas import _native
from hwnas.errors import UserError
from hwnas.ir import prims
from hwnas.ir.tensor import TensorSpec
from hwnas.kernels.candidate_plan import Placed, Plan, in_memory, is_depthwise, is_winograd, plan
from hwnas.kernels.candidate_steps import NONE, padded
from hwnas.kernels.memory import uninitialised_bytes


class Node(NamedTuple):
    """A primitive, the values it takes (0 is the images, i + 1 the result of node i), and its weights by the primitive's own
    names (`weight`, `bias`, `running_mean`, `running_var`). Equal views of one tensor are packed once."""

    prim: prims.Prim
    inputs: tuple[int, ...]
    weights: Mapping[str, Tensor] = {}


class CandidateProgram:
    """Nodes come after their inputs. Raises UserError for what has no step: outputs that are images, and batch norm of a
    flattened image. Weights and statistics are copied when the program is made."""

    def __init__(self, spec: TensorSpec, nodes: Sequence[Node], outputs: Sequence[int]) -> None:
        if len(spec.dims) != 3:
            raise UserError("a candidate program takes (channels, height, width) images", got=str(spec))
        self._spec, self._outputs = spec, tuple(outputs)
        specs = in_memory(spec, [(n.prim, n.inputs) for n in nodes])
        shapes = {specs[i].dims for i in self._outputs}
        if len(shapes) != 1 or next(iter(shapes))[1:] != (1, 1):
            raise UserError("a candidate program has outputs of one shape, a number for each class", got=sorted(shapes))
        self._classes = next(iter(shapes))[0]
        weights, self._norms = _Weights(), _Norms()
        placed = []
        for index, node in enumerate(nodes):
            x = specs[node.inputs[0]]
            if isinstance(node.prim, prims.BatchNorm):
                placed.append(Placed(node.prim, node.inputs, affine=self._norms.add(index, node.prim, node.weights, x.dims[0])))
            else:
                placed.append(Placed(node.prim, node.inputs, *weights.add(node.prim, node.weights, x)))
        self._norms.finish()
        self._weights = weights.tensor()
        self._run_plan = plan(spec, placed, self._outputs, constant=True)
        self._calibration_plan = plan(spec, placed, self._outputs, constant=False)

    @property
    def weight_bytes(self) -> int:
        """Of the packed weights."""
        return 4 * self._weights.numel()

    def calibration_bytes(self, batch: int) -> int:
        """Memory that `calibrate` takes for the activations of a batch."""
        return _bytes(self._calibration_plan, batch)

    def run_bytes(self) -> int:
        """Memory that `run` takes for activations, however many images."""
        return _bytes(self._run_plan, 0)

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Every batch norm's mean and variance become the mean over the batches ([n, c, h, w]) of what each batch has, which
        is itself normalised by its own; variances are the unbiased ones, as PyTorch keeps them."""
        norms, p, threads = self._norms, self._calibration_plan, torch.get_num_threads()
        statistics, affine = torch.zeros(2, norms.channels, dtype=torch.float64), torch.zeros(2, norms.channels)
        count, size = 0, -1
        memory: list[Tensor] = []
        for batch in batches:
            images = self._images(batch)
            if not len(images):
                raise UserError("batch norm has no statistics of an empty batch", got=list(batch.shape))
            if len(images) != size:
                memory = []  # before more is taken
                memory, size = _memory(p, len(images), threads), len(images)
            _native.candidate_program.calibrate(
                *self._tables(p, affine), norms.weight_bias.data_ptr(), norms.eps.data_ptr(), statistics.data_ptr(),
                images.data_ptr(), len(images), [m.data_ptr() for m in memory], threads,
            )  # fmt: skip
            count += 1
        if not count:
            raise UserError("calibration needs at least one batch", got=0)
        norms.set(statistics / count)

    def statistics(self, node: int) -> tuple[Tensor, Tensor]:
        """Mean and variance that the batch norm at this node uses, in float64."""
        at, channels = self._norms.places[node]
        mean, variance = self._norms.statistics[:, at : at + channels]
        return mean, variance

    def run(self, images: Tensor, wanted: Sequence[int] | None = None) -> Tensor:
        """images [n, c, h, w] -> logits [outputs, n, classes]; of `wanted` outputs alone, in their order, if given."""
        images = self._images(images)
        p, threads = self._run_plan, torch.get_num_threads()
        which = range(len(self._outputs)) if wanted is None else wanted
        logits, marks = torch.empty(len(self._outputs), len(images), self._classes), p.wanted(which)
        memory = _memory(p, 0, threads)
        _native.candidate_program.run(
            *self._tables(p, self._norms.affine), marks.ctypes.data, images.data_ptr(), len(images), logits.data_ptr(),
            [m.data_ptr() for m in memory], threads,
        )  # fmt: skip
        return logits if wanted is None else logits[list(wanted)]

    def _tables(self, p: Plan, affine: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        tables = [table.ctypes.data for table in (p.steps, p.phases, p.reads, p.buffers)]
        sizes = len(p.phases), self._norms.channels, p.local_floats, p.scratch_floats
        return (*tables, self._weights.data_ptr(), affine.data_ptr()), sizes

    def _images(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or tuple(images.shape[1:]) != self._spec.dims or images.dtype != torch.float32 or images.is_cuda:
            raise UserError(
                f"the program takes float32 images [n, {', '.join(map(str, self._spec.dims))}] on the CPU",
                got=f"{images.dtype} {list(images.shape)} on {images.device}",
            )
        return images.detach().permute(0, 2, 3, 1).contiguous()


class _Packed(NamedTuple):
    """A weight [o, c / groups, h, w] on its way to [o / 16][h * w * c][16], with zeros where a group does not look; for
    Winograd's convolution 4 x 4 numbers of each 3 x 3."""

    at: int
    weight: Tensor
    groups: int = 1
    winograd: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        o, c, h, w = self.weight.shape
        return o, c * self.groups, h, w

    @property
    def size(self) -> int:
        o, c, h, w = self.shape
        return padded(o) * c * (16 if self.winograd else h * w)

    def write(self, to: Tensor) -> None:
        weight, place = self.weight, to.data_ptr() + 4 * self.at
        _native.candidate_program.pack(weight.data_ptr(), self.shape, self.groups, weight.stride(), self.winograd, place)


def _vector(weight: Tensor) -> Tensor:
    return weight[:, None, None, None]


def _on_host(weight: Tensor) -> Tensor:
    return weight.detach().float().cpu()


class _Weights:
    """Packed weights, each once however many nodes use it, in one block of memory."""

    def __init__(self) -> None:
        self._parts: list[_Packed] = []
        self._known: dict[tuple[object, ...], int] = {}
        self._size = 0

    def add(self, prim: prims.Prim, weights: Mapping[str, Tensor], x: TensorSpec) -> tuple[int, int]:
        """Where a prim's weight and bias stand."""
        bias = self._once(weights["bias"], _vector) if "bias" in weights else NONE
        match prim:
            case prims.Conv() if is_winograd(prim, x):
                return self._once(weights["weight"], Tensor.detach, winograd=True), bias
            case prims.Conv():  # a kernel for each channel is packed as a convolution of one channel
                return self._once(weights["weight"], Tensor.detach, 1 if is_depthwise(prim, x.channels) else prim.groups), bias
            case prims.Linear():
                return self._once(weights["weight"], lambda w: w.unflatten(1, x.dims), how=x.dims), bias  # type: ignore[no-untyped-call]
            case prims.Shift():
                return self._append(torch.ones(x.channels, 1, 1, 1), 1), bias
            case _:
                return NONE, NONE

    def tensor(self) -> Tensor:
        packed = torch.empty(self._size)
        for part in self._parts:
            part.write(packed)
        return packed

    def _once(
        self, weight: Tensor, view: Callable[[Tensor], Tensor], groups: int = 1, how: Hashable = None, winograd: bool = False
    ) -> int:
        key = weight.data_ptr(), weight.shape, weight.stride(), groups, how, winograd
        if key not in self._known:
            self._known[key] = self._append(view(_on_host(weight)), groups, winograd)
        return self._known[key]

    def _append(self, weight: Tensor, groups: int, winograd: bool = False) -> int:
        part = _Packed(self._size, weight, groups, winograd)
        self._parts.append(part)
        self._size += part.size
        return part.at


class _Norms:
    """What belongs to batch norms, channel by channel of all of them."""

    def __init__(self) -> None:
        self.places: dict[int, tuple[int, int]] = {}  # node -> first channel, channels
        self.channels = 0
        self._nodes: list[tuple[int, int, float, Mapping[str, Tensor]]] = []

    def add(self, node: int, prim: prims.BatchNorm, weights: Mapping[str, Tensor], channels: int) -> int:
        at = self.channels
        self.places[node] = at, channels
        self.channels += padded(channels)
        self._nodes.append((at, self.channels, prim.eps, weights))
        return at

    def finish(self) -> None:
        weight, bias, mean, variance, self.eps = columns = torch.zeros(5, self.channels)
        names = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
        weight.fill_(1.0)
        variance.fill_(1.0)
        for at, end, eps, weights in self._nodes:
            self.eps.numpy()[at:end] = eps
            for name, column in names.items():
                if name in weights:
                    _Packed(at, _vector(_on_host(weights[name]))).write(column)
        self.weight_bias = columns[:2]
        self.set(columns[2:4].double())

    def set(self, statistics: Tensor) -> None:
        """[mean, variance][channels] in float64, and the scales and shifts that follow from them."""
        self.statistics = statistics
        scale = self.weight_bias[0] / (statistics[1] + self.eps).sqrt()
        self.affine = torch.stack([scale, self.weight_bias[1] - statistics[0] * scale]).float()


def _bytes(p: Plan, batch: int) -> int:
    return 4 * (batch * p.batch_floats + torch.get_num_threads() * (p.local_floats + p.scratch_floats))


def _memory(p: Plan, batch: int, threads: int) -> list[Tensor]:
    """For the batch, and for the threads."""
    floats = batch * p.batch_floats, threads * p.local_floats, threads * p.scratch_floats
    return [uninitialised_bytes(4 * count, torch.device("cpu")) for count in floats]
