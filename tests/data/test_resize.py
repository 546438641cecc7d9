"""Resizing against Pillow."""

from __future__ import annotations

import numpy as np
from forms import (
    fuzz,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from hwnas.data.resize import resize


@fuzz
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)), st.integers(1, 30))
def test_resizing_equals_pillows(image: np.ndarray, size: int) -> None:
    reference = Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(resize(image[None, :, :, None], size)[0, :, :, 0], np.asarray(reference), atol=0.01)
