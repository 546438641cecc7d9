"""The interpreter of inert pickles against pickle itself."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forms import (
    PROTOCOLS,
    batch,
    fuzz,
    one_line,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hwnas.data.inert_pickle import read_inert_pickle
from hwnas.errors import UserError

scalars = st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.booleans() | st.none()


values = st.recursive(scalars, lambda v: st.lists(v) | st.tuples(v, v) | st.dictionaries(st.text(), v), max_leaves=8)


dtypes = hnp.integer_dtypes() | hnp.unsigned_integer_dtypes() | hnp.floating_dtypes(sizes=(16, 32, 64), endianness="?")


arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


@fuzz
@given(value=values, array=arrays, by_columns=st.booleans(), protocol=st.sampled_from([0, 1, *PROTOCOLS]))
def test_inert_pickles_are_read_as_pickle_reads_them(
    tmp_path: Path, value: Any, array: np.ndarray, by_columns: bool, protocol: int
) -> None:
    array = np.asfortranarray(array) if by_columns else array
    (tmp_path / "p").write_bytes(pickle.dumps({"value": value, b"array": array}, protocol))
    found = read_inert_pickle(tmp_path / "p")
    assert found["value"] == value
    assert found["array"].dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found["array"], array)


ATTACKS = {
    "a symbol that is not called": b"\x80\x02}U\x01acos\nsystem\ns.",
    "eval": b"\x80\x02}U\x01ac__builtin__\neval\nU\x031+1\x85Rs.",
    "getattr of numpy": b"\x80\x02}U\x01acnumpy\nload\nU\x01x\x85Rs.",
    "numpy through a submodule": b"\x80\x04}\x8c\x01a\x8c\x05numpy\x8c\x0ctesting.rand\x93s.",
    "another class for the array": b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\n"
    b"cnumpy\nmatrix\nK\x00\x85U\x01b\x87Rs.",
    "a decoder that is not latin-1": b"\x80\x02}U\x01ac_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86Rs.",
    "bytes of a size": b"\x80\x02}U\x01ac__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85Rs.",
    "an object array": pickle.dumps({"a": np.array([None])}, 2),
    "a structured array": pickle.dumps({"a": np.zeros(2, "i4,i4")}, 2),
    "an instance": b"(dU\x01a(ios\nsystem\ns.",
    "an object": b"(dU\x01a(cos\nsystem\nU\x01xos.",
    "a new object": b"\x80\x02}U\x01ac__builtin__\nlist\n)\x81s.",
    "an extension": b"\x80\x02}U\x01a\x82\x01s.",
    "a persistent id": b"(dU\x01aPx\ns.",
    "a state for a dict": b"\x80\x02}}U\x01xK\x01sb.",
    "protocol 5": pickle.dumps({"a": np.arange(3)}, 5),
    "a set": pickle.dumps({"a": {1}}, 4),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_not_inert_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "p").write_bytes(ATTACKS[name])
    with pytest.raises(UserError, match="numbers, strings and arrays only") as error:
        read_inert_pickle(tmp_path / "p")
    one_line(error)


@fuzz
@given(data=st.data(), protocol=st.sampled_from(PROTOCOLS))
def test_a_damaged_pickle_is_one_error(tmp_path: Path, data: st.DataObject, protocol: int) -> None:
    whole = bytearray(pickle.dumps(batch(3, 0, side=1), protocol))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "p").write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        found = read_inert_pickle(tmp_path / "p")
    except UserError as error:
        found = {"error": str(error)}
    assert "\n" not in found.get("error", "")
