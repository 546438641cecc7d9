"""Zero-cost proxies: scores of an untrained network from a few batches. All that are asked for share their passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hwnas.errors import UserError
from hwnas.evaluation import evaluator
from hwnas.evaluation.evaluator import Metrics, Setting
from hwnas.evaluation.passes import Passes
from hwnas.plugins import load
from hwnas.space import Genotype


class Evaluator(evaluator.Evaluator):
    """`proxies`: names of files in `evaluation/proxies`. `batches` of `batch_size` training images, always the same."""

    def __init__(self, setting: Setting, proxies: Sequence[str] = ("naswot",), batch_size: int = 32, batches: int = 2) -> None:
        super().__init__(setting)
        if not proxies or isinstance(proxies, str) or batch_size < 2 or batches < 2:
            raise UserError("zero_cost needs a list of proxies and two batches of two images at least", got=(proxies, batches))
        self.proxies = {name: load("hwnas.evaluation.proxies", name, "proxy").proxy for name in proxies}
        train = setting.data.train
        order = np.random.default_rng(setting.seed).permutation(len(train))
        parts = [order[i * batch_size : (i + 1) * batch_size] for i in range(batches)]
        if len(parts[-1]) < 2:
            raise UserError(
                f"{batches} batches of {batch_size} images need more training images",
                got=len(train),
                remedy="ask for smaller batches",
            )
        self.batches = [(torch.from_numpy(train.images[p]), torch.from_numpy(train.labels[p])) for p in parts]

    def evaluate(self, genotype: Genotype, fidelity: float = 1.0) -> Metrics:
        passes = Passes(self.setting.arch(genotype), self.batches, self.setting.seed)
        return {name: proxy(passes) for name, proxy in self.proxies.items()}

    def images_passed(self) -> float:
        return 3.0 * sum(len(labels) for _, labels in self.batches)
