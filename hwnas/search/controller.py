"""Controller: a small recurrent network that writes a genotype choice by choice, trained by policy gradient.

The controller of Zoph and Le (2017) and of ENAS (Pham et al. 2018), with a plain recurrent cell:
h_t = tanh(U h_{t-1} + E_{t-1}[a_{t-1}] + b_t), p(a_t) = softmax(V_t h_t + c_t). Gradients by hand, steps by Adam.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.search.admission import Admission
from hwnas.space import Genotype

Array = NDArray[np.float64]

_TRIES = 20  # genotypes written before one is led back into the budget


class Controller:
    def __init__(self, admission: Admission, seed: int, hidden: int = 32, rate: float = 0.02) -> None:
        self.admission = admission
        self.numbers = np.random.default_rng(seed)
        self.sizes = [len(c.options) for c in admission.space.choices]
        self.rate, self.steps = rate, 0
        # U, then for each choice E, b, V, c
        shapes = [(hidden, hidden), *(s for n in self.sizes for s in ((n, hidden), (hidden,), (n, hidden), (n,)))]
        self.parameters: list[Array] = [0.1 * self.numbers.normal(size=shape) for shape in shapes]
        self._moments = [(np.zeros_like(p), np.zeros_like(p)) for p in self.parameters]

    def write(self, rng: random.Random) -> Genotype:
        """A genotype drawn from the policy, that the budget admits."""
        for _ in range(_TRIES):
            genotype = self._draw()
            if self.admission.admits(genotype):
                return genotype
        return self.admission.repair(genotype, rng)

    def _draw(self) -> Genotype:
        """Gumbel noise on the logits: the highest of each choice is a draw from its probabilities (Gumbel 1954).

        So the space's own rule for scores holds, where choices hang together.
        """
        recurrent = self.parameters[0]
        scores: list[Sequence[float]] = []
        state = np.zeros(len(recurrent))
        carried = np.zeros(len(recurrent))
        for t in range(len(self.sizes)):
            embedding, bias, output, offset = self._of(t)
            state = np.tanh(recurrent @ state + carried + bias)
            noisy = output @ state + offset + self.numbers.gumbel(size=self.sizes[t])
            scores.append(noisy.tolist())
            carried = embedding[int(np.argmax(noisy))]
        return self.admission.space.from_scores(scores)

    def learn(self, genotypes: Sequence[Genotype], advantages: Sequence[float], entropy: float) -> None:
        """One step up the mean of advantage times log-probability, plus `entropy` times the policy's entropy."""
        gradients = [np.zeros_like(p) for p in self.parameters]
        for genotype, advantage in zip(genotypes, advantages, strict=True):
            self._accumulate(gradients, genotype, advantage / len(genotypes), entropy / len(genotypes))
        norm = float(np.sqrt(sum((g * g).sum() for g in gradients)))
        self.steps += 1
        for parameter, gradient, (first, second) in zip(self.parameters, gradients, self._moments, strict=True):
            clipped = gradient * min(1.0, 5.0 / max(norm, 1e-12))
            first += 0.1 * (clipped - first)
            second += 0.001 * (clipped * clipped - second)
            unbiased = second / (1 - 0.999**self.steps)
            parameter += self.rate * first / (1 - 0.9**self.steps) / (np.sqrt(unbiased) + 1e-8)

    def log_probability(self, genotype: Genotype) -> float:
        """Of writing this genotype, choice by choice."""
        return sum(float(np.log(p[a])) for (_, p), a in zip(self._read(genotype), genotype, strict=True))

    def _of(self, t: int) -> list[Array]:
        return self.parameters[1 + 4 * t : 5 + 4 * t]

    def _read(self, genotype: Genotype) -> list[tuple[Array, Array]]:
        """States and probabilities along a genotype."""
        recurrent = self.parameters[0]
        state, carried = np.zeros(len(recurrent)), np.zeros(len(recurrent))
        found = []
        for t, option in enumerate(genotype):
            embedding, bias, output, offset = self._of(t)
            state = np.tanh(recurrent @ state + carried + bias)
            logits = output @ state + offset
            weights = np.exp(logits - logits.max())
            found.append((state, weights / weights.sum()))
            carried = embedding[option]
        return found

    def _accumulate(self, gradients: list[Array], genotype: Genotype, advantage: float, entropy: float) -> None:
        recurrent = self.parameters[0]
        trace = self._read(genotype)
        back = np.zeros(len(recurrent))  # gradient of the state, from later choices
        for t in reversed(range(len(genotype))):
            state, p = trace[t]
            before = trace[t - 1][0] if t else np.zeros_like(state)
            log_p = np.log(np.maximum(p, 1e-300))
            logits = advantage * (np.eye(len(p))[genotype[t]] - p) - entropy * p * (log_p - p @ log_p)
            output = self._of(t)[2]
            gradients[3 + 4 * t] += np.outer(logits, state)
            gradients[4 + 4 * t] += logits
            inner = (output.T @ logits + back) * (1 - state * state)
            gradients[2 + 4 * t] += inner
            gradients[0] += np.outer(inner, before)
            if t:
                gradients[1 + 4 * (t - 1)][genotype[t - 1]] += inner
            back = recurrent.T @ inner
