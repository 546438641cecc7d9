"""Supernets of which nothing is neutral."""

from __future__ import annotations

import torch

from hwnas.supernet.supernet import Supernet


def uneven(supernet: Supernet, noise: torch.Generator) -> Supernet:
    """The same, its scales and biases moved away from 1 and 0, as training leaves them."""
    with torch.no_grad():
        for parameter in supernet.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.4 * torch.rand(parameter.shape, generator=noise) - 0.2)
    return supernet
