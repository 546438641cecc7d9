"""Budgets: what is read, what is refused, and by how much a limit is exceeded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import UserError
from hwnas.search.budget import Budget, describe

GOOD = {
    "2ms": {"latency_ms": 2.0},
    "500us": {"latency_ms": 0.5},
    "500 US": {"latency_ms": 0.5},
    "0.25s": {"latency_ms": 250.0},
    "2.ms": {"latency_ms": 2.0},
    ".5ms": {"latency_ms": 0.5},
    "1e-1ms": {"latency_ms": 0.1},
    "2E+2us": {"latency_ms": 0.2},
    "30MMACs": {"macs": 30e6},
    "7macs": {"macs": 7.0},
    "1.5GMACs": {"macs": 1.5e9},
    "12kMACs": {"macs": 12e3},
    "1.5Mparams": {"params": 1.5e6},
    "900 params": {"params": 900.0},
    "3kparams": {"params": 3e3},
    "512KB": {"peak_bytes": 512e3},
    "512KiB": {"peak_bytes": 524288.0},
    "1MB": {"peak_bytes": 1e6},
    "1MiB": {"peak_bytes": 1048576.0},
    "2GB": {"peak_bytes": 2e9},
    "2GiB": {"peak_bytes": 2147483648.0},
    "100b": {"peak_bytes": 100.0},
    "2ms,30MMACs": {"latency_ms": 2.0, "macs": 30e6},
    " 2 ms , 1Mparams , 1KB ": {"latency_ms": 2.0, "params": 1e6, "peak_bytes": 1e3},
    "3ms,2000us": {"latency_ms": 2.0},
    "2000us,3ms": {"latency_ms": 2.0},
}
BAD = (
    "", " ", "2", "2.5", "ms", "-2ms", "0ms", "0.0ms", "2 m s", "2ms3", "two ms", "2ms,", ",2ms", "2ms,,3ms", "2 lightyears",
    "2MAC", "nanms", "infms", "1e999ms", "2ms;3ms", "+2ms", "2,5ms", "1e-999ms", ".ms", "0x2ms", "2ms\n3", "2e", "2e5",
)  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_what_is_read(text):
    assert dict(Budget.parse(text).limits) == pytest.approx(GOOD[text], rel=1e-15)


@pytest.mark.parametrize("text", BAD)
def test_what_is_refused_in_one_line(text):
    with pytest.raises(UserError) as caught:
        Budget.parse(text)
    assert "\n" not in str(caught.value)
    assert "2ms" in str(caught.value)  # how to write it


def test_a_number_without_unit_is_told_to_have_one():
    with pytest.raises(UserError, match="needs a unit; got '2'"):
        Budget.parse("2")


def test_several_texts_are_one_budget():
    assert Budget.parse(["2ms", "3ms,1Mparams"]) == Budget.parse("2ms,1Mparams")
    for nothing in ([], ()):
        with pytest.raises(UserError):
            Budget.parse(nothing)


METRICS = {"latency_ms": "ms", "macs": "macs", "params": "params", "peak_bytes": "b"}


@given(st.dictionaries(st.sampled_from(sorted(METRICS)), st.floats(1e-9, 1e15), min_size=1))
def test_what_is_written_in_full_is_read_back(limits):
    text = ",".join(f"{value!r}{METRICS[name]}" for name, value in limits.items())
    assert dict(Budget.parse(text).limits) == limits


@given(st.dictionaries(st.sampled_from(sorted(METRICS)), st.floats(1e-3, 1e11), min_size=1))
def test_what_people_read_is_read_back_to_four_digits(limits):
    assert dict(Budget.parse(str(Budget(limits))).limits) == pytest.approx(limits, rel=5.1e-4)


@given(st.text(max_size=12))
def test_any_text_is_a_budget_or_a_user_error(text):
    try:
        limits = Budget.parse(text).limits
    except UserError:
        return
    assert limits
    assert all(0 < v < float("inf") for v in limits.values())


@given(
    st.dictionaries(st.sampled_from(sorted(METRICS)), st.floats(1e-3, 1e9), min_size=1),
    st.lists(st.floats(0, 1e10), min_size=4, max_size=4),
)
def test_violation_in_closed_form(limits, values):
    metrics = dict(zip(METRICS, values, strict=True))
    found = Budget(limits).violation(metrics)
    over = {name: (metrics[name] - limits[name]) / limits[name] for name in limits if metrics[name] > limits[name]}
    assert (found == 0) == (not over)
    assert found == pytest.approx(max(over.values(), default=0.0), rel=1e-9, abs=1e-12)


def test_a_limit_may_be_met_exactly():
    assert Budget.parse("2ms").violation({"latency_ms": 2.0}) == 0
    assert Budget.parse("2ms").violation({"latency_ms": 2.0000001}) > 0
    assert Budget.parse("2ms").violation({"latency_ms": 3.0}) == 0.5


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("latency_ms", 0.0512345, "0.05123 ms"), ("macs", 999, "999 MACs"), ("macs", 1000, "1 kMACs"),
        ("macs", 3.21e7, "32.1 MMACs"),
        ("params", 2.5e9, "2.5 Gparams"), ("peak_bytes", 8192, "8.192 kB"), ("peak_bytes", 0, "0 B"),
    ],
)  # fmt: skip
def test_values_as_people_write_them(metric, value, text):
    assert describe(metric, value) == text
