"""What is reported of latency predictors: tables for people, and the report that lies beside a predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from hwnas.latency.predictor import PredictorError
from hwnas.latency.reconcile import Reconciliation
from hwnas.report.tables import table

ERROR_COLUMNS = ("mean error", "within 5 %", "within 10 %", "rank correlation", "in 90 % interval")


def error_cells(error: PredictorError) -> tuple[str, ...]:
    rank = "" if error.spearman is None else f"{error.spearman:.4f}"
    coverage = "" if error.coverage is None else f"{error.coverage:.0%}"
    return f"{error.mape:.2%}", f"{error.within_5_percent:.0%}", f"{error.within_10_percent:.0%}", rank, coverage


def error_table(title: str, errors: Mapping[str, PredictorError]) -> Table:
    rows = [(name, *error_cells(error)) for name, error in errors.items()]
    return table(title, ("predictor", *ERROR_COLUMNS), rows)


def reconciliation_rows(found: Reconciliation) -> list[tuple[str, str, str]]:
    """What, ms, and share of the end-to-end time."""
    parts = [
        ("sum of ops, each by itself", found.isolated_ms),
        ("less calls of the runtime that one run does not make", -found.calls_ms),
        (f"ops in their places, {found.saved_kernels:.1f} kernels fewer", found.in_place_ms),
        ("end to end", found.end_to_end_ms),
    ]
    return [(what, f"{ms:.4f}", f"{ms / found.end_to_end_ms:.1%}") for what, ms in parts]


def kind_rows(found: Reconciliation) -> list[tuple[str, str, str]]:
    """Op kind, ms by itself, and share of all ops."""
    total = sum(found.by_kind.values()) or 1.0
    return [(kind, f"{ms:.4f}", f"{ms / total:.1%}") for kind, ms in found.by_kind.items()]


def reconciliation_table(found: Reconciliation) -> Table:
    title = f"Where the time of {found.networks} networks goes, mean ms"
    return table(title, ("", "ms", "share"), [*reconciliation_rows(found), *kind_rows(found)])


def predictor_report(
    device: str,
    fingerprint: Mapping[str, str],
    spaces: Sequence[str],
    left_out: Mapping[str, PredictorError],
    held_out: Mapping[str, PredictorError],
    reconciliation: Reconciliation | None,
) -> str:
    """Markdown: what was fitted to what, how far it is off on networks it never saw, and where the time goes."""
    chosen, judged = next(iter(held_out.items()))
    fitted = next(iter(left_out.values())).networks
    again = "not known" if judged.retest is None else f"{judged.retest:.2%}"
    unseen = [(name, *error_cells(error)) for name, error in held_out.items()]
    seen = [(name, *error_cells(error)[:-1]) for name, error in left_out.items()]
    lines = [
        f"# Latency on {device}",
        "",
        f"`{chosen}`, chosen by its error on networks left out of {fitted}, then judged on {judged.networks} that had no"
        f" part in fitting or choosing. Two measurements of one network differ by {again}; an error below it is no gain.",
        "",
        *(f"- space `{space}`" for space in spaces),
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in fingerprint.items()),
        "",
        "## On networks never seen",
        "",
        *_markdown(("predictor", *ERROR_COLUMNS), unseen),
        "",
        f"## On each of {fitted} networks, left out of the fit",
        "",
        *_markdown(("predictor", *ERROR_COLUMNS[:-1]), seen),
        "",
    ]
    if reconciliation:
        lines += [
            "## Where the time goes", "", f"Means over {reconciliation.networks} networks.", "",
            *_markdown(("", "ms", "share"), reconciliation_rows(reconciliation)), "",
            *_markdown(("op by itself", "ms", "share of ops"), kind_rows(reconciliation)), "",
        ]  # fmt: skip
    return "\n".join(lines)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]
