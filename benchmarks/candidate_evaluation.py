"""How fast are many candidates of a supernet scored, merged into one program, against one by one?

    python -m benchmarks.candidate_evaluation --device cpu|cuda [--space NAME] [--rounds 3] [--save]

256 candidates of the README's mobilenet space and of nasbench201, 32x32 images: a random batch, and a generation of an
evolutionary search that has found what it prefers (regularized evolution on an additive stand-in for accuracy, whose terms are
drawn at random). Each candidate is recalibrated on 4 batches of 128 images and scored on 1,000. One by one means what a search
did without merging: the derived network as a PyTorch module, eagerly or compiled, its activations channels last. That takes
too long for all, so it is timed on a sample, evenly spaced in the order of multiply-accumulates, since one network may be ten
times another, and on a smaller one compiled; rounds interleave the sides. The sample's losses must agree to 1e-5, or no
figure is given. `compile` counts compilation, which every new architecture needs. Memory is the peak of what a fresh process
adds (CPU) or allocates (CUDA) once a small candidate has loaded all libraries.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.output import Output, add_save, device_name
from benchmarks.resident import growth_mib
from hwnas.data import SearchData, Split
from hwnas.ir.simplify import simplify
from hwnas.lower.cost import cost
from hwnas.lower.torch import to_torch
from hwnas.search.admission import Admission, Traits
from hwnas.search.strategy import Score, make_strategy
from hwnas.space import Genotype, Space
from hwnas.spaces import make_space
from hwnas.supernet.derive import derive
from hwnas.supernet.evaluate import evaluate_many
from hwnas.supernet.merge import merge
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.tally import Evaluation

SPACES = {
    "mobilenet": "mobilenet(stages=((16,3,2),(24,3,2),(40,3,1)),stem=8,first=8,head=96,widths=(0.5,0.75,1.0))",
    "nasbench201": "nasbench201()",
}
BATCH, BATCHES, VALIDATION, TILE = 128, 4, 1000, 512
TOLERANCE = 1e-5
Evaluate = Callable[[Genotype], float]  # a candidate's loss


def images(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    return Split(rng.standard_normal((count, 3, 32, 32)).astype(np.float32), rng.integers(0, 10, count))


DATA = SearchData(images(BATCH * BATCHES, 0), images(VALIDATION, 1))


def supernet_of(space: Space, device: str) -> Supernet:
    """Weights and scales as training leaves them: no two of them alike."""
    supernet = Supernet(space, seed=0)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in supernet.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.4 * torch.rand(parameter.shape, generator=rng) - 0.2)
    return supernet.to(device).eval()


def random_batch(space: Space, count: int) -> list[Genotype]:
    rng = random.Random(0)
    return [space.sample(rng) for _ in range(count)]


def generation(space: Space, count: int) -> list[Genotype]:
    """Children of a population that a stand-in for accuracy has shaped over 20 generations."""
    rng = random.Random(1)
    worth = [[rng.gauss(0, 1) for _ in choice.options] for choice in space.choices]

    def traits(genotype: Genotype) -> Traits:
        return Traits(simplify(space.decode(genotype)).key)

    admission = Admission(space, lambda genotype: 0.0, space.sample(rng), traits)
    strategy = make_strategy("evolution(population=64)", admission, seed=0)
    for _ in range(20):
        for trial in strategy.ask(64):
            value = sum(row[option] for row, option in zip(worth, trial.genotype, strict=True))
            strategy.tell(trial, Score(value, 0.0))
    return [trial.genotype for trial in strategy.ask(count)]


def one_by_one(supernet: Supernet, data: SearchData, device: str, compiled: bool = False) -> Evaluate:
    """Recalibration and validation of one derived network."""
    layout = torch.channels_last
    training, validation = (torch.from_numpy(s.images).to(device, memory_format=layout) for s in (data.train, data.validation))
    labels = torch.from_numpy(data.validation.labels).to(device)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(training))).to(device)

    def evaluate(genotype: Genotype) -> float:
        arch = simplify(supernet.space.decode(genotype))
        network = to_torch(arch, derive(supernet, genotype)).to(device)
        if compiled:
            torch.compiler.reset()  # or it gives up, since all networks share a `forward`
        run = torch.compile(network, dynamic=False) if compiled else network
        with torch.no_grad():
            network.train()
            for i, batch in enumerate(order.split(BATCH), start=1):
                # Every momentum would be compiled anew; another costs the same.
                network.bn_momentum = 1 / BATCHES if compiled else 1 / i
                run(training[batch])
            network.eval()
            logits = torch.cat([run(part) for part in validation.split(TILE)])  # type: ignore[no-untyped-call]
            return scores(logits, labels)

    return evaluate


def scores(logits: Tensor, labels: Tensor) -> float:
    """The loss; accuracy and the counts that F1 scores are made of are computed too, as any evaluation does."""
    classes = logits.shape[1]
    answers = logits.argmax(1)
    torch.bincount(labels * classes + answers, minlength=classes**2).cpu()
    return float(F.cross_entropy(logits, labels))


def merged(supernet: Supernet, genotypes: Sequence[Genotype], data: SearchData) -> list[Evaluation]:
    return evaluate_many(supernet, genotypes, data, batch_size=BATCH, batches=BATCHES, seed=0)


def seconds(work: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mib(space: str, batch: str, name: str, candidates: int) -> float:
    """Of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.candidate_evaluation", "--device", "cpu", "--space", space, "--batch", batch]
    command += ["--candidates", str(candidates), "--memory-of", name]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def memory_of(space: str, batch: str, name: str, candidates: int) -> float:
    supernet, genotypes = prepared(space, batch, candidates, "cpu")

    def work(chosen: Sequence[Genotype], data: SearchData) -> None:
        if name == "merged":
            merged(supernet, chosen, data)
        else:
            one_by_one(supernet, data, "cpu")(chosen[0])

    work(genotypes[:1], SearchData(*(Split(s.images[:8], s.labels[:8]) for s in (DATA.train, DATA.validation))))
    return growth_mib(lambda: work(genotypes, DATA))


def cuda_peak_mib(work: Callable[[], Any]) -> float:
    """What it allocates at its peak beside what is there."""
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def prepared(space: str, batch: str, count: int, device: str) -> tuple[Supernet, list[Genotype]]:
    built = make_space(SPACES[space], input=(3, 32, 32), classes=10)
    return supernet_of(built, device), (random_batch if batch == "random" else generation)(built, count)


def sampled(space: Space, genotypes: Sequence[Genotype], count: int) -> list[Genotype]:
    """The middles of as many equal parts, in the order of multiply-accumulates."""
    in_order = sorted(genotypes, key=lambda genotype: cost(space.decode(genotype)).macs)
    return [in_order[(2 * i + 1) * len(in_order) // (2 * count)] for i in range(count)]


def rows(space: str, batch: str, device: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    supernet, genotypes = prepared(space, batch, args.candidates, device)
    case = f"{space} {batch} {len(genotypes)} candidates"

    def row(
        metric: str,
        value: float,
        unit: str,
        baseline: str = "",
        other: float | None = None,
        spread: float = 0.0,
        inverse: bool = False,
    ) -> dict[str, Any]:
        ratio = None if other is None else round(other / value if inverse else value / other, 3)
        return {
            "case": case, "metric": metric, "value": float(f"{value:.5g}"), "unit": unit,
            "baseline": baseline, "baseline_value": None if other is None else float(f"{other:.5g}"),
            "ratio": ratio, "spread": float(f"{spread:.3g}"),
        }  # fmt: skip

    program = merge([simplify(supernet.space.decode(g)) for g in genotypes])
    yield row("nodes", len(program.values), "prims", "one by one", program.unmerged, inverse=True)
    chosen = sampled(supernet.space, genotypes, args.sample)
    eager, compiled = one_by_one(supernet, DATA, device), one_by_one(supernet, DATA, device, compiled=True)
    exact = [eager(genotype) for genotype in chosen]  # which warms it up
    found = {tuple(g): e.loss for g, e in zip(chosen, merged(supernet, chosen, DATA), strict=True)}
    errors = [abs(found[g] - loss) / abs(loss) for g, loss in zip(chosen, exact, strict=True)]
    times: dict[str, list[float]] = {"merged": [], "eager": []}
    for _ in range(args.rounds):
        all_of_them: list[Evaluation] = []
        times["merged"].append(seconds(lambda: all_of_them.extend(merged(supernet, genotypes, DATA)), device) / len(genotypes))  # noqa: B023
        times["eager"].append(seconds(lambda: [eager(g) for g in chosen], device) / len(chosen))
        losses = {tuple(g): e.loss for g, e in zip(genotypes, all_of_them, strict=True)}
        errors += [abs(losses[g] - loss) / abs(loss) for g, loss in zip(chosen, exact, strict=True)]
    error = float(np.max(errors))  # not a number if one of them is none
    yield row("loss_error", error, "relative to eager")
    if not error <= TOLERANCE:
        return
    if args.compiled:
        middle = sampled(supernet.space, genotypes, args.compiled)
        times["compile"] = [seconds(lambda g=g: compiled(g), device) for g in middle]  # type: ignore[misc]
    rate = {name: 1 / statistics.median(values) for name, values in times.items()}
    spread = max(times["merged"]) / min(times["merged"]) - 1
    for name in times:
        if name != "merged":
            yield row("speed", rate["merged"], "candidates/s", name, rate[name], spread)
    if args.memory:
        if device == "cpu":
            peaks = [peak_mib(space, batch, name, len(genotypes)) for name in ("merged", "eager")]
        else:
            peaks = [cuda_peak_mib(lambda: merged(supernet, genotypes, DATA)), cuda_peak_mib(lambda: eager(chosen[0]))]
        yield row("peak_memory", peaks[0], "MiB", "eager", peaks[1], inverse=True)


def at_least_one(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--space", choices=tuple(SPACES), nargs="+", default=tuple(SPACES))
    parser.add_argument("--batch", choices=("random", "evolution"), nargs="+", default=("random", "evolution"))
    parser.add_argument("--candidates", type=at_least_one, default=256)
    parser.add_argument("--sample", type=at_least_one, default=6, help="candidates that are scored one by one")
    parser.add_argument("--compiled", type=int, default=1, help="candidates that are compiled one by one")
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    add_save(parser)
    parser.add_argument("--memory-of", choices=("merged", "eager"), help=argparse.SUPPRESS)  # what peak_mib starts
    args = parser.parse_args()
    if args.sample > args.candidates:
        parser.error("--sample takes at most as many as there are candidates")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if args.memory_of:
        print(memory_of(args.space[0], args.batch[0], args.memory_of, args.candidates))
        return
    out = Output(
        "candidate_evaluation", args.save, f"candidate_evaluation_{args.device}", device=device_name(args.device),
        torch=torch.__version__,
    )  # fmt: skip
    wrong = []
    for space in args.space:
        for batch in args.batch:
            for row in rows(space, batch, args.device, args):
                out.write(row)
                if row["metric"] == "loss_error" and not row["value"] <= TOLERANCE:
                    wrong.append(row["case"])
    if wrong:
        raise SystemExit(f"losses differ by more than {TOLERANCE} from one by one, so no times are given: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
