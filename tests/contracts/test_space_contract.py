"""What every file in hwnas/spaces must keep. A new space is tested by existing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from cases import build_space, space_arguments
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import UserError
from hwnas.ir.arch import Arch, Node
from hwnas.ir.prims import Add
from hwnas.ir.simplify import placed_ops as needed_ops
from hwnas.ir.simplify import simplify
from hwnas.ir.text import print_arch
from hwnas.latency.device import Device
from hwnas.latency.session import Session
from hwnas.lower.cost import cost
from hwnas.lower.features import features
from hwnas.lower.onnx import to_onnx
from hwnas.lower.torch import to_torch
from hwnas.ops import read_arch
from hwnas.placements import placed_ops, placements
from hwnas.plugins import known
from hwnas.space import Space

NAMES = known("hwnas.spaces")
CASES = [(name, arguments) for name in NAMES for arguments in space_arguments(name)]
IDS = [f"{name}{i}" for name in NAMES for i in range(len(space_arguments(name)))]


@pytest.fixture(params=CASES, ids=IDS, scope="module")
def space(request: pytest.FixtureRequest) -> Space:
    return build_space(*request.param)


def genotypes(space: Space, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [space.sample(rng) for _ in range(count)]


def test_text_round_trip(space):
    for genotype in genotypes(space, 15):
        arch = space.decode(genotype)
        for form in (arch, simplify(arch)):
            again = read_arch(print_arch(form))
            assert again == form
            assert again.key == form.key
            assert print_arch(again) == print_arch(form)


def test_decode_picks_what_describe_and_one_hot_say(space):
    for genotype in genotypes(space, 15):
        gates = space.one_hot(genotype)
        assert [len(g) for g in gates] == [len(c.options) for c in space.choices]
        assert all(sorted(g) == [0.0] * (len(g) - 1) + [1.0] for g in gates)
        assert space.from_scores(gates) == genotype
        assert [c.options.index(space.describe(genotype)[c.name]) for c in space.choices] == list(genotype)
        arch = space.decode(genotype)
        assert [n.name for n in arch.nodes] == [n.name for n in space.nodes]
        chosen = {c.name: v for c, v in zip(space.choices, genotype, strict=True)}
        ops = {n.name: n.op for n in arch.nodes}
        for slot in space.slots:  # the last choice varies fastest
            rows = list(product(*(range(len(c.options)) for name in slot.choices for c in space.choices if c.name == name)))
            assert ops[slot.name] == slot.options[rows.index(tuple(chosen[c] for c in slot.choices))]


def test_from_scores_keeps_the_genotype_under_any_increasing_change_of_the_scores(space):
    rng = np.random.default_rng(0)
    for genotype in genotypes(space, 5):
        soft = [list(np.asarray(row) * 3 + rng.uniform(0, 1, len(row))) for row in space.one_hot(genotype)]
        assert space.from_scores(soft) == genotype
        assert space.from_scores([[np.exp(v) for v in row] for row in soft]) == genotype


def test_genotypes_stay_in_the_space(space):
    rng = random.Random(1)
    a = space.sample(rng)
    for _ in range(60):
        b = space.sample(rng)
        assert space.check(b) == b
        child = space.crossover(a, b, rng)
        assert space.check(child) == child
        assert all(c in pair for c, *pair in zip(child, a, b, strict=True))
        for indices, _ in space._keep_indices:
            part = [child[i] for i in indices]
            assert part in ([a[i] for i in indices], [b[i] for i in indices])
        mutant = space.mutate(a, rng)
        assert space.check(mutant) == mutant
        changed = [i for i, (x, y) in enumerate(zip(a, mutant, strict=True)) if x != y]
        if len(changed) == 2:  # a place moved, within one keep
            (keep,) = [keep for indices, keep in space._keep_indices if changed[0] in indices]
            assert changed[1] in [space._index[c] for c in keep.choices]
            assert sorted((a[i] == keep.absent, mutant[i] == keep.absent) for i in changed) == [(False, True), (True, False)]
        else:
            assert len(changed) == 1
        a = mutant


def test_sampling_is_uniform_over_each_choice(space):
    count = 600
    drawn = genotypes(space, count, seed=3)
    kept = {i: keep for indices, keep in space._keep_indices for i in indices}
    for i, choice in enumerate(space.choices):
        seen = Counter(g[i] for g in drawn)
        for option in range(len(choice.options)):
            p = 1 / len(choice.options)
            if i in kept:
                share = kept[i].count / len(kept[i].choices)
                p = 1 - share if option == kept[i].absent else share / (len(choice.options) - 1)
            # five standard deviations of a binomial: with these seeds fixed, a failure is a bug and not bad luck
            assert abs(seen[option] - count * p) <= 5 * (count * p * (1 - p)) ** 0.5 + 1


def test_the_space_refuses_what_is_not_its_genotype(space):
    genotype = genotypes(space, 1)[0]
    for bad in (genotype[:-1], (*genotype, 0), (len(space.choices[0].options), *genotype[1:]), (-1, *genotype[1:])):
        for method in (space.check, space.decode, space.one_hot, space.describe):
            with pytest.raises(UserError):
                method(bad)


def test_parameters_are_torchs(space, random_weights):
    for genotype in genotypes(space, 6):
        arch = simplify(space.decode(genotype))
        module = to_torch(arch, random_weights(arch))
        expected = sum(p.numel() for p in module.parameters())
        assert cost(arch).params == cost(space.decode(genotype)).params == expected
        assert features(arch).weight_bytes == 4 * expected
        assert sorted(module.state_dict()) == sorted(name for name, _ in arch.weights())


def test_macs_are_what_torch_multiplies(space):
    for genotype in genotypes(space, 4):
        arch = simplify(space.decode(genotype))
        module = to_torch(arch).eval()
        counted = 0

        class Count(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                nonlocal counted
                out = func(*args, **(kwargs or {}))
                if func is torch.ops.aten.convolution.default:
                    counted += out.numel() * args[1][0].numel()
                elif func is torch.ops.aten.addmm.default:
                    counted += args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
                return out

        with torch.no_grad(), Count():
            module(torch.zeros(1, *arch.input.dims))
        assert cost(arch).macs == features(arch).macs == counted > 0


def test_simplify_keeps_the_function_and_is_idempotent(space, random_weights):
    for seed, genotype in enumerate(genotypes(space, 6)):
        arch = space.decode(genotype)
        simple = simplify(arch)
        assert simplify(simple) == simple
        assert simple.input == arch.input
        assert simple.specs[simple.output] == arch.specs[arch.output]
        names = {n.name: n.op for n in arch.nodes}
        assert all(names[n.name] == n.op for n in simple.nodes)
        weights = random_weights(arch, seed)
        x = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, *arch.input.dims)))
        kept = {name: weights[name] for name, _ in simple.weights()}
        for training in (False, True):
            with torch.no_grad():
                whole = to_torch(arch, weights).double().train(training)(x)
                part = to_torch(simple, kept).double().train(training)(x)
            assert torch.equal(whole, part)  # leaving out zeros and copies changes not one bit


def test_onnx_runtime_agrees_with_torch(space, random_weights):
    device = Device(name="here")
    for seed, genotype in enumerate(genotypes(space, 4, seed=5)):
        arch = simplify(space.decode(genotype))
        weights = random_weights(arch, seed)
        session = Session(to_onnx(arch, weights).SerializeToString(), device)
        module = to_torch(arch, weights).eval()
        for batch in (1, 3):
            x = np.random.default_rng(seed).standard_normal((batch, *arch.input.dims)).astype(np.float32)
            with torch.no_grad():
                expected = module(torch.from_numpy(x)).numpy()
            found = session.predict(x)
            assert found.shape == expected.shape == (batch, *arch.specs[arch.output].dims)
            assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def renamed(arch: Arch, rng: random.Random) -> Arch:
    """The same network: fresh names, another order of the nodes, and of the terms of sums."""
    names = {n.name: f"v{i}" for i, n in enumerate(rng.sample(arch.nodes, len(arch.nodes)))}
    names["x"] = "x"
    waiting, ready, done = list(arch.nodes), {"x"}, []
    while waiting:
        node = rng.choice([n for n in waiting if set(n.inputs) <= ready])
        inputs = list(node.inputs)
        if arch.placed(node).graph.only is Add:
            rng.shuffle(inputs)
        done.append(Node(names[node.name], node.op, tuple(names[i] for i in inputs)))
        ready.add(node.name)
        waiting.remove(node)
    return Arch(arch.input, tuple(done), names[arch.output])


def test_the_key_is_of_the_network_and_not_of_its_spelling(space):
    rng = random.Random(7)
    for genotype in genotypes(space, 20, seed=9):
        arch = simplify(space.decode(genotype))
        for _ in range(3):
            assert renamed(arch, rng).key == arch.key


def test_equal_keys_mean_equal_costs_and_ops(space):
    by_key: dict[str, tuple[object, object]] = {}
    for genotype in genotypes(space, 80, seed=11):
        arch = simplify(space.decode(genotype))
        found = (cost(arch), Counter(needed_ops(arch)))
        assert by_key.setdefault(arch.key, found) == found
    if space.size > 100:
        assert len(by_key) > 20


def test_other_inputs_and_classes_have_other_keys(space):
    arch = simplify(space.decode(genotypes(space, 1)[0]))
    last = arch.nodes[-1]
    assert last.name == arch.output
    wider = type(last.op)(last.op.classes + 1)  # every space ends with a classifier
    assert Arch(arch.input, (*arch.nodes[:-1], Node(last.name, wider, last.inputs)), arch.output).key != arch.key


def test_the_profile_of_the_space_holds_every_op_that_a_network_needs(space):
    listed = placed_ops(space)
    assert len(set(listed)) == len(listed)
    held = set(listed)
    by_node = {name: set(ops) for name, ops in placements(space).items()}
    for genotype in genotypes(space, 120, seed=13):
        arch = space.decode(genotype)
        assert set(needed_ops(arch)) <= held
        for node in arch.nodes:
            assert arch.placed(node) in by_node[node.name]


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_any_seed_gives_a_network(seed):
    name, arguments = CASES[seed % len(CASES)]
    space = build_space(name, arguments)
    rng = random.Random(seed)
    genotype = space.mutate(space.crossover(space.sample(rng), space.sample(rng), rng), rng)
    arch = space.decode(genotype)
    assert arch.specs[arch.output].dims == (arguments.get("classes", 10),)


@pytest.mark.parametrize("name", NAMES)
def test_the_fingerprint_names_the_arguments(name):
    import inspect

    from hwnas.plugins import load

    base = space_arguments(name)[0]
    prints = [build_space(name, arguments).fingerprint for arguments in space_arguments(name)]
    assert len(set(prints)) == len(prints)
    assert build_space(name, base).fingerprint == prints[0]
    for parameter in inspect.signature(load("hwnas.spaces", name, "space").space).parameters:
        if parameter in ("classes", "channels", "cells", "stem") and parameter in base:
            other = {**base, parameter: 2 * base[parameter]}
            assert build_space(name, other).fingerprint != prints[0]


def test_fingerprints_and_keys_are_the_same_in_every_process():
    """Python's own hashes differ from process to process; a fingerprint in a file must not."""
    script = (
        "import json, random, sys\n"
        "from hwnas.ir.simplify import simplify\n"
        "from hwnas.plugins import load\n"
        "out = []\n"
        "for name, arguments in json.loads(sys.argv[1]):\n"
        "    space = load('hwnas.spaces', name, 'space').space(**arguments)\n"
        "    out.append([space.fingerprint, simplify(space.decode(space.sample(random.Random(0)))).key])\n"
        "print(json.dumps(out))\n"
    )
    simple = [(n, {k: v for k, v in a.items() if not isinstance(v, tuple)}) for n, a in CASES]
    expected = []
    for name, arguments in simple:
        space = build_space(name, arguments)
        expected.append([space.fingerprint, simplify(space.decode(space.sample(random.Random(0)))).key])
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(simple)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
