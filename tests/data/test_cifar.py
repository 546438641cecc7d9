"""CIFAR's python batches."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forms import (
    PROTOCOLS,
    Runs,
    balanced,
    batch,
    cifar,
    refused,
    splits,
)

from hwnas.data import load_data
from hwnas.data.inert_pickle import read_inert_pickle


@pytest.mark.parametrize("protocol", [0, 1, *PROTOCOLS])
@pytest.mark.parametrize("text_keys", [False, True])
def test_cifar_batches(tmp_path: Path, protocol: int, text_keys: bool) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    batches = cifar(folder, protocol, text_keys)
    for path in (folder, tmp_path):
        data = load_data(str(path))
        assert (data.classes, data.input) == (("ant", "bee", "cat"), (3, 4, 4))
        assert data.augmentation.flip
        assert [len(s) for s in splits(data)] == [48, 12, 12]
        key = "data" if text_keys else b"data"
        planes = data.test.split.images * np.reshape(data.std, (3, 1, 1)) + np.reshape(data.mean, (3, 1, 1))
        np.testing.assert_allclose(planes.reshape(12, -1), batches[5][key], atol=1e-3)
        np.testing.assert_array_equal(data.test.split.labels, balanced(12))


def python2_batch() -> bytes:
    """As Python 2's cPickle wrote the real files: bytes are str opcodes, symbols are numpy 1's."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x0c\x86"
        b"cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x18" + bytes(range(232, 256)) + b"tb"
    )
    return b"\x80\x02}q\x01(U\x04dataq\x02" + array + b"U\x06labelsq\x08]q\x09(K\x01K\x00e" + b"u."


def test_pickles_of_python_2(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(python2_batch())
    found = read_inert_pickle(path)
    np.testing.assert_array_equal(found["data"], np.arange(232, 256, dtype=np.uint8).reshape(2, 12))
    assert found["labels"] == [1, 0]
    reference = pickle.loads(python2_batch(), encoding="latin1")
    np.testing.assert_array_equal(found["data"], reference["data"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("old", "new"), [("numpy.core", "numpy._core"), ("numpy._core", "numpy.core")])
def test_both_spellings_of_numpy(tmp_path: Path, protocol: int, old: str, new: str) -> None:
    def spelled(name: str) -> bytes:
        module = f"{name}.multiarray"
        return (chr(len(module)) if protocol == 4 else "c").encode() + module.encode()

    data = pickle.dumps({"data": np.arange(6)}, protocol).replace(spelled(old), spelled(new))
    (tmp_path / "batch").write_bytes(data)
    np.testing.assert_array_equal(read_inert_pickle(tmp_path / "batch")["data"], np.arange(6))


@pytest.mark.parametrize("protocol", [0, 1, *PROTOCOLS])
def test_a_malicious_batch_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    folder, mark = tmp_path / "cifar", tmp_path / "ran"
    cifar(folder, protocol if protocol > 1 else 2)
    evil = pickle.dumps(batch(12, 0) | {b"extra": Runs(os.mkdir, str(mark))}, protocol)
    (folder / "data_batch_3").write_bytes(evil)
    text = refused("numbers, strings and arrays only", folder)
    assert "data_batch_3" in text
    assert "posix.mkdir" in text or "nt.mkdir" in text
    assert not mark.exists()
    pickle.loads(evil)  # the attack is real
    assert mark.exists()


def test_bad_cifar_folders(tmp_path: Path) -> None:
    def spoiled(name: str, file: str, made: Any) -> Path:
        cifar(tmp_path / name)
        (tmp_path / name / file).write_bytes(made if isinstance(made, bytes) else pickle.dumps(made, 2))
        return tmp_path / name

    whole = pickle.dumps(batch(12, 0), 2)
    refused("is corrupt", spoiled("a", "data_batch_1", whole[:200]))
    refused("is corrupt", spoiled("b", "test_batch", b""))
    refused("is corrupt", spoiled("c", "data_batch_2", [1, 2]))
    refused("12 images and 11 labels", spoiled("d", "data_batch_2", batch(12, 0) | {b"labels": [0] * 11}))
    refused("out of range; got 3", spoiled("e", "test_batch", batch(12, 0) | {b"labels": [3] * 12}))
    refused("must be labelled", spoiled("f", "data_batch_2", {b"data": batch(12, 0)[b"data"]}))
    refused("square images", spoiled("g", "data_batch_2", batch(12, 0) | {b"data": np.zeros((12, 50), np.uint8)}))
    refused("one image size", spoiled("h", "data_batch_2", batch(12, 0, side=5)))
    refused("must hold data", spoiled("i", "data_batch_2", batch(12, 0) | {b"data": [1]}))
    refused("whole numbers", spoiled("j", "data_batch_2", batch(12, 0) | {b"labels": ["a"] * 12}))
    refused("label_names", spoiled("k", "batches.meta", {b"label_names": 3}))
    (tmp_path / "a" / "data_batch_4").unlink()
    refused("lacks data_batch_4", tmp_path / "a")
