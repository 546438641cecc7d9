"""The winner: a finalist trained, exported, verified and measured."""

from __future__ import annotations

import json
from dataclasses import dataclass

from hwnas.compile.finalists import exceeds
from hwnas.compile.run import Run
from hwnas.evaluation.training_choices import training_of
from hwnas.latency.measure import Measurement
from hwnas.latency.verify import verify
from hwnas.lower.onnx import to_onnx
from hwnas.lower.torch import ArchModule, to_torch
from hwnas.report.run import Attempt, Predicted, versions
from hwnas.supernet.train import Recipe, Trained, train_network


@dataclass(frozen=True)
class Winner:
    """A finalist after training. `difference`: of its exported model from torch."""

    attempt: Attempt
    network: ArchModule
    trained: Trained
    model: bytes
    difference: float
    measurement: Measurement


def train_finalist(run: Run, attempt: Attempt, predicted: Predicted | None) -> Winner:
    """With the hyper-parameters that its genotype asks for, if the search chose them too."""
    question, config, dataset = run.question, run.question.config, run.question.dataset
    genotype = tuple(attempt.genotype)
    arch = question.arch(genotype)
    recipe, augmentation = training_of(question.space, genotype, Recipe(epochs=config.epochs), dataset.augmentation)
    with run.phase("training"):
        network = to_torch(arch, question.weights(genotype) if config.inherit else None, config.seed)
        trained = train_network(
            network, dataset.search, augmentation, recipe, seed=config.seed,
            progress=lambda d, t, loss: run.watch("training", d, t, f"loss {loss:.3f}"),
        )  # fmt: skip
    model = to_onnx(arch, network.weights(), _metadata(run, predicted)).SerializeToString()
    difference = verify(model, network, dataset.test.split.images[:256])
    with run.phase("measuring"):
        (found,) = run.measure([model], "measuring")
    attempt = attempt.model_copy(update={"measured_ms": found.latency_ms, "exceeds_by": exceeds(run, arch, found)})
    return Winner(attempt, network, trained, model, difference, found)


def _metadata(run: Run, predicted: Predicted | None) -> dict[str, str]:
    """What a model carries about its origin, and what its user needs to feed it."""
    question = run.question
    facts = {
        "data": question.config.data, "device": question.device.name, "budget": str(question.budget),
        "seed": str(question.config.seed),
    }  # fmt: skip
    if predicted:
        facts["predicted_ms"] = f"{predicted.latency_ms:.6g}"
    facts["input"] = question.input().model_dump_json()
    facts["versions"] = json.dumps(versions())
    return {f"hwnas.{key}": value for key, value in facts.items()}
