"""The run folder as files, and the tables and progress that people read."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from hwnas.errors import UserError
from hwnas.ir.op import PlacedOp
from hwnas.ir.simplify import simplify
from hwnas.ir.tensor import TensorSpec
from hwnas.latency.measure import Measurement, summarize
from hwnas.lower.cost import cost
from hwnas.ops.conv_bn import ConvBn
from hwnas.ops.pool import Pool
from hwnas.report.progress import silent, watch
from hwnas.report.run import Attempt, Config, Input, Predicted, Quality, Report, RunFolder
from hwnas.report.tables import arch_table, measurement_table, profile_table, report_lines
from hwnas.spaces import make_space

CONFIG = Config(
    space="chain", space_fingerprint="f", data="digits", data_fingerprint="d", size=None, limit=None,
    device="cpu", budget={"latency_ms": 2.0},
    strategy="random", predictor="macs", evaluations=3, supernet_epochs=1, sampling="uniform", epochs=1, inherit=False, seed=0,
)  # fmt: skip
MEASURED = Measurement(
    latency_ms=1.5, median_ms=1.6, p90_ms=1.7, iqr_ms=0.1, blocks=9, runs=9, error=0.0, stable=True, steal=0.0
)


def report(**changes):
    values = {
        "succeeded": True, "config": CONFIG, "key": "k", "choices": {}, "macs": 12_345, "params": 678, "peak_bytes": 910,
        "predicted": None, "measured": MEASURED, "fingerprint": {}, "test": Quality(accuracy=0.875, macro_f1=0.8123, loss=1.0),
        "validation": Quality(accuracy=0.5, macro_f1=0.5, loss=1.0), "trained_epochs": 1, "onnx_max_error": 1e-7,
        "finalists": [], "pareto": [],
        "input": Input(dims=[1, 8, 8], mean=[0.0], std=[1.0], classes=["a", "b"]),
        "evaluated": 3, "seconds": {"a": 1.5, "b": 2.5}, "versions": {},
    }  # fmt: skip
    return Report(**{**values, **changes})


def printed(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def cells(text: str, name: str) -> list[str]:
    (row,) = [line for line in text.splitlines() if f" {name} " in line]
    return [cell.strip() for cell in row.strip("│┃ ").split("│")]


def test_config_and_report_are_read_back(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(CONFIG, resume=False)
    assert folder.read_config() == CONFIG
    with pytest.raises(UserError, match="an unfinished run"):
        folder.read_report()
    predicted = Predicted(
        latency_ms=1 / 3, low_ms=0.3, high_ms=0.4, predictor="macs", networks=9, mape=0.1, within_10_percent=0.5, spearman=0.9,
        retest_error=None,
    )  # fmt: skip
    whole = report(predicted=predicted)
    folder.report.write_text(whole.model_dump_json(indent=2))
    assert folder.read_report() == whole


@pytest.mark.parametrize(
    "damage",
    [lambda t: "", lambda t: t[:50], lambda t: "[]", lambda t: t.replace('"seed"', '"sead"'), lambda t: t.replace("3", '"x"')],
)
def test_a_damaged_config_is_refused_in_one_line(tmp_path, damage):
    folder = RunFolder(tmp_path / "run")
    folder.start(CONFIG, resume=False)
    folder.config.write_text(damage(folder.config.read_text()))
    for door in (folder.read_config, lambda: folder.start(CONFIG, resume=True)):
        with pytest.raises(UserError) as caught:
            door()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", [f for f in Config.model_fields if f != "budget"])
def test_every_field_of_the_question_counts(tmp_path, field):
    folder = RunFolder(tmp_path / "run")
    folder.start(CONFIG, resume=False)
    folder.start(CONFIG, resume=True)
    before = getattr(CONFIG, field)
    other = not before if isinstance(before, bool) else f"{before}x" if isinstance(before, str) else (before or 0) + 1
    with pytest.raises(UserError, match=f"another {field.replace('_', ' ')}"):
        folder.start(CONFIG.model_copy(update={field: other}), resume=True)
    assert folder.read_config() == CONFIG


def test_the_lines_say_whether_the_budget_was_kept():
    text = "\n".join(report_lines(report()))
    for part in ("2 ms on cpu: kept", "1.5000 ms", "median 1.6000", "p90 1.7000", "87.50%", "0.8123", "12.35 kMACs",
                 "678 params", "910 B", "3 architectures", "1.0e-07", "4 s"):  # fmt: skip
        assert part in text
    assert "tried" not in text
    tried = [
        Attempt(key=k, genotype=[], search_accuracy=0.0, predicted_ms=None, measured_ms=ms, exceeds_by=max(0.0, ms / 2 - 1))
        for k, ms in (("one", 2.5), ("two", 3.0), ("fits", 1.9))
    ]
    text = "\n".join(report_lines(report(succeeded=False, finalists=tried)))
    assert "MISSED" in text
    assert "one 2.5000 ms, 25.0% over; two 3.0000 ms, 50.0% over" in text
    assert "fits" not in text


def test_measurements_as_a_table():
    noisy = summarize([1.0, 2.0, 3.0, 4.0, 5.0], 7, True, 0.0)
    quiet = replace(summarize([1.0, 1.001, 1.002, 1.01, 1.02], 7, True, 0.0), retest=0.012)
    text = printed(measurement_table({"m": noisy, "q": quiet}))
    assert cells(text, "m") == ["m", "2.0000", "3.0000", "2.0000", "4.6000", "5", "", "refused"]
    assert cells(text, "q") == ["q", "1.0010", "1.0020", "0.0090", "1.0160", "5", "1.2%", "stable"]


def test_a_profile_as_a_table():
    spec = (TensorSpec((2, 4, 4)),)
    times = {PlacedOp(ConvBn(2), spec): 0.010, PlacedOp(ConvBn(3), spec): 0.030, PlacedOp(ConvBn(4), spec): 0.020,
             PlacedOp(Pool("avg"), spec): 0.040}  # fmt: skip
    text = printed(profile_table("t", times))
    assert cells(text, "conv_bn") == ["conv_bn", "3", "20.0", "10.0 to 30.0", "60%"]
    assert cells(text, "pool") == ["pool", "1", "40.0", "40.0 to 40.0", "40%"]


def test_an_arch_as_a_table_sums_up_to_its_cost():
    space = make_space("mobilenet(input=(1,8,8), classes=3, stages=((8,2,2),), stem=8, first=8, head=16)")
    arch = simplify(space.decode((0,) * len(space.choices)))
    text = printed(arch_table("t", arch))
    rows = [cells(text, n.name) for n in arch.nodes]
    assert sum(int(r[3].replace(",", "")) for r in rows) == cost(arch).macs
    assert sum(int(r[4].replace(",", "")) for r in rows) == cost(arch).params
    assert [r[1] for r in rows] == [str(n.op) for n in arch.nodes]


def test_progress_is_quiet_where_there_is_no_terminal():
    console = Console(file=io.StringIO(), force_terminal=False)
    with watch(console) as tell:
        assert tell is silent
        tell("phase", 1, 2, "note")
    assert console.file.getvalue() == ""


def test_progress_on_a_terminal_shows_phase_count_and_note():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with watch(console) as tell:
        tell("supernet", 1, 4, "loss 2.5")
        tell("supernet", 4, 4, "loss 1.5")
        tell("search", 2, 7, "accuracy 0.5")
    text = console.file.getvalue()
    for part in ("supernet", "4/4", "loss 1.5", "search", "2/7", "accuracy 0.5"):
        assert part in text


def test_the_config_is_readable_json(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(CONFIG, resume=False)
    assert json.loads(folder.config.read_text()) == CONFIG.model_dump()
