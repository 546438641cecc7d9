"""What every file in hwnas/ops must keep. A new op is tested by existing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from cases import INPUTS, op_variants

from hwnas.errors import UserError
from hwnas.ir.arch import Arch, Node
from hwnas.ir.op import Op, PlacedOp
from hwnas.ir.tensor import TensorSpec
from hwnas.ir.text import print_arch
from hwnas.latency.device import Device
from hwnas.latency.session import Session
from hwnas.lower.cost import op_macs_params
from hwnas.lower.onnx import to_onnx
from hwnas.lower.torch import Mode, run_graph, to_torch
from hwnas.ops import op_class, read_arch
from hwnas.plugins import known

NAMES = known("hwnas.ops")


def placements(name: str) -> list[PlacedOp]:
    """Every variant of the op on every input that it takes."""
    found = []
    for op in op_variants(name):
        for inputs in INPUTS:
            placed = PlacedOp(op, inputs)
            try:
                _ = placed.graph
            except (UserError, ValueError):  # ValueError: another number of inputs
                continue
            found.append(placed)
    return found


@pytest.fixture(params=NAMES)
def placed_list(request: pytest.FixtureRequest) -> list[PlacedOp]:
    found = placements(request.param)
    assert found, f"{request.param} takes none of the inputs in cases.py"
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_file_name_is_the_ops_name(name):
    cls = op_class(name)
    assert issubclass(cls, Op)
    assert cls.name() == name
    assert dataclasses.is_dataclass(cls)
    op = op_variants(name)[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        op.out = 3
    assert hash(op) == hash(op_variants(name)[0])


def one_node(placed: PlacedOp) -> Arch:
    """The op alone; where it takes several inputs, made of one by ops that do not change the others."""
    return Arch(placed.inputs[0], (Node("op", placed.op, ("x",) * len(placed.inputs)),), "op")


def test_text_round_trip(placed_list):
    for placed in placed_list:
        if len(set(placed.inputs)) == 1:
            arch = one_node(placed)
            assert read_arch(print_arch(arch)) == arch


def test_every_value_has_the_shape_that_torch_computes(placed_list):
    for placed in placed_list:
        graph = placed.graph
        generator = torch.Generator().manual_seed(0)
        weights = {n: torch.rand(w.shape, generator=generator) + 0.5 for n, w in graph.weights()}
        assert len(weights) == len(list(graph.weights()))  # names are distinct
        xs = [torch.randn(2, *spec.dims, generator=generator) for spec in placed.inputs]
        for output, spec in enumerate(graph.specs):
            value = run_graph(dataclasses.replace(graph, output=output), xs, weights.__getitem__, Mode(training=False))
            assert tuple(value.shape) == (2, *spec.dims)
            assert value.dtype == torch.float32
        assert placed.output == graph.specs[graph.output]
        assert op_macs_params(placed)[1] == sum(w.numel() for n, w in weights.items() if "running" not in n)


def test_onnx_runtime_agrees_with_torch(placed_list, random_weights):
    for seed, placed in enumerate(placed_list):
        if len(set(placed.inputs)) != 1:
            continue
        arch = one_node(placed)
        weights = random_weights(arch, seed)
        x = np.random.default_rng(seed).standard_normal((3, *arch.input.dims)).astype(np.float32)
        with torch.no_grad():
            expected = to_torch(arch, weights).eval()(torch.from_numpy(x)).numpy()
        found = Session(to_onnx(arch, weights).SerializeToString(), Device(name="here")).predict(x)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_gradients_reach_every_parameter(placed_list):
    for placed in placed_list:
        graph = placed.graph
        # In double precision and with inputs far from the kinks of the activations.
        weights = {n: (torch.rand(w.shape, dtype=torch.float64) + 0.5).requires_grad_(not w.buffer) for n, w in graph.weights()}
        xs = [torch.rand(2, *spec.dims, dtype=torch.float64) + 0.1 for spec in placed.inputs]
        trained = {n: w for n, w in weights.items() if w.requires_grad}
        if not trained:
            continue
        y = run_graph(graph, xs, weights.__getitem__, Mode(training=False))
        grads = torch.autograd.grad((y**2).sum(), list(trained.values()), allow_unused=True)
        assert all(g is not None for g in grads)


def test_ops_refuse_inputs_of_another_rank(placed_list):
    op = placed_list[0].op
    if all(len(p.inputs[0].dims) == 3 for p in placed_list):
        with pytest.raises(UserError):
            _ = PlacedOp(op, (TensorSpec((2, 3, 4, 5)),) * len(placed_list[0].inputs)).graph
