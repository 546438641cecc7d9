"""Budget: limits that an architecture must keep: latency, multiply-accumulates, parameters, peak memory, or several at once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hwnas.errors import UserError

LATENCY = "latency_ms"
_UNITS = {
    "us": (LATENCY, 1e-3), "ms": (LATENCY, 1.0), "s": (LATENCY, 1e3),
    "macs": ("macs", 1.0), "kmacs": ("macs", 1e3), "mmacs": ("macs", 1e6), "gmacs": ("macs", 1e9),
    "params": ("params", 1.0), "kparams": ("params", 1e3), "mparams": ("params", 1e6), "gparams": ("params", 1e9),
    "b": ("peak_bytes", 1.0), "kb": ("peak_bytes", 1e3), "mb": ("peak_bytes", 1e6), "gb": ("peak_bytes", 1e9),
    "kib": ("peak_bytes", 1024.0), "mib": ("peak_bytes", 1024.0**2), "gib": ("peak_bytes", 1024.0**3),
}  # fmt: skip
_FORM = "write latency as 2ms or 500us, operations as 30MMACs, size as 1.5Mparams, peak memory as 512KB"


@dataclass(frozen=True)
class Budget:
    """The most that each metric may be. Metrics: latency_ms, macs, params, peak_bytes."""

    limits: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.limits:
            raise UserError("a budget needs at least one limit", remedy=_FORM)

    @classmethod
    def parse(cls, texts: str | Sequence[str]) -> Budget:
        """`2ms`, `2ms,30MMACs` or a sequence of such; of two limits on one metric the lower holds."""
        limits: dict[str, float] = {}
        parts = [p for text in ([texts] if isinstance(texts, str) else texts) for p in text.split(",")]
        for part in parts:
            match = re.fullmatch(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([a-z]*)\s*", part, re.IGNORECASE)
            if not match or not 0 < float(match[1]) < math.inf:
                raise UserError("a budget is a positive number with a unit", got=part, remedy=_FORM)
            if match[2].lower() not in _UNITS:
                raise UserError("a budget needs a unit" if not match[2] else "unknown unit of a budget", got=part, remedy=_FORM)
            metric, factor = _UNITS[match[2].lower()]
            limits[metric] = min(limits.get(metric, float("inf")), float(match[1]) * factor)
        return cls(limits)

    def violation(self, metrics: Mapping[str, float]) -> float:
        """By what share the worst limit is exceeded; 0 within the budget."""
        return max(0.0, max(metrics[name] / limit - 1 for name, limit in self.limits.items()))

    def __str__(self) -> str:
        return ", ".join(describe(name, limit) for name, limit in self.limits.items())


def describe(metric: str, value: float, round_up: bool = False) -> str:
    """A value with its unit, to four digits, as `Budget.parse` reads it. `round_up`: to a limit that the value keeps."""
    if metric == LATENCY:
        return f"{_four_digits(value, round_up)} ms"
    unit = {"macs": "MACs", "params": "params", "peak_bytes": "B"}[metric]
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{_four_digits(value / factor, round_up)} {prefix}{unit}"
    return f"{_four_digits(value, round_up)} {unit}"


def _four_digits(value: float, round_up: bool) -> str:
    text = f"{value:.4g}"
    if round_up and float(text) < value:
        digit = 10.0 ** (math.floor(math.log10(value)) - 3)
        text = f"{float(text) + digit:.4g}"
    return text
