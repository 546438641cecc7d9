"""placed_ops against enumeration: what a profile measures is what networks of the space need."""

from __future__ import annotations

from itertools import product

import pytest

from hwnas.ir.op import PlacedOp
from hwnas.ir.prims import Add
from hwnas.ir.simplify import placed_ops as needed_ops
from hwnas.placements import placed_ops, placements
from hwnas.space import Space
from hwnas.spaces import make_space


def enumerated(space: Space) -> tuple[set[PlacedOp], dict[str, set[PlacedOp]]]:
    """What the simplified archs of all genotypes hold, and what each node can be."""
    held: set[PlacedOp] = set()
    by_node: dict[str, set[PlacedOp]] = {}
    for genotype in product(*(range(len(c.options)) for c in space.choices)):
        arch = space.decode(genotype)
        held |= set(needed_ops(arch))
        for node in arch.nodes:
            by_node.setdefault(node.name, set()).add(arch.placed(node))
    return held, by_node


def is_sum(placed: PlacedOp) -> bool:
    return placed.graph.only is Add


@pytest.mark.parametrize(
    "text",
    [
        # Widths are tied over the layers of a stage, and the second stage meets both widths of the first.
        "mobilenet(input=(3, 12, 12), classes=3, stages=((16, 2, 2), (24, 2, 2)), kernels=(3, 5), expansions=(2,), "
        "depths=(1, 2), widths=(0.5, 1.0), head=0)",
        "mobilenet(input=(1, 6, 6), classes=2, stages=((8, 2, 1),), kernels=(3,), expansions=(1, 2), se=True, "
        "depths=(1, 2), widths=(1.0, 2.0), head=16)",
        "chain(input=(2, 8, 8), classes=2, layers=2, widths=(3, 4), activations=('relu',))",
        "chain(input=(5,), classes=2, kind='dense', layers=3, widths=(3, 4), activations=('relu', 'tanh'))",
    ],
)
def test_exactly_what_all_networks_need(text):
    space = make_space(text)
    held, by_node = enumerated(space)
    assert space.size <= 3000
    assert set(placed_ops(space)) == held
    assert {name: set(ops) for name, ops in placements(space).items()} == by_node


def test_a_cell_space_needs_sums_of_every_number_of_terms():
    space = make_space("nasbench201(input=(1, 8, 8), classes=2, channels=2, cells=1)")
    # Of the 15,625 cells, those in which the edges into the last node take every combination and the others two of their ops.
    held: set[PlacedOp] = set()
    for last in product(range(5), repeat=3):
        for first in product((0, 3), repeat=3):
            held |= set(needed_ops(space.decode((*first, *last))))
    listed = placed_ops(space)
    assert {p for p in listed if not is_sum(p)} == {p for p in held if not is_sum(p)}
    assert {p for p in held if is_sum(p)} <= {p for p in listed if is_sum(p)}
    assert {len(p.inputs) for p in listed if is_sum(p)} == {2, 3}


def test_identities_are_not_measured():
    for text in ("nasbench201(channels=2, cells=1)", "darts(channels=2, cells=3)", "chain(layers=2)"):
        assert not any(p.graph.is_identity() for p in placed_ops(make_space(text)))


def test_order_and_repetition_do_not_depend_on_the_process():
    text = "darts(channels=4, cells=3, input=(3, 16, 16))"
    first, second = placed_ops(make_space(text)), placed_ops(make_space(text))
    assert first == second
    assert len(set(first)) == len(first)


def test_a_layer_sees_the_widths_of_the_layers_before_it():
    space = make_space("chain(input=(1, 12, 12), layers=3, widths=(4, 8), activations=('relu',))")
    listed = placed_ops(space)
    assert {p.inputs[0].channels for p in listed if p.op.name() == "conv_bn"} == {1, 4, 8}
    assert {p.inputs[0].dims for p in listed if p.op.name() == "classifier"} == {(4, 6, 6), (8, 6, 6)}
