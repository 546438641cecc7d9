"""derive: takes a path's weights out of the supernet, under the names that torch and ONNX know them by."""

from __future__ import annotations

from hwnas.ir.simplify import simplify
from hwnas.lower.weights import Weights
from hwnas.space import Genotype
from hwnas.supernet.supernet import Supernet


def derive(supernet: Supernet, genotype: Genotype) -> Weights:
    """Copies of the weights and statistics of the path's simplified arch."""
    arch = simplify(supernet.space.decode(genotype))
    weights: Weights = {}
    for node in arch.nodes:
        for name, spec in arch.placed(node).graph.weights():
            view = supernet.weight(node.name, node.op, name, spec.shape)
            weights[f"{node.name}.{name}"] = view.detach().cpu().numpy().copy()
    return weights
