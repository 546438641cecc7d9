"""Data: every form against files made by other means, splits, what is refused, and pickles that must not run."""

from __future__ import annotations

import io
import os
import pickle  # the files under test are pickles, and pickle itself is the reference
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.datasets import load_digits

from hwnas.data import Augmentation, Dataset, SearchData, Split, TestData, load_data
from hwnas.data.inert_pickle import read_inert_pickle
from hwnas.data.resize import resize
from hwnas.data.split import choose, quotas
from hwnas.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("HWNAS_DATA", ROOT.parent / "shared" / "data"))
PROTOCOLS = (2, 3, 4)
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no HWNAS_DATA")
fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def stored(split: Split, data: Dataset) -> np.ndarray:
    """The images as they were before normalisation, [n, h, w, c] or [n, features]."""
    mean, std = np.asarray(data.mean), np.asarray(data.std)
    if split.images.ndim == 2:
        return split.images * std + mean
    return split.images.transpose(0, 2, 3, 1) * std + mean


def splits(data: Dataset) -> tuple[Split, Split, Split]:
    return data.search.train, data.search.validation, data.test.split


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def refused(match: str, path: object, **options: Any) -> str:
    with pytest.raises(UserError, match=match) as error:
        load_data(str(path), **options)
    return one_line(error)


def balanced(n: int, classes: int = 3) -> np.ndarray:
    return np.arange(n) % classes


def mnist(path: Path, n: int = 60, tested: int = 12, shape: tuple[int, ...] = (6, 5), **changes: Any) -> Path:
    """Random images in the form of mnist.npz. A change of None drops an array."""
    rng = np.random.default_rng(1)
    arrays = {
        "x_train": rng.integers(0, 256, (n, *shape), np.uint8),
        "y_train": balanced(n).astype(np.uint8),
        "x_test": rng.integers(0, 256, (tested, *shape), np.uint8),
        "y_test": balanced(tested).astype(np.uint8),
    } | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


# Digits


def test_digits_are_scikit_learns_each_once() -> None:
    data, reference = load_data("digits"), load_digits()
    assert (data.name, data.input, data.classes) == ("digits", (1, 8, 8), tuple("0123456789"))
    images = np.concatenate([stored(s, data) for s in splits(data)]).round().astype(int).reshape(-1, 64)
    labels = np.concatenate([s.labels for s in splits(data)])
    rows = np.column_stack([images, labels])
    expected = np.column_stack([reference.data.astype(int), reference.target])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_digits_are_split_60_20_20_by_class() -> None:
    data = load_data("digits")
    total = np.bincount(load_digits().target)
    for split, part in zip(splits(data), (0.6, 0.2, 0.2), strict=True):
        assert len(split) == pytest.approx(1797 * part, abs=2)
        assert np.abs(np.bincount(split.labels) - total * part).max() < 2
    assert data.augmentation == Augmentation(flip=False, shift=1)


def test_the_seed_decides_the_splits() -> None:
    first, again, other = load_data("digits", seed=3), load_data("digits", seed=3), load_data("digits", seed=4)
    for a, b, c in zip(splits(first), splits(again), splits(other), strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
        assert not np.array_equal(a.labels, c.labels)


def test_normalisation_comes_from_the_train_split() -> None:
    data = load_data("digits")
    assert data.search.train.images.mean() == pytest.approx(0, abs=1e-4)
    assert data.search.train.images.std() == pytest.approx(1, abs=1e-4)
    raw = stored(data.search.train, data).round()
    assert data.mean == pytest.approx((raw.mean(),), abs=1e-4)
    assert data.std == pytest.approx((raw.std(),), abs=1e-4)


def test_a_limit_leaves_the_test_split_as_it_is() -> None:
    whole, limited = load_data("digits"), load_data("digits", limit=200)
    assert len(limited.search.train) + len(limited.search.validation) == 200
    np.testing.assert_array_equal(limited.test.split.labels, whole.test.split.labels)
    both = load_data("digits", limit=200, test_limit=50)
    assert np.bincount(both.test.split.labels, minlength=10).min() >= 4
    assert len(both.test.split) == 50


# Types


def test_a_search_cannot_reach_the_test_split() -> None:
    data = load_data("digits", limit=100)
    assert {f.name for f in fields(SearchData)} == {"train", "validation"}
    assert isinstance(data.search, SearchData)
    assert isinstance(data.test, TestData)
    assert not isinstance(data.search, TestData)
    for split in splits(data):
        assert (split.images.dtype, split.labels.dtype) == (np.float32, np.int64)
        assert split.images.flags.c_contiguous
        assert split.images.shape == (len(split), *data.input)


def test_the_import_is_lean() -> None:
    code = "import sys, hwnas.data; print({'torch', 'sklearn', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"


# Arrays


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3), (7,)])
def test_arrays_of_every_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = mnist(tmp_path / "small.npz", shape=shape)
    data = load_data(str(path))
    arrays = np.load(path)
    channels = shape[2] if len(shape) == 3 else 1
    assert data.input == (shape if len(shape) == 1 else (channels, *shape[:2]))
    assert [len(s) for s in splits(data)] == [48, 12, 12]
    assert data.name == "small"
    assert data.augmentation.flip == (channels == 3)
    # A test split that the data brings is kept in its order.
    found = stored(data.test.split, data).reshape(12, -1)
    np.testing.assert_allclose(found, arrays["x_test"].reshape(12, -1), atol=1e-3)
    np.testing.assert_array_equal(data.test.split.labels, arrays["y_test"])


def test_floats_and_columns_of_labels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(60, 4, 4))
    path = mnist(tmp_path / "a.npz", shape=(4, 4), x_train=values, y_train=balanced(60)[:, None].astype(np.int32))
    data = load_data(str(path))
    found = np.concatenate([stored(s, data) for s in splits(data)[:2]]).reshape(60, -1)
    np.testing.assert_allclose(np.sort(found[:, 0]), np.sort(values.reshape(60, -1)[:, 0]), atol=1e-5)


def test_arrays_without_a_test_split_are_split_in_three(tmp_path: Path) -> None:
    data = load_data(str(mnist(tmp_path / "a.npz", x_test=None, y_test=None, classes=np.array(["a", "b", "c"]))))
    assert [len(s) for s in splits(data)] == [36, 12, 12]
    assert data.classes == ("a", "b", "c")


def test_constant_features_stay_finite(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(60, 3))
    values[:, 1] = 0.1
    data = load_data(str(mnist(tmp_path / "a.npz", shape=(3,), x_train=values)))
    assert data.std[1] == 1
    assert np.abs(data.search.train.images[:, 1]).max() < 1e-6


@fuzz
@given(
    counts=st.lists(st.integers(3, 40), min_size=2, max_size=6),
    seed=st.integers(0, 2**40),
    validation=st.floats(0.01, 0.4),
    limit=st.none() | st.integers(12, 200),
    own_test=st.booleans(),
)
def test_splits_are_disjoint_and_hold_every_class(
    tmp_path: Path, counts: list[int], seed: int, validation: float, limit: int | None, own_test: bool
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(labels), dtype=np.float32)[:, None]  # image i is the number i
    test = {"x_test": number[:9], "y_test": labels[:9]} if own_test else {}
    np.savez(tmp_path / "a.npz", x_train=number, y_train=labels, **test)
    data = load_data(str(tmp_path / "a.npz"), seed=seed, validation=validation, limit=limit)
    parts = splits(data)[:2] if own_test else splits(data)
    found = [stored(s, data).round().astype(int)[:, 0] for s in parts]
    together = np.concatenate(found)
    assert len(set(together)) == len(together)
    for numbers, split in zip(found, parts, strict=True):
        np.testing.assert_array_equal(labels[numbers], split.labels)
        assert np.bincount(split.labels, minlength=len(counts)).min() >= 1
    searched = len(found[0]) + len(found[1])
    if limit is None:
        assert len(together) == len(labels)
    else:
        assert searched <= limit


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_quotas_are_fair(counts: list[int], draw: st.DataObject) -> None:
    total = draw.draw(st.integers(len(counts), sum(counts)))
    result = quotas(np.asarray(counts), total, 1)
    exact = np.asarray(counts) * total / sum(counts)
    assert result.sum() == total
    assert (result >= 1).all()
    assert (result <= counts).all()
    if exact.min() >= 1:
        assert np.abs(result - exact).max() < 1


def test_choose_returns_a_partition() -> None:
    chosen, rest = choose(balanced(30), 10, 1, (0, 0))
    assert sorted([*chosen, *rest]) == list(range(30))
    assert len(chosen) == 10


# Resizing


@fuzz
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)), st.integers(1, 30))
def test_resizing_equals_pillows(image: np.ndarray, size: int) -> None:
    reference = Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(resize(image[None, :, :, None], size)[0, :, :, 0], np.asarray(reference), atol=0.01)


def test_size_resizes_every_form(tmp_path: Path) -> None:
    assert load_data("digits", size=12, limit=60).input == (1, 12, 12)
    assert load_data(str(mnist(tmp_path / "a.npz", shape=(6, 5, 3))), size=4).input == (3, 4, 4)
    assert load_data(str(image_folder(tmp_path / "images")), size=10).input == (3, 10, 10)
    assert load_data(str(jpeg_pair(tmp_path / "jpeg")), size=16).input == (3, 16, 16)


# JPEG archives


def jpeg_bytes(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return file.getvalue()


def jpeg_file(path: Path, n: int = 30, shape: tuple[int, ...] = (8, 8, 3), **changes: Any) -> list[bytes]:
    rng = np.random.default_rng(n)
    blobs = [jpeg_bytes(rng.integers(0, 256, shape, np.uint8)) for _ in range(n)]
    arrays = {
        "jpeg": np.frombuffer(b"".join(blobs), np.uint8),
        "offsets": np.cumsum([0, *map(len, blobs)]),
        "labels": balanced(n).astype(np.uint8),
        "classes": np.array(["ant", "bee", "cat"]),
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return blobs


def jpeg_pair(folder: Path, **changes: Any) -> Path:
    jpeg_file(folder / "toy_train.npz", **changes)
    jpeg_file(folder / "toy_test.npz", n=9)
    return folder


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 6)])
def test_jpeg_archives_are_decoded_as_pillow_does(tmp_path: Path, shape: tuple[int, ...]) -> None:
    jpeg_file(tmp_path / "toy_train.npz", shape=shape)
    blobs = jpeg_file(tmp_path / "toy_test.npz", n=9, shape=shape)
    for path in (tmp_path, tmp_path / "toy_train.npz"):
        data = load_data(str(path))
        assert (data.name, data.classes) == ("toy", ("ant", "bee", "cat"))
        assert [len(s) for s in splits(data)] == [24, 6, 9]
        reference = np.stack([np.asarray(Image.open(io.BytesIO(b))) for b in blobs])
        np.testing.assert_allclose(stored(data.test.split, data).squeeze(), reference, atol=1e-3)
        assert data.augmentation == Augmentation(flip=len(shape) == 3, shift=min(shape[:2]) // 8)


def test_jpeg_test_classes_are_matched_by_name(tmp_path: Path) -> None:
    jpeg_file(tmp_path / "train.npz")
    jpeg_file(tmp_path / "test.npz", n=9, classes=np.array(["cat", "ant", "bee"]))
    data = load_data(str(tmp_path / "train.npz"))
    np.testing.assert_array_equal(data.test.split.labels, np.array([2, 0, 1])[balanced(9)])
    assert data.name == tmp_path.name


def test_only_the_chosen_images_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    blobs = jpeg_file(path, n=60)
    reports: list[tuple[int, int]] = []

    def load() -> Dataset:
        return load_data(str(path), limit=12, test_limit=6, progress=lambda done, of: reports.append((done, of)))

    data = load()
    assert [len(s) for s in splits(data)] == [9, 3, 6]
    assert reports[-1] == (18, 18)
    assert reports == sorted(reports)
    # With all other images spoiled, it loads as before. The headers of the first three, one a class, are read too.
    chosen = {image.astype(np.uint8).tobytes() for s in splits(data) for image in stored(s, data).round()}
    number = [i for i, blob in enumerate(blobs) if Image.open(io.BytesIO(blob)).tobytes() in chosen]
    assert len(number) == 18
    kept = [blob if i in number or i < 3 else b"x" * len(blob) for i, blob in enumerate(blobs)]
    jpeg_file(path, n=60, jpeg=np.frombuffer(b"".join(kept), np.uint8))
    np.testing.assert_array_equal(load().search.train.images, data.search.train.images)
    with pytest.raises(UserError, match="no image that can be opened"):
        load_data(str(path))


def test_bad_jpeg_archives(tmp_path: Path) -> None:
    pair = jpeg_pair(tmp_path / "a")
    refused("named by its training file", pair / "toy_test.npz")
    jpeg_file(tmp_path / "alone_train.npz")
    refused("needs its test file", tmp_path / "alone_train.npz")
    refused("must be labelled", jpeg_pair(tmp_path / "b", labels=None))
    refused("30 images and 29 labels", jpeg_pair(tmp_path / "c", labels=balanced(29)))
    refused("out of range; got 7", jpeg_pair(tmp_path / "d", labels=np.full(30, 7)))
    refused("lacks offsets", jpeg_pair(tmp_path / "e", offsets=None))
    refused("must ascend", jpeg_pair(tmp_path / "f", offsets=np.arange(31)[::-1]))
    refused("must ascend", jpeg_pair(tmp_path / "g", offsets=np.arange(31) * 10**9))
    refused("no image that can be opened", jpeg_pair(tmp_path / "h", jpeg=np.zeros(10**5, np.uint8)))
    refused("must be bytes", jpeg_pair(tmp_path / "i", jpeg=np.zeros((10, 10))))
    refused("is empty", jpeg_pair(tmp_path / "j", offsets=np.array([0]), labels=balanced(0)))
    refused("two classes", jpeg_pair(tmp_path / "k", labels=np.zeros(30, int)))
    refused("must differ", jpeg_pair(tmp_path / "l", classes=np.array(["a", "a", "b"])))
    jpeg_file(tmp_path / "a" / "toy_test.npz", n=9, classes=np.array(["ant", "bee", "dog"]))
    assert "dog" in refused("class that training lacks", pair)
    jpeg_file(tmp_path / "a" / "more_train.npz")
    refused("exactly one training file", pair)


# CIFAR's python batches


def batch(n: int, seed: int, side: int = 4, text_keys: bool = False) -> dict[Any, Any]:
    data = np.random.default_rng(seed).integers(0, 256, (n, 3 * side * side), np.uint8)
    made = {b"batch_label": b"one", b"labels": balanced(n).tolist(), b"data": data, b"filenames": [b"a.png"] * n}
    return {k.decode(): v for k, v in made.items()} if text_keys else made


def cifar(folder: Path, protocol: int = 2, text_keys: bool = False) -> list[dict[Any, Any]]:
    folder.mkdir(parents=True)
    batches = [batch(12, i, text_keys=text_keys) for i in range(6)]
    for name, made in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], batches, strict=True):
        (folder / name).write_bytes(pickle.dumps(made, protocol))
    meta = {b"label_names": [b"ant", b"bee", b"cat"], b"num_vis": 48}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))
    return batches


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


class Runs:
    """Unpickled, it calls what it was given."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


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


# Folders of images


def image_folder(
    root: Path, parts: tuple[str, ...] = ("train", "test"), n: int = 6, mode: str = "RGB", ext: str = "png"
) -> Path:
    """Class k, part p, image i is one colour, so that each image is told from the others after any resizing."""
    for p, part in enumerate(parts):
        for k, name in enumerate(("ant", "bee")):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                value = 10 + 100 * p + 50 * k + 5 * i
                color = value if mode == "L" else (value, 255 - value, 7 + i)
                Image.new(mode, (9 + i, 8), color).save(root / part / name / f"{i}.{ext}")
    return root


@pytest.mark.parametrize("ext", ["png", "jpg", "JPEG"])
def test_image_folders_with_a_test_folder(tmp_path: Path, ext: str) -> None:
    image_folder(tmp_path, ext=ext)
    (tmp_path / "train" / "ant" / ".DS_Store").write_bytes(b"junk")
    (tmp_path / "train" / ".cache").mkdir()
    data = load_data(str(tmp_path))
    assert (data.classes, data.input, data.name) == (("ant", "bee"), (3, 8, 9), tmp_path.name)
    assert [len(s) for s in splits(data)] == [10, 2, 12]
    red = stored(data.test.split, data)[:, 4, 4, 0]
    expected = [110 + 50 * k + 5 * i for k in range(2) for i in range(6)]
    np.testing.assert_allclose(red, expected, atol=0.01 if ext == "png" else 6)
    np.testing.assert_array_equal(data.test.split.labels, [0] * 6 + [1] * 6)
    assert data.augmentation == Augmentation(flip=True, shift=1)


def test_image_folders_by_class_alone_are_split_in_three(tmp_path: Path) -> None:
    data = load_data(str(image_folder(tmp_path, parts=("",), n=10, mode="L")))
    assert data.input == (1, 8, 9)
    assert [len(s) for s in splits(data)] == [12, 4, 4]
    shades = np.sort(np.concatenate([stored(s, data)[:, 4, 4, 0] for s in splits(data)]))
    np.testing.assert_allclose(shades, np.sort([10 + 50 * k + 5 * i for k in range(2) for i in range(10)]), atol=0.01)
    assert not data.augmentation.flip


def test_one_coloured_class_makes_all_images_coloured(tmp_path: Path) -> None:
    image_folder(tmp_path, parts=("",), mode="L")
    Image.new("RGB", (9, 8), (1, 2, 3)).save(tmp_path / "bee" / "0.png")
    assert load_data(str(tmp_path)).input == (3, 8, 9)


def test_bad_image_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused("is empty", tmp_path / "empty")
    loose = tmp_path / "loose"
    loose.mkdir()
    Image.new("L", (4, 4)).save(loose / "a.png")
    refused("must be labelled.*images in no class", loose)
    single = image_folder(tmp_path / "single", parts=("",))
    for file in (single / "bee").iterdir():
        file.unlink()
    refused("two classes or more; got 'ant alone'", single)
    Image.new("L", (4, 4)).save(single / "bee" / "a.png")
    refused("3 training images of each class or more; got '1 of bee'", single)
    refused("one of train and test alone", image_folder(tmp_path / "half", parts=("train",)))
    foreign = image_folder(tmp_path / "foreign")
    (foreign / "test" / "bee").rename(foreign / "test" / "wasp")
    refused("class that training lacks; got 'wasp'; known: ant, bee", foreign)
    bare = image_folder(tmp_path / "bare", parts=("",))
    for file in bare.glob("*/*"):
        file.unlink()
    refused("is empty", bare)


@pytest.mark.parametrize("kind", ["junk", "truncated", "empty", "gif", "16 bits"])
def test_broken_images_are_named(tmp_path: Path, kind: str) -> None:
    image_folder(tmp_path, parts=("",))
    bad = tmp_path / "bee" / "3.png"
    if kind == "16 bits":
        for file in (tmp_path / "bee").iterdir():
            Image.fromarray(np.full((8, 9), 300, np.uint16)).save(file)
        refused("8 bits a channel", tmp_path)
        return
    whole = jpeg_bytes(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    gif = io.BytesIO()
    Image.new("L", (4, 4)).save(gif, "GIF")
    bad.write_bytes({"junk": b"x" * 99, "truncated": whole[:600], "empty": b"", "gif": gif.getvalue()}[kind])
    assert str(bad) in refused("no image that can be opened", tmp_path)


# What is refused whatever the form


@pytest.mark.parametrize("text", ["cifar", "", " ", "no/such/file.npz", "~nobody-here/x", "nul\0l", "two\nlines"])
def test_unknown_data_lists_what_is_known(text: str) -> None:
    message = refused("unknown data", text)
    assert "digits" in message
    assert "x_train" in message
    assert "CIFAR-10" in message


def test_bad_arrays(tmp_path: Path) -> None:
    def bad(**changes: Any) -> Path:
        return mnist(tmp_path / "bad.npz", **changes)

    x = np.zeros((60, 6, 5), np.float32)
    x[7, 2, 2] = np.nan
    refused("must be finite.*image 7", bad(x_train=x))
    refused("must be finite", bad(x_train=np.full((60, 6, 5), 1e300)))
    refused("must be labelled", bad(y_train=None))
    refused("must be labelled", bad(y_test=None))
    refused("60 images and 59 labels", bad(y_train=balanced(59)))
    refused("60 images and 0 labels", bad(y_train=np.zeros(0)))
    refused("whole numbers", bad(y_train=balanced(60).astype(float)))
    refused("whole numbers", bad(y_train=np.eye(3, dtype=int)[balanced(60)]))
    refused("whole numbers", bad(y_train=np.int64(3)))
    refused("out of range; got -1", bad(y_train=balanced(60) - 1))
    refused("out of range; got 4000000000", bad(y_train=np.full(60, 4 * 10**9)))
    refused("out of range; got 2; the classes", bad(classes=np.array(["a", "b"])))
    refused("out of range; got 5; the classes of training are 0 to 2", bad(y_test=np.full(12, 5)))
    refused("two classes or more; got '0 alone'", bad(y_train=np.zeros(60, int), y_test=np.zeros(12, int)))
    refused("each class or more; got '0 of 0'", bad(y_train=balanced(60) + 1))
    refused("each class or more; got '2 of 1'", bad(y_train=np.repeat([0, 1, 2], [30, 2, 28])))
    refused("is empty", bad(n=0))
    refused("is empty", bad(tested=0))
    refused("1 or 3 channels.*store them last", bad(shape=(3, 6, 5)))
    refused("must hold numbers", bad(x_train=np.full((60, 4, 4), "a")))
    refused("must hold numbers", bad(x_train=np.zeros(60)))
    refused("one shape", bad(x_test=np.zeros((12, 6, 6), np.uint8)))
    refused("only images have a size; got '7 features'", bad(shape=(7,)), size=8)
    refused("known form", bad(x_train=None, y_train=None, x_test=None, y_test=None, other=np.zeros(3)))
    refused("must be a list of strings", bad(classes=np.arange(3)))


def test_corrupt_archives(tmp_path: Path) -> None:
    whole = mnist(tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "bad.npz"
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:500] + b"\0" * 400 + whole[900:]):
        path.write_bytes(content)
        refused("cannot be read as an .npz", path)
    np.save(tmp_path / "single.npy", np.zeros(3))
    refused("cannot be read as an .npz", tmp_path / "single.npy")


def test_object_arrays_are_not_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    evil = np.empty(60, object)
    evil[:] = [Runs(os.mkdir, str(mark))] * 60
    refused("cannot be read as an .npz", mnist(tmp_path / "evil.npz", y_train=evil))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seed": -1}, "seed"),
        ({"size": 0}, "image size"),
        ({"size": 10**6}, "image size"),
        ({"limit": 0}, "limit must be positive"),
        ({"limit": 19}, "limit must leave.*got 19; the least is 20"),
        ({"test_limit": 9}, "test_limit must leave.*the least is 10"),
        ({"validation": 0.0}, "share of validation"),
        ({"validation": 0.9}, "share of validation"),
        ({"validation": float("nan")}, "share of validation"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    refused(match, "digits", **options)


# The real files


@needs_real
def test_the_real_mnist() -> None:
    data = load_data(str(REAL / "mnist.npz"), limit=500)
    assert (data.input, len(data.classes)) == ((1, 28, 28), 10)
    assert [len(s) for s in splits(data)] == [400, 100, 10_000]
    assert data.augmentation == Augmentation(flip=False, shift=3)
    reference = np.load(REAL / "mnist.npz")
    np.testing.assert_array_equal(stored(data.test.split, data)[..., 0].round().astype(np.uint8), reference["x_test"])


@needs_real
def test_the_real_cifar10() -> None:
    data = load_data(str(REAL / "cifar10_jpeg_train.npz"), limit=300, test_limit=100)
    assert (data.name, data.input) == ("cifar10_jpeg", (3, 32, 32))
    assert [len(s) for s in splits(data)] == [240, 60, 100]
    assert data.augmentation == Augmentation(flip=True, shift=4)
    file = np.load(REAL / "cifar10_jpeg_test.npz")
    assert data.classes == tuple(file["classes"])
    blob, offsets, labels = file["jpeg"].tobytes(), file["offsets"], file["labels"]
    known = {}
    for i in range(len(labels)):
        image = Image.open(io.BytesIO(blob[offsets[i] : offsets[i + 1]])).convert("RGB")
        known[image.tobytes()] = labels[i]
    found = [known[image.tobytes()] for image in stored(data.test.split, data).round().astype(np.uint8)]
    np.testing.assert_array_equal(found, data.test.split.labels)
