"""Bilinear resizing of arrays, equal to Pillow's: each new pixel is a weighted mean under a triangle."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 1024  # images at a time, for the memory's sake


def resize(images: NDArray[Any], size: int) -> NDArray[np.float32]:
    """[n, h, w, c] -> [n, size, size, c]."""
    n, height, width, channels = images.shape
    rows, columns = _weights(height, size), _weights(width, size)
    resized = np.empty((n, size, size, channels), np.float32)
    for start in range(0, n, CHUNK):
        chunk = images[start : start + CHUNK].astype(np.float32)
        across = np.einsum("nhwc,vw->nhvc", chunk, columns, optimize=True)
        resized[start : start + CHUNK] = np.einsum("nhvc,uh->nuvc", across, rows, optimize=True)
    return resized


def _weights(old: int, new: int) -> NDArray[np.float32]:
    """[new, old]; each row sums to 1. When shrinking, the triangle is as wide as two new pixels, so none is skipped."""
    scale = old / new
    centers = (np.arange(new) + 0.5) * scale
    distance = np.abs(np.arange(old) + 0.5 - centers[:, None]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
