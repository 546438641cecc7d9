"""The measuring protocol with a clock and sessions that the test controls: no real time passes."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import HERE, World

from hwnas.errors import UserError
from hwnas.latency.connection import Lost
from hwnas.latency.measure import Failure, Measurement, canary_model, measure, summarize
from hwnas.latency.session import Session

CANARY = canary_model()


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr("hwnas.latency.target.PAUSES", (0, 0))

    def go(cost, models=(b"a", b"b"), steal=None, trouble=None, **arguments):
        world = World(cost, **({"steal": steal} if steal else {}), **({"trouble": trouble} if trouble else {}))
        return measure(list(models), HERE, clock=lambda: world.now, target=world.target(), **arguments), world

    return go


def steady(model: bytes, number: int, now: float) -> float:
    return {CANARY: 2e-4, b"a": 5e-4, b"b": 3e-3}[model]


def test_steady_models_take_the_least_number_of_rounds(run):
    found, world = run(steady, min_rounds=7, seconds=60)
    a, b = found.models
    assert a.blocks == b.blocks == found.canary.blocks == 7
    assert a.latency_ms == pytest.approx(0.5, rel=1e-9)
    assert b.latency_ms == pytest.approx(3.0, rel=1e-9)
    assert found.canary.latency_ms == pytest.approx(0.2, rel=1e-9)
    # blocks of at least a millisecond: two runs of a, one of b, five of the canary
    assert 7 * 2 <= a.runs <= 7 * 3
    assert b.runs == 7
    assert 7 * 5 <= found.canary.runs <= 7 * 6
    assert all(m.stable and m.steal == 0 for m in (a, b, found.canary))
    assert a.error == pytest.approx(0, abs=1e-9)
    assert world.now - 100 < 1


def test_the_order_of_the_models_is_that_of_the_arguments_and_rounds_are_interleaved(run):
    found, world = run(steady, models=(b"b", b"a", b"b"), min_rounds=12, seconds=60)
    assert [round(m.latency_ms, 6) for m in found.models] == [3.0, 0.5, 3.0]
    # Within the rounds no model waits for more than the two others and the canary.
    tail = world.order[-400:]
    last = {}
    runs = [m for i, m in enumerate(tail) if i == 0 or tail[i - 1] != m]
    for i, m in enumerate(runs):
        assert i - last.get(m, i) <= 7
        last[m] = i


def test_warm_up_is_not_counted_and_lasts_until_the_trend_is_flat(run):
    """The first 30 runs get faster by a tenth each; blocks must hold none of them."""

    def cost(model: bytes, number: int, now: float) -> float:
        return steady(model, number, now) * (1 + 1.1 ** (40 - number) if number < 30 else 1)

    found, _ = run(cost, min_rounds=10, seconds=60)
    a, b = found.models
    assert a.latency_ms == pytest.approx(0.5, rel=1e-9)
    assert b.latency_ms == pytest.approx(3.0, rel=1e-9)
    assert a.iqr_ms == pytest.approx(0, abs=1e-9)


def test_a_model_that_never_settles_stops_at_the_limit_and_is_unstable(run):
    drawn = iter(1 + 0.02 * np.arange(10**6))

    def cost(model: bytes, number: int, now: float) -> float:
        return steady(model, number, now) * (float(next(drawn)) if model == b"b" else 1)

    told: list[float] = []
    found, world = run(cost, seconds=2.0, progress=told.append)
    a, b = found.models
    assert not b.stable
    assert b.error > 0.01
    assert a.stable
    assert 2.0 <= world.now - 100 <= 2.0 + 1.5  # one round over, and the warm-up before
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert all(0 <= t <= 1 for t in told)


def test_rounds_go_on_while_the_machine_is_slow_and_end_soon_after(run):
    """A neighbour for the first second: everything is 1.6 times slower. The quiet state is what counts."""

    def cost(model: bytes, number: int, now: float) -> float:
        return steady(model, number, now) * (1.6 if now < 101.0 else 1.0)

    found, world = run(cost, canary_ms=0.2, seconds=30)
    a, b = found.models
    assert a.latency_ms == pytest.approx(0.5, rel=1e-9)
    assert b.latency_ms == pytest.approx(3.0, rel=1e-9)
    assert a.stable
    assert b.stable
    assert a.median_ms == pytest.approx(0.8, rel=1e-9)  # the median follows the neighbour
    assert world.now - 101.0 < 0.1


def test_a_canary_that_stays_slow_makes_everything_unstable(run):
    found, world = run(steady, canary_ms=0.2 / 1.05, seconds=1.5)
    assert not any(m.stable for m in found.models)
    assert all(m.error <= 0.01 for m in found.models)
    assert world.now - 100 >= 1.5


def test_a_canary_within_its_tolerance_is_quiet(run):
    found, _ = run(steady, canary_ms=0.2 / 1.025, seconds=60)
    assert all(m.stable for m in found.models)
    assert found.models[0].blocks == 10


@pytest.mark.parametrize(
    ("share", "stable", "verdict"), [(0.04, True, "stable"), (0.06, False, "warn"), (0.3, False, "refused")]
)
def test_stolen_time(run, share, stable, verdict):
    found, _ = run(steady, steal=lambda now: (round(1e6 * share * now), round(1e6 * now)))
    assert [m.steal for m in found.models] == [pytest.approx(share, rel=1e-3)] * 2
    assert [m.stable for m in found.models] == [stable] * 2
    assert [m.verdict for m in found.models] == [verdict] * 2


def test_slow_models_still_get_three_rounds(run):
    """Models so slow that the first round takes all the time: the estimate needs three blocks all the same."""

    def cost(model: bytes, number: int, now: float) -> float:
        return 0.5

    found, _ = run(cost, seconds=0.1)
    (a, _) = found.models
    assert a.blocks == 3
    assert a.latency_ms == pytest.approx(500)
    assert Measurement.from_json(json.loads(json.dumps(a.to_json(), allow_nan=False))).latency_ms == pytest.approx(500)


def test_two_turns_give_the_retest_error(run):
    """A machine that is 3 % slower in the second half: each turn agrees with itself, the turns do not agree."""

    def cost(model: bytes, number: int, now: float) -> float:
        return steady(model, number, now) * (1.03 if model == b"b" and world_is_late(now) else 1.0)

    def world_is_late(now: float) -> bool:
        return now > 100.4

    found, world = run(cost, turns=2, min_rounds=40, seconds=60)
    a, b = found.models
    assert world.connections == 2
    assert a.retest == pytest.approx(0, abs=1e-9)
    assert b.retest == pytest.approx(0.03, rel=1e-6)
    assert a.verdict == "stable"
    assert b.verdict == "warn"
    assert b.doubts == ["retest error 3.00%, limit 2%"]
    assert a.blocks == b.blocks == 80
    assert b.latency_ms == pytest.approx(3.0)
    assert run(cost, seconds=60)[0].models[1].retest is None


def test_blocks_that_the_scheduler_interrupted_are_timed_again(run):
    """Two runs of `b` in three are interrupted and take twice as long: the third try of each block is whole."""
    worlds = []

    def cost(model: bytes, number: int, now: float) -> float:
        interrupted = model == b"b" and number % 3 > 0
        worlds[0].interruptions += interrupted
        return steady(model, number, now) * (1 + interrupted)

    found, _ = run(cost, trouble=lambda world, request: worlds.append(world))
    _, b = found.models
    assert b.latency_ms == b.p90_ms == pytest.approx(3.0)
    worlds.clear()
    always, _ = run(lambda m, n, now: interrupt(worlds[0]) or steady(m, n, now), trouble=lambda w, request: worlds.append(w))
    assert always.models[1].latency_ms == pytest.approx(3.0)  # it gives up and takes what it gets


def interrupt(world: World) -> None:
    world.interruptions += 1


class TestTrouble:
    """Connections that break. Every block that was timed before still counts."""

    def test_a_lost_connection_costs_nothing_but_the_round(self, run):
        def trouble(world, request):
            if request["do"] == "round" and len([r for r in world.asked if r["do"] == "round"]) in (3, 9, 14):
                raise Lost("connection reset")

        found, world = run(steady, min_rounds=12, trouble=trouble)
        assert world.connections == 4
        assert [m.latency_ms for m in found.models] == pytest.approx([0.5, 3.0])
        assert all(m.stable for m in found.models)
        assert found.models[0].blocks >= 12
        assert len([r for r in world.asked if r["do"] == "put"]) == 3  # sent once for all connections

    @pytest.mark.parametrize("step", ["open", "round"])
    def test_the_model_that_breaks_connections_is_found_and_the_others_go_on(self, run, step):
        """`a` ends the agent whenever it is loaded, or whenever it is timed, alone or in company."""

        def trouble(world, request):
            bad = next(slot for slot, model in enumerate([CANARY, b"b", b"a", b"b"]) if model == b"a")
            if request["do"] == step and (request.get("slot") == bad or bad in request.get("slots", [])):
                raise Lost("the agent ended")

        found, world = run(steady, models=(b"b", b"a", b"b"), trouble=trouble)
        left, bad, right = found.outcomes
        assert bad == Failure("the agent ended")
        assert left.latency_ms == right.latency_ms == pytest.approx(3.0)
        assert left.stable
        assert 4 <= world.connections <= 5
        with pytest.raises(UserError, match="the agent ended"):
            _ = found.models

    def test_a_refused_model_costs_no_connection(self, run):
        def cost(model, number, now):
            if model == b"a":
                raise UserError("the model has operators that cannot run")
            return steady(model, number, now)

        found, world = run(cost)
        assert found.outcomes[0] == Failure("the model has operators that cannot run")
        assert found.outcomes[1].stable
        assert world.connections == 1

    def test_a_device_that_is_gone_leaves_what_was_timed(self, run):
        def trouble(world, request):
            if len([r for r in world.asked if r["do"] == "round"]) >= 6:
                raise Lost("no route to host")

        found, _ = run(steady, trouble=trouble)
        assert [m.blocks for m in found.models] == [5, 5]
        assert [m.latency_ms for m in found.models] == pytest.approx([0.5, 3.0])
        assert not any(m.stable for m in found.models)

    @pytest.mark.parametrize("moment", ["hello", "open", "round"])
    def test_a_device_that_never_works_is_one_error(self, run, moment):
        def trouble(world, request):
            if request["do"] == moment:
                raise Lost("no route\nto host")

        with pytest.raises(UserError, match="no route to host") as caught:
            run(steady, trouble=trouble)
        assert "\n" not in str(caught.value)

    def test_a_device_that_changes_meanwhile_is_refused(self, run, monkeypatch):
        from wire import Wire

        ask = Wire.ask

        def changing(self, seconds, blob=b"", /, **request):
            if request["do"] == "round" and self.world.connections == 1:
                raise Lost("rebooted")
            reply = ask(self, seconds, blob, **request)
            return {"fingerprint": {"runtime": str(self.world.connections)}} if request["do"] == "hello" else reply

        monkeypatch.setattr(Wire, "ask", changing)
        with pytest.raises(UserError, match="changed while"):
            run(steady)


@given(st.lists(st.floats(0.01, 1e4), min_size=3, max_size=60), st.integers(1, 9))
def test_summarize_against_the_standard_library(blocks, repeats):
    found = summarize(blocks, repeats, True, 0.01)
    lowest = sorted(blocks)[:3]
    assert found.latency_ms == pytest.approx(statistics.fmean(lowest), rel=1e-12)
    assert found.median_ms == pytest.approx(statistics.median(blocks), rel=1e-12)
    q1, _, q3 = statistics.quantiles(blocks, n=4, method="inclusive")
    assert found.iqr_ms == pytest.approx(q3 - q1, rel=1e-9, abs=1e-9)
    assert found.p90_ms == pytest.approx(statistics.quantiles(blocks, n=10, method="inclusive")[-1], rel=1e-9)
    assert found.blocks == len(blocks)
    assert found.runs == len(blocks) * repeats
    assert found.error == pytest.approx(lowest[2] / lowest[0] - 1, rel=1e-12)
    assert found.stable == (lowest[2] / lowest[0] - 1 <= 0.01)
    assert not summarize(blocks, repeats, False, 0.0).stable
    assert found.steal == 0.01


@pytest.mark.parametrize("blocks", [[2.0], [2.0, 2.0]])
def test_fewer_than_three_blocks_are_never_stable(blocks):
    found = summarize(blocks, 1, True, 0.0)
    assert found.latency_ms == 2.0
    assert not found.stable


def test_measurements_as_json():
    found = summarize([1.23456789, 1.24, 1.25, 2.0], 3, True, 0.0)
    again = Measurement.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again.blocks == found.blocks == 4
    assert again.runs == 12
    assert math.isclose(again.latency_ms, found.latency_ms, abs_tol=5e-7)
    for field in found.to_json():
        with pytest.raises(UserError, match=field):
            Measurement.from_json({k: v for k, v in found.to_json().items() if k != field})


def test_the_canary_is_the_same_for_ever():
    """Its text is pinned: another canary would make the canary_ms of stored profiles mean something else."""
    import onnx

    model = onnx.load_model_from_string(canary_model())
    assert [n.op_type for n in model.graph.node] == [
        *["Conv", "BatchNormalization", "Relu"] * 3, "GlobalAveragePool", "Flatten", "Gemm", "Gemm",
    ]  # fmt: skip
    assert 4_300_000 < len(canary_model()) < 4_500_000
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:] == [32, 16, 16]
    assert Session(canary_model(), HERE).predict(np.zeros((1, 32, 16, 16), np.float32)).shape == (1, 1024)
