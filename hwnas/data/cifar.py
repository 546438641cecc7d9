"""CIFAR-10's python batches: data_batch_1 to data_batch_5, test_batch and batches.meta in one folder."""

from __future__ import annotations

from math import isqrt
from pathlib import Path

import numpy as np

from hwnas.data.inert_pickle import read_inert_pickle
from hwnas.data.source import Array, Labels, Source, array_pile, checked_images, checked_labels, class_names
from hwnas.errors import UserError

TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = "test_batch"
META = "batches.meta"
EXTRACTED = "cifar-10-batches-py"  # the folder in the archive
REMEDY = "extract the archive of CIFAR-10 (python) again"


def cifar_folder(path: Path) -> Path | None:
    """The folder that holds the batches, if `path` is it or holds it."""
    for folder in (path, path / EXTRACTED):
        if any((folder / name).is_file() for name in (*TRAIN, TEST, META)):
            return folder
    return None


def read_cifar(folder: Path, size: int | None) -> Source:
    missing = [name for name in (*TRAIN, TEST, META) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}", remedy=REMEDY)
    classes = _read_classes(folder / META)
    batches = [_read_batch(folder / name, len(classes)) for name in (*TRAIN, TEST)]
    if len({images.shape[1:] for images, _ in batches}) > 1:
        raise UserError(f"the batches of {folder} must have one image size", remedy=REMEDY)
    *trained, (held_out, known) = batches
    images = np.concatenate([images for images, _ in trained])
    labels = np.concatenate([labels for _, labels in trained])
    test = array_pile(held_out, known, size)
    return Source(folder.resolve().name, classes, array_pile(images, labels, size), test, natural=True)


def _read_classes(path: Path) -> tuple[str, ...]:
    meta = read_inert_pickle(path)
    names = meta.get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str | bytes) for n in names):
        raise UserError(f"{path} must hold label_names", got=", ".join(meta), remedy=REMEDY)
    text = [n.decode("utf-8", "replace") if isinstance(n, bytes) else n for n in names]
    return class_names(np.asarray(text), str(path))


def _read_batch(path: Path, classes: int) -> tuple[Array, Labels]:
    """Images [n, side, side, 3] and labels. A batch stores an image as its red, its green and its blue plane."""
    batch = read_inert_pickle(path)
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.dtype != np.uint8:
        raise UserError(f"{path} must hold data, uint8 [n, 3072]", got=", ".join(batch), remedy=REMEDY)
    side = isqrt(data.shape[1] // 3)
    if side * side * 3 != data.shape[1]:
        raise UserError(f"{path} must hold square images of 3 channels", got=f"{data.shape[1]} values an image")
    if labels is None:
        raise UserError(f"{path} must be labelled", got=", ".join(batch), remedy=REMEDY)
    try:
        stored = np.asarray(labels)
    except (ValueError, OverflowError) as error:
        raise UserError(f"the labels of {path} must be whole numbers, one an image", got=str(error)) from error
    images = checked_images(data.reshape(len(data), 3, side, side).transpose(0, 2, 3, 1), None, str(path))
    return images, checked_labels(stored, len(data), str(path), classes)
