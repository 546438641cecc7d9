"""Space: an Arch with open slots, and everything that is done to genotypes, written once for every space.

A *choice* is a decision with a fixed number of options; a *slot* is a node whose op one or more choices decide, and a choice
may be tied over many slots (a cell, the width of a stage). A *genotype* is one int per choice.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import comb, prod

from hwnas.errors import UserError
from hwnas.ir.arch import Arch, Node
from hwnas.ir.op import Op
from hwnas.ir.tensor import TensorSpec

Genotype = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """A decision; `options` are what a person calls its outcomes."""

    name: str
    options: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.options:
            raise UserError(f"choice {self.name} needs at least one option", got="none")


@dataclass(frozen=True)
class Slot:
    """A node with an open op. `options` lists the op of every combination of its choices, the last choice varying fastest."""

    name: str
    choices: tuple[str, ...]
    options: tuple[Op, ...]
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Keep:
    """Of these choices exactly `count` are other than option `absent`: the two inputs that a DARTS node keeps."""

    choices: tuple[str, ...]
    count: int
    absent: int


@dataclass(frozen=True)
class Space:
    """Nodes and slots in an order in which each comes after its inputs. The network's own input is called `x`."""

    name: str
    input: TensorSpec
    choices: tuple[Choice, ...]
    nodes: tuple[Node | Slot, ...]
    output: str
    keeps: tuple[Keep, ...] = ()

    def __post_init__(self) -> None:
        if len(self._index) != len(self.choices):
            raise UserError(f"space {self.name}: each choice needs a name of its own", got=[c.name for c in self.choices])
        for slot in self.slots:
            unknown = [c for c in slot.choices if c not in self._index]
            if unknown:
                raise UserError(f"slot {slot.name} needs choices of its space", got=unknown[0])
            if len(slot.options) != prod(self._sizes(slot)):
                raise UserError(
                    f"slot {slot.name} needs an op for each of {prod(self._sizes(slot))} combinations", got=len(slot.options)
                )
        for keep in self.keeps:
            if any(c not in self._index for c in keep.choices) or not 1 <= keep.count <= len(keep.choices):
                raise UserError(f"space {self.name}: a keep needs choices of its space and a count that they allow", got=keep)

    @cached_property
    def _index(self) -> Mapping[str, int]:
        return {c.name: i for i, c in enumerate(self.choices)}

    @cached_property
    def _keep_indices(self) -> tuple[tuple[tuple[int, ...], Keep], ...]:
        return tuple((tuple(self._index[c] for c in keep.choices), keep) for keep in self.keeps)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(n for n in self.nodes if isinstance(n, Slot))

    @cached_property
    def fingerprint(self) -> str:
        """Names this space, arguments included, wherever numbers about it are stored."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @property
    def size(self) -> int:
        """The number of genotypes."""
        kept = {i for indices, _ in self._keep_indices for i in indices}
        total = prod(len(c.options) for i, c in enumerate(self.choices) if i not in kept)
        for indices, keep in self._keep_indices:
            sizes = {len(self.choices[i].options) - 1 for i in indices}
            if len(sizes) != 1:
                raise UserError("the choices of a keep need one number of options", got=keep.choices)
            total *= comb(len(indices), keep.count) * sizes.pop() ** keep.count
        return total

    def _sizes(self, slot: Slot) -> list[int]:
        return [len(self.choices[self._index[c]].options) for c in slot.choices]

    def choice_indices(self, slot: Slot) -> tuple[int, ...]:
        """Where a slot's choices stand in a genotype."""
        return tuple(self._index[c] for c in slot.choices)

    def check(self, genotype: Sequence[int]) -> Genotype:
        """The genotype as a tuple; UserError if it is not one of this space."""
        if len(genotype) != len(self.choices):
            raise UserError(f"a genotype of {self.name} has {len(self.choices)} numbers", got=len(genotype))
        for value, choice in zip(genotype, self.choices, strict=True):
            if int(value) != value or not 0 <= value < len(choice.options):
                raise UserError(f"choice {choice.name} takes 0 to {len(choice.options) - 1}", got=value)
        for indices, keep in self._keep_indices:
            present = sum(genotype[i] != keep.absent for i in indices)
            if present != keep.count:
                raise UserError(f"exactly {keep.count} of {', '.join(keep.choices)} are present", got=present)
        return tuple(int(v) for v in genotype)

    @cached_property
    def _digits(self) -> Mapping[str, tuple[tuple[int, int], ...]]:
        """Of each slot's choices, by its name, where they stand in a genotype and how many options they have."""
        return {s.name: tuple(zip(self.choice_indices(s), self._sizes(s), strict=True)) for s in self.slots}

    @cached_property
    def _decided(self) -> Mapping[str, tuple[Node, ...]]:
        """What each slot, by its name, becomes with each option."""
        return {s.name: tuple([Node(s.name, op, s.inputs) for op in s.options]) for s in self.slots}

    def option(self, slot: Slot, genotype: Genotype) -> int:
        """Which of a slot's options a genotype picks."""
        position = 0
        for index, size in self._digits[slot.name]:
            position = position * size + genotype[index]
        return position

    def decode(self, genotype: Sequence[int]) -> Arch:
        """The arch of a genotype: the only bridge between the two."""
        genotype = self.check(genotype)
        decided = self._decided
        nodes = tuple([decided[n.name][self.option(n, genotype)] if isinstance(n, Slot) else n for n in self.nodes])
        return Arch(self.input, nodes, self.output)

    def describe(self, genotype: Sequence[int]) -> dict[str, str]:
        """What a genotype chooses, in the words of its choices."""
        return {c.name: c.options[v] for c, v in zip(self.choices, self.check(genotype), strict=True)}

    def one_hot(self, genotype: Sequence[int]) -> list[list[float]]:
        """One gate vector per choice, with all its weight on the chosen option."""
        checked = self.check(genotype)
        return [[float(i == v) for i in range(len(c.options))] for c, v in zip(self.choices, checked, strict=True)]

    def from_scores(self, scores: Sequence[Sequence[float]]) -> Genotype:
        """The genotype of the highest scores, one row per choice; a keep keeps its strongest choices by their best option.

        The derivation of DARTS (Liu et al. 2019, section 2.4), for any space.
        """
        genotype = [max(range(len(row)), key=row.__getitem__) for row in scores]
        for indices, keep in self._keep_indices:
            best = {i: max((o for o in range(len(scores[i])) if o != keep.absent), key=scores[i].__getitem__) for i in indices}
            strongest = sorted(indices, key=lambda i: -scores[i][best[i]])[: keep.count]
            for i in indices:
                genotype[i] = best[i] if i in strongest else keep.absent
        return self.check(genotype)

    def sample(self, rng: random.Random) -> Genotype:
        """A genotype drawn uniformly."""
        genotype = [rng.randrange(len(c.options)) for c in self.choices]
        for indices, keep in self._keep_indices:
            present = set(rng.sample(indices, keep.count))
            for i in indices:
                genotype[i] = self._other(i, keep.absent, rng) if i in present else keep.absent
        return tuple(genotype)

    def genotypes(self) -> Iterator[Genotype]:
        """All genotypes, `size` of them."""
        parts: list[list[dict[int, int]]] = []  # of each free choice and each keep: what it can be, by index
        kept = {i for indices, _ in self._keep_indices for i in indices}
        for i, choice in enumerate(self.choices):
            if i not in kept:
                parts.append([{i: option} for option in range(len(choice.options))])
        for indices, keep in self._keep_indices:
            outcomes = []
            for present in combinations(indices, keep.count):
                options = [[o for o in range(len(self.choices[i].options)) if o != keep.absent] for i in present]
                absent = dict.fromkeys(indices, keep.absent)
                outcomes += [absent | dict(zip(present, chosen, strict=True)) for chosen in product(*options)]
            parts.append(outcomes)
        for combination in product(*parts):
            values = {i: value for part in combination for i, value in part.items()}
            yield tuple(values[i] for i in range(len(self.choices)))

    def mutate(self, genotype: Genotype, rng: random.Random) -> Genotype:
        """A neighbour: one choice takes another option; among the choices of a keep, an option or a place may move."""
        open_choices = [i for i, c in enumerate(self.choices) if len(c.options) > 1]
        if not open_choices:
            return genotype
        result = list(genotype)
        i = rng.choice(open_choices)
        for indices, keep in self._keep_indices:
            if i in indices:
                present = [j for j in indices if genotype[j] != keep.absent]
                absent = [j for j in indices if genotype[j] == keep.absent]
                if genotype[i] == keep.absent and present:  # one that is present makes room
                    result[rng.choice(present)] = keep.absent
                    result[i] = self._other(i, keep.absent, rng)
                elif absent and rng.random() < 0.5:  # moves, with its option
                    result[rng.choice(absent)], result[i] = genotype[i], keep.absent
                else:
                    rest = [o for o in range(len(self.choices[i].options)) if o not in (keep.absent, genotype[i])]
                    result[i] = rng.choice(rest) if rest else genotype[i]
                return tuple(result)
        result[i] = self._other(i, genotype[i], rng)
        return tuple(result)

    def crossover(self, a: Genotype, b: Genotype, rng: random.Random, kind: str = "uniform") -> Genotype:
        """Each choice from one parent or the other; the choices of a keep travel together.

        kind: `uniform` tosses a coin for each, `one_point` and `two_point` change the parent at that many places.
        """
        keep_of = {i: number for number, (indices, _) in enumerate(self._keep_indices) for i in indices}
        genes: dict[object, list[int]] = {}  # what travels together, in the order of the choices
        for i in range(len(self.choices)):
            genes.setdefault(("keep", keep_of[i]) if i in keep_of else i, []).append(i)
        groups = list(genes.values())
        if kind == "uniform":
            first = [rng.random() < 0.5 for _ in groups]
        else:
            points = {"one_point": 1, "two_point": 2}[kind]
            cuts = sorted(rng.sample(range(1, len(groups)), min(points, len(groups) - 1)))
            first = [sum(cut <= position for cut in cuts) % 2 == 0 for position in range(len(groups))]
        result = list(a)
        for group, from_a in zip(groups, first, strict=True):
            for i in group:
                result[i] = (a if from_a else b)[i]
        return tuple(result)

    def _other(self, index: int, value: int, rng: random.Random) -> int:
        """An option of a choice other than `value`."""
        return rng.choice([o for o in range(len(self.choices[index].options)) if o != value])
