"""A step in a CUDA graph, replayed on other values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def replayed(step: Callable[[], list[Tensor]], tensors: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """What a captured `step` of `tensors` leaves when it is replayed after they have become `values`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for old, new in zip(tensors, values, strict=True):
            old.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    return [t.clone() for t in captured]  # which outlives the graph and its memory
