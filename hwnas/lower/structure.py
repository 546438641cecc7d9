"""structure: what an arch is made of, as counts of labels, for surrogates of its accuracy. Free of the space it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hwnas.ir.arch import INPUT, Arch
from hwnas.ir.prims import Add
from hwnas.ir.simplify import simplify

_LONGEST = 4  # ops of a path that are told apart, counted from its end


def structure(arch: Arch) -> Mapping[str, Mapping[str, int]]:
    """Three views of the simplified arch, each a count of labels.

    `ops`: the ops. `neighbourhoods`: each op with the ops that feed it, the first round of Weisfeiler and Leman (Shervashidze
    et al. 2011; for architectures Ru et al. 2021). `paths`: the ops along every way from one bottleneck to the next (White et
    al. 2021); a bottleneck is a node that every way through the network passes, so that a cell is counted where it is, however
    many are stacked.
    """
    simple = simplify(arch)
    sums = {n.name for n in simple.nodes if simple.placed(n).graph.only is Add}
    op = {INPUT: INPUT} | {n.name: str(n.op) for n in simple.nodes}
    bottlenecks = _bottlenecks(simple)
    neighbourhoods: Counter[str] = Counter()
    paths: Counter[str] = Counter()
    open_paths: dict[str, Counter[tuple[str, ...]]] = {INPUT: Counter([()])}
    for node in simple.nodes:
        sources = [op[i] for i in node.inputs]
        neighbourhoods[f"{op[node.name]} < {', '.join(sorted(sources) if node.name in sums else sources)}"] += 1
        ends: Counter[tuple[str, ...]] = Counter()
        for source in node.inputs:
            for path, count in open_paths[source].items():
                ends[path if node.name in sums else (*path, op[node.name])[-_LONGEST:]] += count
        if node.name in bottlenecks:
            paths.update({" > ".join(path): count for path, count in ends.items()})
            ends = Counter([()])
        open_paths[node.name] = ends
    return {"ops": Counter(op[n.name] for n in simple.nodes), "neighbourhoods": neighbourhoods, "paths": paths}


def _bottlenecks(simple: Arch) -> set[str]:
    """The nodes that every way from the input to the output passes."""
    position = {name: i for i, name in enumerate([INPUT, *(n.name for n in simple.nodes)])}
    reach = dict.fromkeys(position, 0)  # the last reader of each node
    for node in simple.nodes:
        for source in node.inputs:
            reach[source] = max(reach[source], position[node.name])
    found, furthest = set(), 0
    for name, i in position.items():
        if furthest <= i:  # nothing before this node is read after it
            found.add(name)
        furthest = max(furthest, reach[name])
    return found
