"""How the GPU's convolutions are cut in tiles, every output in one, a block with room for what it reads; tables of launches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hwnas.kernels import merged_program as kernel
from hwnas.kernels.merged_program import DENSE, POINT, ROWS, Window


@st.composite
def windows(draw):
    sizes, channels = st.integers(1, 70), st.integers(1, 200)
    h, w, side, dilation, stride = (
        draw(sizes),
        draw(sizes),
        draw(st.integers(1, 7)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
    )
    padding = draw(st.integers(0, side // 2 * dilation))
    ho, wo = ((size + 2 * padding - (side - 1) * dilation - 1) // stride + 1 for size in (h, w))
    assume(ho > 0 and wo > 0)
    return Window(draw(channels), h, w, draw(channels), ho, wo, side, side, stride, padding, dilation)


@settings(max_examples=300, deadline=None)
@given(windows())
def test_every_output_is_in_a_tile_of_a_block_that_has_room(at):
    tiling = kernel.tiling("dense", at)
    pixels, channels, height = kernel._KERNELS.dense_tiles[tiling.shape]
    assert (tiling.columns - 1) * channels < at.o <= tiling.columns * channels
    if tiling.shape >= POINT:
        assert at.kernel_h == 1
        assert tiling.at_once == pixels
        assert tiling.places == at.ho * at.wo
        assert tiling.shared_bytes == 0
        return
    assert tiling.shared_bytes <= kernel.MAX_SHARED
    assert tiling.tiles_y * tiling.tile_h >= at.ho
    assert tiling.tiles_x * tiling.tile_w >= at.wo
    assert tiling.parts == tiling.tiles_y * tiling.tiles_x
    assert tiling.at_once == tiling.tile_images
    in_h, in_w = ((side - 1) * at.stride + (at.kernel_h - 1) * at.dilation + 1 for side in (tiling.tile_h, tiling.tile_w))
    rows = tiling.tile_images * in_h * in_w
    assert tiling.shared_bytes >= 4 * rows + tiling.planes * 64 * rows
    for row in range(rows):
        line = row * tiling.inverse_w >> 20
        assert line == row // in_w
        assert row * tiling.inverse_w < 1 << 31
        assert line * tiling.inverse_h >> 20 == line // in_h
        assert line * tiling.inverse_h < 1 << 31
    if tiling.shape >= ROWS:  # pairs of runs of 8 pixels, `height` rows of them for each warp
        warps = pixels // height // 16
        assert tiling.tile_images * (tiling.tile_w // 8) <= 2 * tiling.pairs
        assert tiling.tile_h == warps // tiling.pairs * height
        assert 16 * tiling.planes >= at.c
    else:
        assert tiling.tile_images * tiling.tile_h * tiling.tile_w <= pixels


@pytest.mark.parametrize(
    ("channels", "size", "side", "stride", "kind"),
    [
        (16, 32, 3, 1, ROWS),
        (64, 8, 3, 1, ROWS),
        (65, 8, 3, 1, DENSE),
        (16, 12, 3, 1, DENSE),
        (16, 32, 3, 2, DENSE),
        (16, 9, 1, 2, POINT),
    ],
)
def test_which_kernel_computes_a_convolution(channels, size, side, stride, kind):
    out = (size - 1) // stride + 1
    at = Window(channels, size, size, channels, out, out, side, side, stride, side // 2, 1)
    assert kind <= kernel.tiling("dense", at).shape < kind + 3


def test_rows_of_many_channels_leave_room_for_other_blocks():
    """Four images a tile of 8 x 8 outputs would be too much for all 64 channels at once."""
    tiling = kernel.tiling("dense", Window(64, 8, 8, 16, 8, 8, 3, 3, 1, 1, 1))
    assert DENSE <= tiling.shape < ROWS
    assert tiling.shared_bytes <= kernel.MAX_SHARED


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=30), st.integers(0, 4))
def test_launches_are_in_order_and_say_where_each_row_begins(rows, normed):
    """Rows of (place, blocks), of which some have a norm in a launch of its own at the end of their place."""
    rows = sorted(rows)
    problems = np.zeros(len(rows), kernel.PROBLEM)
    problems["tiles"], problems["bias"] = [blocks for _, blocks in rows], np.arange(len(rows))
    problems["columns"] = problems["turns"] = problems["groups"] = 1
    problems["shared_bytes"] = problems["tiles"] * 16
    norms = np.zeros(min(normed, len(rows)), kernel.NORM)
    norms["c"], norms["groups"], norms["mean"] = 17, 3, 100 + np.arange(len(norms))  # two blocks of 16 channels a group
    places = np.array([place for place, _ in rows])
    tables = [(problems, places * kernel.SHAPES + kernel.SUM)]
    if len(norms):
        tables.append((norms, places[: len(norms)] * kernel.SHAPES + kernel.NORMS))
    prepared = kernel.prepare(tables, torch.device("cpu"))

    memory, at = prepared.memory.numpy(), prepared.memory.data_ptr()
    found = []
    for launch in np.frombuffer(prepared.rows, kernel._LAUNCH):
        kind, field = (kernel.NORM, "mean") if launch["shape"] == kernel.NORMS else (kernel.PROBLEM, "bias")
        table = np.frombuffer(memory, kind, launch["count"], int(launch["problems"]) - at)
        begin = np.frombuffer(memory, np.int32, launch["count"], int(launch["begin"]) - at)
        found.append(
            (int(launch["shape"]), table[field].tolist(), begin.tolist(), int(launch["blocks"]), int(launch["shared_bytes"]))
        )
    expected = []
    for place in sorted(set(places.tolist())):
        own = [i for i, (p, _) in enumerate(rows) if p == place]
        blocks = [rows[i][1] for i in own]
        expected.append((kernel.SUM, own, [sum(blocks[:i]) for i in range(len(own))], sum(blocks), 16 * max(blocks)))
        own = [i for i in own if i < len(norms)]
        if own:
            expected.append((kernel.NORMS, [100 + i for i in own], [6 * i for i in range(len(own))], 6 * len(own), 0))
    assert found == expected
