"""How far off are the latency predictors, beside how far the same networks are off themselves when measured again?

    python -m benchmarks.predictor_error [--space SPACE ...] [--device cpu] [--profile FOLDER] [--networks 24] [--save]

Profiles what the profile lacks of each space, then prints the leave-one-out error of every predictor on whole networks; the
baseline of each row is the retest error, and `spread` the error that nine in ten networks stay under.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hwnas.latency.device import FOLDER, load_device
from hwnas.latency.predictor import make_predictor
from hwnas.latency.processor import processor
from hwnas.latency.profile import Profile, profile_space, retest_error
from hwnas.plugins import known
from hwnas.spaces import make_space

SPACES = (
    "mobilenet(input=(3,32,32),classes=10,stages=((16,2,2),(24,3,2),(48,3,2)),stem=16,first=8,head=128,widths=(0.75,1.0,1.25))",
    "nasbench201(cells=1)",
    "darts(channels=8,cells=3)",
    "chain(input=(1,28,28))",
)


def rows(space_text: str, profile: Profile, networks: int) -> Iterator[dict[str, Any]]:
    space = make_space(space_text)
    profile_space(profile, space, networks=networks)
    retest = retest_error(profile, space)
    for name in known("hwnas.latency.predictors"):
        predictor = make_predictor(name, profile, space)
        error = predictor.error(retest)
        (prediction,) = predictor.predict([profile.rows("network", space.fingerprint)[0].arch])
        yield {
            "benchmark": "predictor_error", "case": f"{space_text} {name}", "metric": "mape", "value": round(error.mape, 5),
            "unit": "share", "baseline": "retest", "baseline_value": retest, "ratio": retest and round(error.mape / retest, 3),
            "spread": round(prediction.high_ms / prediction.latency_ms - 1, 5), "networks": error.networks,
            "within_10_percent": error.within_10_percent, "spearman": error.spearman,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", action="append")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--networks", type=int, default=24)
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results with device and date")
    arguments = parser.parse_args()
    device = load_device(arguments.device)
    profile = Profile.open((arguments.profile or FOLDER / device.name) / "profile.jsonl", device)
    stamp = {"device": f"{processor()}, {device.name}", "date": datetime.date.today().isoformat()}
    for space in arguments.space or SPACES:
        for row in rows(space, profile, arguments.networks):
            line = json.dumps(row | stamp)
            print(line, flush=True)
            if arguments.save:
                results = Path(__file__).parent / "results" / f"predictor_error_{device.name}.jsonl"
                results.parent.mkdir(exist_ok=True)
                with results.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
