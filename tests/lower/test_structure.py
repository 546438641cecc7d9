"""structure: the same for two spellings of one network, and the paths counted against a walk over all of them."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from hwnas.ir.simplify import simplify
from hwnas.lower.structure import structure
from hwnas.spaces import make_space

CELL = make_space("nasbench201(input=(1,8,8), classes=3, channels=2, cells=1)")
SPACES = [CELL, make_space("darts(input=(1,8,8), classes=3, channels=2, cells=2)"), make_space("chain")]


def test_isomorphic_cells_agree_and_others_mostly_differ():
    rng = random.Random(0)
    seen: dict[str, list] = {}
    for _ in range(400):
        arch = simplify(CELL.decode(CELL.sample(rng)))
        found = {view: dict(counts) for view, counts in structure(arch).items()}
        seen.setdefault(arch.key, []).append(found)
    assert all(found == group[0] for group in seen.values() for found in group)
    distinct = {str(sorted((v, sorted(c.items())) for v, c in group[0].items())) for group in seen.values()}
    assert len(distinct) > 0.9 * len(seen)


@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
def test_ops_and_paths_against_a_walk(space):
    """Every path from bottleneck to bottleneck, walked one by one; a bottleneck is what no path avoids."""
    rng = random.Random(1)
    for _ in range(10):
        arch = simplify(space.decode(space.sample(rng)))
        inputs = {n.name: n.inputs for n in arch.nodes}
        sums = {n.name for n in arch.nodes if str(n.op).startswith("sum(")}
        label = {n.name: str(n.op) for n in arch.nodes}

        def reaches_without(blocked, inputs=inputs, output=arch.output):
            stack, known = [output], set()
            while stack:
                name = stack.pop()
                if name == "x":
                    return True
                if name != blocked and name not in known:
                    known.add(name)
                    stack += inputs[name]
            return False

        gates = {name for name in inputs if not reaches_without(name)} | {"x"}

        def walks(name, gates=gates, inputs=inputs, sums=sums, label=label):
            own = () if name in sums else (label[name],)
            for source in inputs[name]:
                if source in gates:
                    yield own
                else:
                    for path in walks(source):
                        yield (*path, *own)

        expected = Counter(" > ".join(path[-4:]) for name in gates - {"x"} for path in walks(name))
        found = structure(arch)
        assert dict(found["paths"]) == dict(expected)
        assert dict(found["ops"]) == dict(Counter(label.values()))
        assert sum(found["neighbourhoods"].values()) == len(arch.nodes)
