"""load_data: from a name or a path to a Dataset. Finds the form, chooses, splits, reads what is chosen, normalises."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.data.archive import read_archive
from hwnas.data.cifar import cifar_folder, read_cifar
from hwnas.data.dataset import Augmentation, Dataset, SearchData, Split, TestData
from hwnas.data.encoded import read_image_folder
from hwnas.data.source import Array, Labels, Source, array_pile
from hwnas.data.split import choose, share
from hwnas.errors import UserError

NAMES = ("digits",)
FORMS = (
    "an .npz of x_train, y_train, x_test and y_test, an .npz of jpeg, offsets, labels and classes, "
    "a folder of CIFAR-10 python batches, or a folder of images by class"
)
TEST_SHARE = 0.2  # held out of data that has no test split of its own
LEAST = 3  # images of each class: one for each split
MAX_SIZE = 1024
MAX_VALIDATION = 0.4  # as much as training keeps, if a fifth is held out for the test: no class of 2 loses both
SHIFT_SHARE = 8  # images are shifted by up to an eighth: 4 of CIFAR's 32 pixels

Progress = Callable[[int, int], None]


def load_data(
    text: str,
    *,
    seed: int = 0,
    size: int | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    validation: float = 0.2,
    progress: Progress | None = None,
) -> Dataset:
    """Loads `digits` or what a path holds; the same arguments give the same splits.

    `size` resizes images to size x size. `limit` keeps a stratified subset of at most so many training and validation
    images, and `test_limit` of test images; only what is kept is decoded. `validation` is a share of the training
    images or, where a test split has to be cut too (a fifth), of all images. `progress(done, total)` counts images.
    """
    _check_options(seed, size, limit, test_limit, validation)
    try:
        source = _source(text, size)
    except OSError as error:
        raise UserError(f"the data {text} cannot be read", got=error.strerror or str(error)) from error
    counts = _checked_counts(source)
    classes = len(counts)

    # One random stream per choice: the limits do not move the test split.
    if source.test is None:
        total = share(len(source.train.labels), TEST_SHARE, classes)
        tested, pool = choose(source.train.labels, total, 1, (seed, 0))
        held_out, validation = source.train, validation / (1 - TEST_SHARE)
    else:
        pool, held_out = np.arange(len(source.train.labels)), source.test
        tested = np.arange(len(held_out.labels))
    if test_limit is not None and test_limit < len(tested):
        _check_limit("test_limit", test_limit, len(np.unique(held_out.labels[tested])))
        tested = tested[choose(held_out.labels[tested], test_limit, 1, (seed, 1))[0]]
    if limit is not None and limit < len(pool):
        _check_limit("limit", limit, 2 * classes)
        pool = pool[choose(source.train.labels[pool], limit, 2, (seed, 2))[0]]
    pool = np.random.default_rng((seed, 3)).permutation(pool)  # stored by class, batches would be of one class
    labels = source.train.labels[pool]
    validated, trained = choose(labels, share(len(pool), validation, classes), 1, (seed, 4))

    done, wanted = 0, len(pool) + len(tested)

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, wanted)

    parts = [
        Split(_floats(source.train.read(pool[trained], tick)), labels[trained]),
        Split(_floats(source.train.read(pool[validated], tick)), labels[validated]),
        Split(_floats(held_out.read(tested, tick)), held_out.labels[tested]),
    ]
    mean, std = _statistics(parts[0].images)
    for part in parts:
        _normalise(part.images, mean, std)
    shape = parts[0].images.shape[1:]
    image = len(shape) == 3
    return Dataset(
        name=source.name,
        classes=source.classes,
        input=shape,
        search=SearchData(parts[0], parts[1]),
        test=TestData(parts[2]),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        augmentation=Augmentation(flip=image and source.natural, shift=min(shape[1:]) // SHIFT_SHARE if image else 0),
    )


def _check_options(seed: int, size: int | None, limit: int | None, test_limit: int | None, validation: float) -> None:
    if seed < 0:
        raise UserError("a seed must not be negative", got=seed)
    if size is not None and not 1 <= size <= MAX_SIZE:
        raise UserError(f"an image size must be between 1 and {MAX_SIZE} pixels", got=size)
    for name, value in (("limit", limit), ("test_limit", test_limit)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be positive", got=value, remedy="leave it out to keep all images")
    if not 0 < validation <= MAX_VALIDATION:
        raise UserError(f"the share of validation must be above 0 and at most {MAX_VALIDATION}", got=validation)


def _source(text: str, size: int | None) -> Source:
    if text == "digits":
        return _digits(size)
    path = Path(os.path.expanduser(text))  # unlike Path.expanduser, it lets an unknown user pass as a name
    if not text.strip() or "\0" in text or not path.exists():
        known = f"known: {', '.join(NAMES)}, or the path of {FORMS}"
        raise UserError("unknown data, or a path that does not exist", got=text, remedy=known)
    if not path.is_dir():
        return read_archive(path, size)
    batches = cifar_folder(path)
    if batches is not None:
        return read_cifar(batches, size)
    archives = sorted(p for p in path.glob("*.npz") if "train" in p.name)
    if len(archives) == 1:
        return read_archive(archives[0], size)
    if archives or any(path.glob("*.npz")):
        names = ", ".join(p.name for p in archives) or "no .npz with 'train' in its name"
        raise UserError(f"{path} must hold exactly one training file", got=names, remedy="name the file itself")
    if not any(path.iterdir()):
        raise UserError(f"{path} is empty", remedy=f"needed: {FORMS}")
    return read_image_folder(path, size)


def _digits(size: int | None) -> Source:
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels from 0 to 16."""
    from sklearn.datasets import load_digits

    stored = load_digits()
    pile = array_pile(stored.images[..., None], stored.target.astype(np.int64), size)
    return Source("digits", tuple(str(name) for name in stored.target_names), pile, None, natural=False)


def _checked_counts(source: Source) -> Labels:
    """Training images per class; UserError if they cannot be told apart or split."""
    counts = np.bincount(source.train.labels, minlength=len(source.classes))
    if np.count_nonzero(counts) < 2:
        got = f"{source.classes[int(np.argmax(counts))]} alone"
        raise UserError(f"{source.name} needs two classes or more", got=got, remedy="add images of another class")
    if counts.min() < LEAST:
        got = f"{counts.min()} of {source.classes[int(np.argmin(counts))]}"
        remedy = "add images, or drop the class and number the others from 0"
        raise UserError(f"{source.name} needs {LEAST} training images of each class or more", got=got, remedy=remedy)
    return counts


def _check_limit(name: str, value: int, least: int) -> None:
    if value < least:
        remedy = f"the least is {least}"
        raise UserError(f"{name} must leave images of every class in every split", got=value, remedy=remedy)


def _floats(images: Array) -> NDArray[np.float32]:
    """[n, h, w, c] -> float32 [n, c, h, w]; [n, features] -> float32."""
    return np.array(images if images.ndim == 2 else images.transpose(0, 3, 1, 2), np.float32, order="C")


def _statistics(images: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation per channel or feature; 1 in place of the deviation of a constant."""
    axes = (0, 2, 3) if images.ndim == 4 else (0,)
    mean = images.mean(axis=axes, dtype=np.float64)
    squares = np.zeros_like(mean)
    for start in range(0, len(images), 1024):
        chunk = images[start : start + 1024].astype(np.float64)
        squares += np.square(chunk - _along(mean, images)).sum(axis=axes)
    std = np.sqrt(squares / (images.size / mean.size))
    return mean, np.where(std > 1e-7 * np.maximum(1e-30, np.abs(mean)), std, 1.0)


def _normalise(images: NDArray[np.float32], mean: NDArray[np.float64], std: NDArray[np.float64]) -> None:
    images -= _along(mean, images).astype(np.float32)
    images /= _along(std, images).astype(np.float32)


def _along(values: NDArray[np.float64], images: NDArray[np.float32]) -> NDArray[np.float64]:
    return values[:, None, None] if images.ndim == 4 else values
