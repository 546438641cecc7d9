"""The winner: a finalist trained, exported, verified and measured."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from hwnas.compile.finalists import exceeds
from hwnas.compile.run import Run
from hwnas.data import Split
from hwnas.evaluation.training_choices import training_of
from hwnas.latency.device import Device
from hwnas.latency.measure import Measurement
from hwnas.latency.quantize import quantize_calibrated
from hwnas.latency.session import Session
from hwnas.latency.verify import verify
from hwnas.lower.onnx import to_onnx
from hwnas.lower.torch import ArchModule, to_torch
from hwnas.report.run import Attempt, Predicted, versions
from hwnas.supernet.evaluate import EVALUATION_BATCH
from hwnas.supernet.tally import Evaluation, Tally, look
from hwnas.supernet.train import Recipe, Trained, train_network

_CALIBRATING = 256  # training images that give a quantised model's ranges


@dataclass(frozen=True)
class Winner:
    """A finalist after training. `difference`: of its exported float32 model from torch.

    model: as the device runs it, in float32 or quantised. exported: in float32.
    """

    attempt: Attempt
    network: ArchModule
    trained: Trained
    model: bytes
    exported: bytes
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
    exported = to_onnx(arch, network.weights(), _metadata(run, predicted)).SerializeToString()
    difference = verify(exported, network, dataset.test.split.images[:256])
    model = exported
    if question.device.precision == "int8":
        model = quantize_calibrated(exported, dataset.search.train.images[:_CALIBRATING])
    with run.phase("measuring"):
        (found,) = run.measure([model], "measuring")
    attempt = attempt.model_copy(update={"measured_ms": question.judged_ms(found), "exceeds_by": exceeds(run, arch, found)})
    return Winner(attempt, network, trained, model, exported, difference, found)


def evaluate_model(model: bytes, split: Split) -> Evaluation:
    """An ONNX model, as ONNX Runtime runs it on the processor."""
    session, tally = Session(model, Device(name="evaluate", threads=1)), Tally(1)
    for start in range(0, len(split.labels), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        logits = torch.from_numpy(session.predict(split.images[part]))
        tally.add([0], look(logits[None], torch.from_numpy(split.labels[part])))
    return tally.evaluations()[0]


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
