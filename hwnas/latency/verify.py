"""verify: is the exported model the trained network?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hwnas.latency.device import Device
from hwnas.latency.session import Session
from hwnas.lower.torch import ArchModule

TOLERANCE = 1e-4


def verify(model: bytes, network: ArchModule, images: NDArray[np.float32]) -> float:
    """The largest difference between ONNX Runtime on the processor and torch, relative to the largest logit.

    Raises RuntimeError over 1e-4: the exported model is then not the trained network.
    """
    network.eval()
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    found = Session(model, Device(name="verify", threads=1)).predict(images)
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the exported model differs from the trained network by {difference:.2e} of its largest logit")
    return difference
