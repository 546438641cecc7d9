"""Tabular benchmarks: every network of a space with the accuracy that it reached, and its latency on real devices.

A table is an `.npz` with `codes[n, choices]`, one or more columns of accuracy in percent, and as a rule `params` and
multiply-accumulates (`macs...` or `flops...`). Latency lies in a file of its own: `devices[d]`, `latency_ms[d, n]`, and
`codes` if its rows stand in another order.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import UserError
from hwnas.ir.arch import INPUT
from hwnas.ir.tensor import TensorSpec
from hwnas.lower.structure import structure
from hwnas.search.admission import Admission, Traits
from hwnas.search.budget import LATENCY, Budget, describe
from hwnas.search.loop import Candidate
from hwnas.search.strategy import Score, Trial
from hwnas.space import Choice, Genotype, Space
from hwnas.spaces import make_space
from hwnas.spaces.nasbench201 import EDGES

Array = NDArray[np.float64]

_CELL = re.compile(r"\|[^|~+]+~0\|\+\|")  # how the words of NAS-Bench-201 begin
_LISTING = 50_000  # rows that a strategy may look through as a whole


@dataclass(frozen=True)
class TableSpace(Space):
    """A space known by its rows alone: choices without ops. What is no row gives way to a row that differs least."""

    rows: tuple[Genotype, ...] = ()

    @cached_property
    def index(self) -> Mapping[Genotype, int]:
        return {genotype: i for i, genotype in enumerate(self.rows)}

    @cached_property
    def _matrix(self) -> NDArray[np.int64]:
        return np.array(self.rows)

    @property
    def size(self) -> int:
        return len(self.rows)

    def check(self, genotype: Sequence[int]) -> Genotype:
        checked = super().check(genotype)
        if checked not in self.index:
            raise UserError(f"{self.name} has no such row", got=list(checked))
        return checked

    def genotypes(self) -> Iterator[Genotype]:
        return iter(self.rows)

    def sample(self, rng: random.Random) -> Genotype:
        return rng.choice(self.rows)

    def mutate(self, genotype: Genotype, rng: random.Random) -> Genotype:
        return self.nearest(super().mutate(genotype, rng), rng, genotype)

    def crossover(self, a: Genotype, b: Genotype, rng: random.Random, kind: str = "uniform") -> Genotype:
        return self.nearest(super().crossover(a, b, rng, kind), rng)

    def from_scores(self, scores: Sequence[Sequence[float]]) -> Genotype:
        best = tuple(max(range(len(row)), key=row.__getitem__) for row in scores)
        return self.nearest(best, random.Random(0))

    def nearest(self, genotype: Genotype, rng: random.Random, other_than: Genotype | None = None) -> Genotype:
        if genotype in self.index:
            return genotype
        distance = (self._matrix != np.array(genotype)).sum(1)
        if other_than is not None and len(self.rows) > 1:
            distance[self.index[other_than]] = len(genotype) + 1
        return self.rows[rng.choice(np.flatnonzero(distance == distance.min()).tolist())]


class Table:
    """A tabular benchmark in memory.

    Cells in the words of NAS-Bench-201 (`arch_str`) become networks of that space, so that what they are made of is read from
    the network; of other tables nothing but the options is known, and the columns of cost.
    """

    def __init__(self, accuracy: str | Path, latency: str | Path | None = None) -> None:
        self.columns = _read(accuracy, ("codes",))
        codes = self.columns["codes"]
        if codes.ndim != 2 or len(codes) < 2 or not np.issubdtype(codes.dtype, np.integer) or codes.min() < 0:
            raise UserError(f"{accuracy}: codes are whole numbers, two rows or more", got=f"{codes.dtype}{list(codes.shape)}")
        self.size = len(codes)
        name, texts = Path(accuracy).stem, [str(text) for text in self.columns.get("arch_str", ())]
        self._networks: Space | None = None
        if texts and _CELL.match(texts[0]):
            # One cell a stage holds all there is to know: the others repeat it.
            self._networks = space = make_space("nasbench201(cells=1)")
            self.genotypes = [_nasbench201(space, text) for text in texts]
            complete = len(set(self.genotypes)) == space.size
            self.space = space if complete else _table_space(name, space.choices, self.genotypes)
        else:
            self.genotypes = [tuple(map(int, row)) for row in codes]
            self.space = _table_space(name, _choices(self.genotypes, self.columns.get("op_names")), self.genotypes)
        self.row = {genotype: i for i, genotype in enumerate(self.genotypes)}
        if len(self.row) != self.size:
            raise UserError(f"{accuracy}: each row has codes of its own", got=f"{self.size - len(self.row)} repeated")
        self._counts: dict[Genotype, Mapping[str, Mapping[str, int]]] = {}
        self._traits: dict[str | None, dict[Genotype, Traits]] = {}
        self.metrics: dict[str, Array] = {}
        for metric, prefixes in (("params", ("params",)), ("macs", ("macs", "flops"))):
            named = [c for c in self.columns if c.lower().startswith(prefixes) and self.columns[c].shape == (self.size,)]
            if named:
                self.metrics[metric] = self.columns[named[0]].astype(float)
        self.latency_ms: dict[str, Array] = {}
        if latency is not None:
            self.latency_ms = _latency(latency, codes)

    def column(self, name: str) -> Array:
        """Accuracy, from 0 to 1, of every row. UserError if the table has no such column."""
        numeric = [c for c, v in self.columns.items() if v.shape == (self.size,) and np.issubdtype(v.dtype, np.number)]
        if name not in numeric:
            raise UserError("the table has no such column", got=name, remedy=f"it has {', '.join(numeric)}")
        accuracy = self.columns[name].astype(float) / 100
        if not np.isfinite(accuracy).all():
            raise UserError(f"{name} is an accuracy in percent for every row", got=f"{(~np.isfinite(accuracy)).sum()} missing")
        return accuracy

    def known(self, device: str | None) -> dict[str, Array]:
        """The metrics that are known without a query; with the device's latency."""
        if device is None:
            return self.metrics
        if device not in self.latency_ms:
            raise UserError("the table has no such device", got=device, remedy=f"it has {', '.join(self.latency_ms) or 'none'}")
        return {**self.metrics, LATENCY: self.latency_ms[device]}

    def admission(self, budget: Budget, device: str | None = None) -> Admission:
        """What a strategy sees. UserError at once if no row keeps the budget."""
        metrics = self.known(device)
        unknown = [m for m in budget.limits if m not in metrics]
        if unknown:
            raise UserError("the table lacks a metric of the budget", got=unknown[0], remedy=f"it has {', '.join(metrics)}")
        over = np.max([np.maximum(metrics[m] / limit - 1, 0) for m, limit in budget.limits.items()], axis=0)
        least = int(np.argmin(over))
        if over[least] > 0:
            near = ", ".join(describe(m, metrics[m][least], round_up=True) for m in budget.limits)
            raise UserError("no row of the table keeps the budget", got=str(budget), remedy=f"the nearest has {near}")

        known = self._traits.setdefault(device, {})

        def traits(genotype: Genotype) -> Traits:
            if genotype not in known:
                row = self.row[genotype]
                known[genotype] = Traits(str(row), {m: float(v[row]) for m, v in metrics.items()}, self._structure(genotype))
            return known[genotype]

        return Admission(self.space, lambda g: float(over[self.row[g]]), self.genotypes[least], traits, _LISTING)

    def evaluator(self, metric: str, device: str | None = None) -> TableEvaluator:
        """Reads a column. A lower fidelity reads the column of fewer epochs, `..._e12` of `..._e200`, if there is one."""
        stem = re.fullmatch(r"(.*)_e(\d+)", metric)
        columns = {1.0: self.column(metric)}
        if stem:
            for name in self.columns:
                epochs = re.fullmatch(rf"{re.escape(stem[1])}_e(\d+)", name)
                if epochs and int(epochs[1]) < int(stem[2]):
                    columns[int(epochs[1]) / int(stem[2])] = self.column(name)
        return TableEvaluator(self, columns, self.known(device))

    def _structure(self, genotype: Genotype) -> Mapping[str, Mapping[str, int]]:
        if genotype not in self._counts:
            if self._networks:
                self._counts[genotype] = structure(self._networks.decode(genotype))
            else:
                names = [c.options[v] for c, v in zip(self.space.choices, genotype, strict=True)]
                pairs = Counter(f"{a} > {b}" for a, b in pairwise(names))
                ranks = {c.name: v for c, v in zip(self.space.choices, genotype, strict=True)}  # options may be in order
                self._counts[genotype] = {"options": Counter(names), "pairs": pairs, "ranks": ranks}
        return self._counts[genotype]


@dataclass(frozen=True)
class TableEvaluator:
    """`columns`: by fidelity, accuracy from 0 to 1."""

    table: Table
    columns: Mapping[float, Array]
    metrics: Mapping[str, Array]

    def fidelity(self, wanted: float) -> float:
        """The fidelity that a trial gets: the highest up to the wanted one, or the lowest there is."""
        return max((f for f in self.columns if f <= wanted + 1e-9), default=min(self.columns))

    def __call__(self, trial: Trial) -> Candidate:
        row = self.table.row[trial.genotype]
        accuracy = float(self.columns[self.fidelity(trial.fidelity)][row])
        metrics = {m: float(v[row]) for m, v in self.metrics.items()}
        return Candidate(trial, str(row), Score(accuracy, 1 - accuracy), metrics)


def _read(path: str | Path, needed: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not an npz table", got=str(error)) from error
    missing = [name for name in needed if name not in columns]
    if missing:
        raise UserError(f"{path} lacks {missing[0]}", got=", ".join(columns))
    return columns


def _latency(path: str | Path, codes: NDArray[np.generic]) -> dict[str, Array]:
    """By device, the latency of each row of `codes`."""
    columns = _read(path, ("devices", "latency_ms"))
    latency = columns["latency_ms"].astype(float)
    if "codes" in columns:
        rows = {tuple(row): i for i, row in enumerate(columns["codes"].tolist())}
        order = [rows.get(tuple(row), -1) for row in codes.tolist()]
        if min(order) < 0:
            raise UserError(f"{path} lacks the latency of a row", got=codes[order.index(-1)].tolist())
        latency = latency[:, order]
    if latency.shape != (len(columns["devices"]), len(codes)) or not (np.isfinite(latency).all() and (latency > 0).all()):
        raise UserError(f"{path}: latency_ms is positive, one row a device, one column a network", got=list(latency.shape))
    return {str(device): row for device, row in zip(columns["devices"], latency, strict=True)}


def _nasbench201(space: Space, text: str) -> Genotype:
    """`|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`, the edges into each node in turn, as a genotype."""
    found: dict[tuple[int, int], int] = {}
    try:
        for target, edges in enumerate(text.split("+"), start=1):
            for edge in edges.strip("|").split("|"):
                op, source = edge.split("~")
                options = space.choices[EDGES.index((int(source), target))].options
                found[int(source), target] = options.index(op)
        return tuple(found[edge] for edge in EDGES)
    except (ValueError, KeyError):
        raise UserError("arch_str is a cell in the words of NAS-Bench-201", got=text) from None


def _table_space(name: str, choices: Sequence[Choice], genotypes: Sequence[Genotype]) -> TableSpace:
    return TableSpace(name, TensorSpec((1,)), tuple(choices), (), INPUT, rows=tuple(genotypes))


def _choices(genotypes: Sequence[Genotype], op_names: NDArray[np.generic] | None) -> list[Choice]:
    """As many options as the codes have, in the table's words if it has some."""
    sizes = np.array(genotypes).max(0) + 1
    names = [str(n) for n in op_names] if op_names is not None and op_names.ndim == 1 else []
    if len(names) < sizes.max():
        names = [str(i) for i in range(sizes.max())]
    return [Choice(f"choice{i}", tuple(names[:size])) for i, size in enumerate(sizes)]
