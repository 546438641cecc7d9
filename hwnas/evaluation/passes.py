"""The passes through an untrained network that zero-cost proxies look at, each made when it is first asked for, and once.

What proxies share is computed for all of them: one forward pass gives the activation codes and, through two backward passes,
the gradients of the loss and the Jacobian of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hwnas.ir.arch import Arch
from hwnas.lower.torch import to_torch


class Passes:
    """images [n, *dims] float32, labels [n]: the batches, of which the gradient needs two at least."""

    def __init__(self, arch: Arch, batches: list[tuple[Tensor, Tensor]], seed: int = 0) -> None:
        self.arch, self.batches, self.seed = arch, batches, seed

    @cached_property
    def codes(self) -> list[Tensor]:
        """Of each rectifier: which of its units are active, bool [n, units]."""
        return self._first[0]

    @cached_property
    def gradients(self) -> list[list[Tensor]]:
        """Of each batch: the gradients of its loss to the kernels and matrices, in the order of the arch."""
        found = [self._first[1]]
        for images, labels in self.batches[1:]:
            network = to_torch(self.arch, seed=self.seed).train()
            loss = F.cross_entropy(network(images), labels)
            found.append(list(torch.autograd.grad(loss, _matrices(network), materialize_grads=True)))
        return found

    @cached_property
    def jacobian(self) -> Tensor:
        """The gradients of each image's summed outputs to the image, [n, elements]."""
        return self._first[2]

    @cached_property
    def _first(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        images, labels = self.batches[0]
        network = to_torch(self.arch, seed=self.seed).train()
        watched = images.clone().requires_grad_()
        codes: list[Tensor] = []

        def watch(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if function in (F.relu, F.relu6):
                codes.append((args[0] > 0).flatten(1).detach())
            return function(*args, **kwargs)

        with _Intercept(watch):
            outputs = network(watched)
        gradients = torch.autograd.grad(
            F.cross_entropy(outputs, labels), _matrices(network), retain_graph=True, materialize_grads=True
        )
        (jacobian,) = torch.autograd.grad(outputs.sum(), [watched], materialize_grads=True)
        return codes, list(gradients), jacobian.flatten(1)

    @cached_property
    def synaptic_flow(self) -> list[tuple[Tensor, Tensor]]:
        """Of each kernel and matrix, in float64: its absolute value, and the gradient to it of the summed outputs.

        All weights made positive, batch norm left out, ones as input.
        """
        network = to_torch(self.arch, seed=self.seed).double().train()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.abs_()

        def without_norm(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return args[0] if function is F.batch_norm else function(*args, **kwargs)

        weights = _matrices(network)
        with _Intercept(without_norm):
            flow = network(torch.ones(1, *self.arch.input.dims, dtype=torch.float64)).sum()
        gradients = torch.autograd.grad(flow, weights, materialize_grads=True)
        return [(w.detach(), g) for w, g in zip(weights, gradients, strict=True)]


def _matrices(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weights of convolutions and linear layers."""
    return [p for p in network.parameters() if p.dim() > 1]


class _Intercept(TorchFunctionMode):
    """Sends every torch function through `handle`."""

    def __init__(self, handle: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self.handle = handle

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.handle(func, args, kwargs or {})
