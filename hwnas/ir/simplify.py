"""simplify: the same function with fewer nodes. Two spellings of one network simplify to archs of one key.

Requires a checked Arch. Ensures: the same input and output specs; the remaining nodes keep their names, ops and weights.
Removed: identities; zeros among the terms of a sum; sums of one term; weightless blocks of nothing but zeros; whatever the
output does not need.
"""

from __future__ import annotations

from hwnas.ir.arch import INPUT, Arch, Node
from hwnas.ir.op import PlacedOp
from hwnas.ir.prims import Add, Pool, Zero


def simplify(arch: Arch) -> Arch:
    alias = {INPUT: INPUT}  # name -> the node that now stands for it
    zeros: set[str] = set()
    kept: dict[str, Node] = {}
    for node in arch.nodes:
        inputs = tuple([alias[i] for i in node.inputs])
        graph = arch.placed(node).graph
        only = graph.only
        if only is Add:
            terms = tuple(i for i in inputs if i not in zeros) or inputs[:1]
            if len(terms) == 1:
                alias[node.name] = terms[0]
                continue
            inputs = terms
        if graph.is_identity():
            alias[node.name] = inputs[0]
            continue
        # A pool of zeros is zeros; conv and batch norm are not asked, since their weights make constants of them.
        if only is Zero or (only is Pool and inputs[0] in zeros):
            zeros.add(node.name)
        alias[node.name] = node.name
        kept[node.name] = node if inputs == node.inputs else Node(node.name, node.op, inputs)
    needed: set[str] = set()
    stack = [alias[arch.output]]
    while stack:
        name = stack.pop()
        if name not in needed and name != INPUT:
            needed.add(name)
            stack.extend(kept[name].inputs)
    return Arch(arch.input, tuple(n for n in kept.values() if n.name in needed), alias[arch.output])


def placed_ops(arch: Arch) -> list[PlacedOp]:
    """What a device has to compute: the placed ops of the simplified arch, in order."""
    simple = simplify(arch)
    return [simple.placed(node) for node in simple.nodes]
