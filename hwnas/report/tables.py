"""Tables for people, with rich."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from hwnas.ir.arch import Arch
from hwnas.ir.op import PlacedOp
from hwnas.latency.measure import Measurement
from hwnas.lower.cost import op_macs_params
from hwnas.report.run import Report
from hwnas.search.budget import describe


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """The first column to the left, numbers to the right."""
    result = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        result.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        result.add_row(*row)
    return result


def profile_table(title: str, ops: Mapping[PlacedOp, float]) -> Table:
    """Per op kind: how many, the latency of the median one, the range, and the share of the total. `ops`: in ms."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for placed, ms in ops.items():
        kinds[placed.op.name()].append(ms)
    total = sum(ops.values())
    rows = []
    for kind, found in sorted(kinds.items(), key=lambda item: -sum(item[1])):
        times = sorted(found)
        middle, least, most = (f"{1e3 * ms:.1f}" for ms in (times[len(times) // 2], times[0], times[-1]))
        rows.append((kind, str(len(times)), middle, f"{least} to {most}", f"{sum(times) / total:.0%}"))
    return table(title, ("op", "count", "median us", "range us", "share"), rows)


def measurement_table(measurements: Mapping[str, Measurement]) -> Table:
    rows = [
        (
            name, f"{m.latency_ms:.4f}", f"{m.median_ms:.4f}", f"{m.iqr_ms:.4f}", f"{m.p90_ms:.4f}", str(m.blocks),
            "" if m.retest is None else f"{m.retest:.1%}", m.verdict,
        )
        for name, m in measurements.items()
    ]  # fmt: skip
    return table("Latency in ms", ("model", "quiet", "median", "IQR", "p90", "n", "retest", "verdict"), rows)


def arch_table(title: str, arch: Arch) -> Table:
    """Node by node: op, output, multiply-accumulates and parameters."""
    rows = []
    for node in arch.nodes:
        macs, params = op_macs_params(arch.placed(node))
        rows.append((node.name, str(node.op), ",".join(map(str, arch.specs[node.name].dims)), f"{macs:,}", f"{params:,}"))
    return table(title, ("node", "op", "output", "MACs", "params"), rows)


def report_lines(report: Report) -> list[str]:
    """The answer in a few lines."""
    limits = ", ".join(describe(k, v) for k, v in report.config.budget.items())
    found = report.measured
    unstable = "" if found.stable else f"; UNSTABLE: lowest blocks {found.error:.1%} apart, {found.steal:.1%} of time stolen"
    lines = [
        f"budget    {limits}{' (p90)' if report.config.judge == 'p90' else ''} on {report.config.device}:"
        f" {'kept' if report.succeeded else 'MISSED'}",
        f"latency   {found.latency_ms:.4f} ms measured when quiet"
        f" (median {found.median_ms:.4f}, p90 {found.p90_ms:.4f}){unstable}",
    ]
    if report.predicted:
        p = report.predicted
        retest = "" if p.retest_error is None else f", retest error {p.retest_error:.1%}"
        lines.append(
            f"predicted {p.latency_ms:.4f} ms ({p.low_ms:.4f} to {p.high_ms:.4f}); held-out error {p.mape:.1%}"
            f" over {p.networks} networks{retest}"
        )
    lines += [
        f"accuracy  {report.test.accuracy:.2%} on the test split, macro F1 {report.test.macro_f1:.4f}"
        + (f"; {report.float32_test.accuracy:.2%} before it was quantised" if report.float32_test else ""),
        f"cost      {describe('macs', report.macs)}, {describe('params', report.params)},"
        f" peak {describe('peak_bytes', report.peak_bytes)}",
        f"searched  {report.evaluated} architectures; ONNX against torch {report.onnx_max_error:.1e};"
        f" {sum(report.seconds.values()):.0f} s in all",
    ]
    recipe = [f"{name.removeprefix('train.')} {value}" for name, value in report.choices.items() if name.startswith("train.")]
    if recipe:
        lines.append("recipe    " + ", ".join(recipe))
    if not report.succeeded:
        tried = [f"{a.key} {a.measured_ms:.4f} ms, {a.exceeds_by:.1%} over" for a in report.finalists if a.exceeds_by > 0]
        lines.append("tried     " + "; ".join(tried))
    return lines
