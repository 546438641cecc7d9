"""How long does one training step of the DARTS search network take, against stock PyTorch, and with how much memory?

    python -m benchmarks.supernet_step --device cpu|cuda [--batch 64] [--dtype float32] [--rounds 30] [--save]

A step is forward and backward over weights and alphas: C=16, 8 cells, 4 nodes, 32x32 images. Ours and the stock
variants start from the same weights and see the same batch. Loss and gradients are checked against float64 before
anything is timed: ours may err at most twice as much as stock PyTorch in the same precision. Then the variants run in
turn, round after round, and each figure is the median over the rounds; `spread` is the distance between the quartiles.
On a GPU a step is launched while the device is still busy, as in a training loop: its time is the device's.
`ratio` is stock over ours.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.native_darts import NativeCell, native_network, packed
from benchmarks.output import Output, add_save, device_name
from benchmarks.resident import growth_mib
from benchmarks.stock_darts import MixedOp, Network, channels_last

OURS = {"cpu": ("ours",), "cuda": ("ours", "ours-graph")}
STOCK = {"cpu": ("eager", "eager-channels-last"), "cuda": ("eager", "eager-graph", "region-graph")}
CHECK_BATCH = 2
# Rounding flips a ReLU or the maximum of a pool now and then, in stock PyTorch as in ours. One flip among the elements
# of a state moves a gradient by about one over the square root of their number; within three flips neither is better.
FLOOR = {"loss": 1e-5, "gradients": 3 * (CHECK_BATCH * 16 * 32 * 32) ** -0.5}
# The device is kept busy for about 2 ms while a step is launched, as it is in a training loop by the step before: otherwise
# launching a graph of a thousand nodes counts as its time.
LAUNCH_AHEAD = 4_000_000  # cycles
Step = Callable[[], Tensor]


def build(variant: str, batch: int, device: str, dtype: torch.dtype, size: int = 32, seed: int = 0) -> tuple[Network, Step]:
    """A variant's network, and its step, which returns the loss and leaves gradients. bfloat16 means autocast."""
    torch.manual_seed(seed)
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    net = Network()
    if variant.startswith("ours"):
        net = native_network(net, lambda: Network(NativeCell))
    net = net.to(device, parameters)
    rng = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(batch, 3, size, size, generator=rng).to(device, parameters)
    labels = torch.randint(10, (batch,), generator=rng).to(device)
    if (variant.startswith("ours") and device == "cpu") or "channels-last" in variant:  # what each kernel prefers
        net = channels_last(net)
        x = x.contiguous(memory_format=torch.channels_last)
    if "region" in variant:
        torch._dynamo.config.recompile_limit = 128
        for module in net.modules():
            if isinstance(module, MixedOp):
                module.compile()

    def step() -> Tensor:
        net.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(net(x).float() if dtype == torch.bfloat16 else net(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return net, step


def captured(step: Step) -> Step:
    """The step as one CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    # The graph works in the memory of its network and batch; holding `step` keeps them as long as the graph.
    def replay(step: Step = step) -> Tensor:
        graph.replay()
        return loss

    return replay


def errors(device: str, dtype: torch.dtype, seeds: int = 3) -> dict[str, float]:
    """Relative errors against stock in float64, of the loss and of all gradients together; medians over the seeds."""

    def outcome(variant: str, dtype: torch.dtype, seed: int) -> tuple[float, dict[str, Tensor]]:
        net, step = build(variant, CHECK_BATCH, device, dtype, seed=seed)
        loss = float(step())
        if variant == "eager":
            return loss, packed(net, lambda weight: weight.grad)
        return loss, {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        true_loss, truth = outcome("eager", torch.float64, seed)
        norm = sum(float(g.square().sum()) for g in truth.values()) ** 0.5
        for variant in ("ours", "eager"):
            loss, gradients = outcome(variant, dtype, seed)
            distance = sum(float((gradients[name].double() - g).square().sum()) for name, g in truth.items()) ** 0.5
            found.setdefault(f"{variant} loss", []).append(abs(loss - true_loss) / abs(true_loss))
            found.setdefault(f"{variant} gradients", []).append(distance / norm)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    return {name: statistics.median(values) for name, values in found.items()}


def timed(steps: dict[str, Step], rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of every variant in every round, the variants in turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            if device == "cuda":
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                torch.cuda._sleep(LAUNCH_AHEAD)
                begin.record()
                step()
                end.record()
                torch.cuda.synchronize()
                times[name].append(begin.elapsed_time(end))
            else:
                start = time.perf_counter()
                step()
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def kernels(step: Step) -> int:
    """Kernels, copies and fills that one step puts on the device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch._C._autograd.DeviceType.CUDA for event in profile.events())


def cpu_memory_mib(variant: str, batch: int) -> float:
    """Peak growth of a fresh process's resident memory over two steps, after a small step has loaded all libraries."""
    module = [sys.executable, "-m", "benchmarks.supernet_step"]
    command = [*module, "--device", "cpu", "--batch", str(batch), "--memory-of", variant]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def memory_of(variant: str, batch: int) -> float:
    build(variant, 2, "cpu", torch.float32, size=8)[1]()
    step = build(variant, batch, "cpu", torch.float32)[1]
    return growth_mib(lambda: (step(), step()))


def case_rows(device: str, batch: int, dtype: torch.dtype, rounds: int, stock: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    case = f"{device} {str(dtype).removeprefix('torch.')} batch {batch}"

    def row(
        ours: str, metric: str, value: float, unit: str, stock: str, stock_value: float, spread: float = 0.0
    ) -> dict[str, Any]:
        return {
            "case": f"{case} {ours}", "metric": metric, "value": float(f"{value:.5g}"),
            "unit": unit, "baseline": stock, "baseline_value": float(f"{stock_value:.5g}"),
            "ratio": round(stock_value / value, 2) if value else None, "spread": float(f"{spread:.3g}"),
        }  # fmt: skip

    error = errors(device, dtype)
    for what, floor in FLOOR.items():
        mine, theirs = error[f"ours {what}"], error[f"eager {what}"]
        yield row("ours", f"{what}_error", mine, "relative to float64", "eager", theirs)
        if not mine <= max(2 * theirs, floor):
            raise SystemExit(f"{case}: {what} err by {mine:.2e}, over {2 * theirs:.2e}, twice stock: not timed")

    variants = OURS[device] + stock
    steps, memory, launches = {}, {}, {}
    for name in variants:
        if device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step = build(name, batch, device, dtype)[1]
            for _ in range(3):
                step()
            launches[name] = float(kernels(step))
            steps[name] = captured(step) if "graph" in name else step
            torch.cuda.synchronize()
            memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        else:
            memory[name] = cpu_memory_mib(name, batch)
            steps[name] = build(name, batch, device, dtype)[1]
    timed(steps, 5 if device == "cuda" else 1, device)
    times = timed(steps, rounds, device)

    for ours in OURS[device]:
        low, _, high = statistics.quantiles(times[ours], n=4)
        for baseline in stock:
            medians = statistics.median(times[ours]), statistics.median(times[baseline])
            yield row(ours, "step", medians[0], "ms", baseline, medians[1], high - low)
            yield row(ours, "step_fastest", min(times[ours]), "ms", baseline, min(times[baseline]))
            yield row(ours, "peak_memory", memory[ours], "MiB", baseline, memory[baseline])
            if device == "cuda":
                yield row(ours, "launches", launches[ours], "kernels", baseline, launches[baseline])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--batch", type=int, nargs="+", help="default 16 on the CPU, 64 and 256 on CUDA")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), nargs="+", help="default all, on the CPU float32")
    parser.add_argument("--stock", nargs="+", help="which stock variants; default all: region-graph warms up for minutes")
    parser.add_argument("--rounds", type=int, help="default 7 on the CPU, 30 on CUDA")
    parser.add_argument("--threads", type=int, help="of the CPU; default what PyTorch chooses")
    add_save(parser)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # what cpu_memory_mib starts
    args = parser.parse_args()
    cuda = args.device == "cuda"
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_of:
        print(memory_of(args.memory_of, args.batch[0]))
        return
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    stock = tuple(args.stock or STOCK[args.device])
    out = Output(
        "supernet_step", args.save, f"supernet_step_{args.device}", device=device_name(args.device), torch=torch.__version__
    )  # fmt: skip
    for dtype in args.dtype or (("float32", "bfloat16") if cuda else ("float32",)):
        for batch in args.batch or ((64, 256) if cuda else (16,)):
            for row in case_rows(args.device, batch, getattr(torch, dtype), args.rounds or (30 if cuda else 7), stock):
                out.write(row)


if __name__ == "__main__":
    main()
