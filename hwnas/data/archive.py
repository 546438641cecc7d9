"""The two .npz forms: MNIST's arrays, and images that are kept as JPEG (`jpeg`, `offsets`, `labels`, `classes`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from zipfile import is_zipfile

import numpy as np

from hwnas.data.encoded import Encoded, common_look, encoded_pile
from hwnas.data.source import (
    Array,
    Labels,
    Source,
    array_pile,
    checked_images,
    checked_labels,
    class_names,
    missing_class,
    number_names,
)
from hwnas.errors import UserError

KEYS = ("x_train", "y_train", "x_test", "y_test", "jpeg", "offsets", "labels", "classes")


def read_archive(path: Path, size: int | None) -> Source:
    arrays = _load(path)
    if "jpeg" in arrays:
        return _jpeg(path, arrays, size)
    if "x_train" in arrays:
        return _arrays(path, arrays, size)
    remedy = "needed: x_train, y_train, x_test and y_test, or jpeg, offsets, labels and classes"
    got = ", ".join(arrays) or "none of these"
    raise UserError(f"{path} holds no images of a known form", got=got, remedy=remedy)


def _load(path: Path) -> dict[str, Array]:
    try:
        opened = np.load(path, allow_pickle=False) if is_zipfile(path) else None
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("no archive, or a truncated one")
        with opened as archive:
            return {key: archive[key] for key in KEYS if key in archive.files}
    except Exception as error:  # a damaged archive raises whatever zipfile, zlib and numpy's header parser do
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read as an .npz of arrays", got=reason, remedy="fetch it again") from error


def _arrays(path: Path, arrays: Mapping[str, Array], size: int | None) -> Source:
    if ("x_test" in arrays) != ("y_test" in arrays) or "y_train" not in arrays:
        remedy = "store y_train and y_test beside x_train and x_test"
        raise UserError(f"{path} must be labelled", got=", ".join(arrays), remedy=remedy)
    where, tested = f"x_train of {path}", f"x_test of {path}"
    images = checked_images(arrays["x_train"], size, where)
    names = class_names(arrays["classes"], str(path)) if "classes" in arrays else None
    labels = checked_labels(arrays["y_train"], len(images), where, len(names) if names else None)
    classes = names or number_names(labels)
    train = array_pile(images, labels, size)
    natural = images.ndim == 4 and images.shape[3] == 3
    if "x_test" not in arrays:
        return Source(path.stem, classes, train, None, natural)
    held_out = checked_images(arrays["x_test"], size, tested)
    known = checked_labels(arrays["y_test"], len(held_out), tested, len(classes))
    own = slice(1, None) if size is None else slice(3, None)  # what resizing does not make equal
    if images.shape[own] != held_out.shape[own] or images.ndim != held_out.ndim:
        got = f"{list(images.shape)} and {list(held_out.shape)}"
        raise UserError(f"x_train and x_test of {path} must have images of one shape", got=got)
    return Source(path.stem, classes, train, array_pile(held_out, known, size), natural)


def _jpeg(path: Path, arrays: Mapping[str, Array], size: int | None) -> Source:
    if "test" in path.name and "train" not in path.name:
        remedy = "name the training file; the test file is found beside it"
        raise UserError("data is named by its training file", got=str(path), remedy=remedy)
    images, labels, classes = _read_jpeg(path, arrays)
    look = common_look(images, labels, size)
    pile = encoded_pile(images, labels, look)
    natural = look.mode == "RGB"
    if "train" not in path.name:
        return Source(path.stem, classes, pile, None, natural)
    sibling = path.with_name(path.name.replace("train", "test"))
    if not sibling.is_file():
        remedy = f"put {sibling.name} beside it, or drop 'train' from its name and a fifth is held out for the test"
        raise UserError("a training file needs its test file", got=str(path), remedy=remedy)
    tested, stored, names = _read_jpeg(sibling, _load(sibling))
    foreign = [names[i] for i in np.unique(stored) if names[i] not in classes]
    if foreign:
        raise missing_class(str(sibling), foreign[0], classes)
    position = np.asarray([classes.index(n) if n in classes else -1 for n in names], np.int64)
    name = path.stem.replace("train", "").strip("_-. ") or path.resolve().parent.name
    return Source(name, classes, pile, encoded_pile(tested, position[stored], look), natural)


def _read_jpeg(path: Path, arrays: Mapping[str, Array]) -> tuple[Encoded, Labels, tuple[str, ...]]:
    if "labels" not in arrays:
        remedy = "store labels and classes beside jpeg"
        raise UserError(f"{path} must be labelled", got=", ".join(arrays), remedy=remedy)
    missing = [key for key in ("jpeg", "offsets", "classes") if key not in arrays]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}", got=", ".join(arrays))
    blob, offsets = arrays["jpeg"], arrays["offsets"]
    if blob.dtype != np.uint8 or blob.ndim != 1:
        raise UserError(f"jpeg of {path} must be bytes", got=f"{blob.dtype} of shape {list(blob.shape)}")
    if offsets.ndim != 1 or offsets.dtype.kind not in "ui" or len(offsets) == 0:
        got = f"{offsets.dtype} of shape {list(offsets.shape)}"
        raise UserError(f"offsets of {path} must be whole numbers", got=got)
    ends = offsets.astype(np.int64)
    if ends[0] < 0 or ends[-1] > len(blob) or (np.diff(ends) < 0).any():
        raise UserError(f"offsets of {path} must ascend within the {len(blob)} bytes of jpeg", remedy="fetch it again")
    classes = class_names(arrays["classes"], str(path))
    labels = checked_labels(arrays["labels"], len(ends) - 1, str(path), len(classes))
    encoded = Encoded(lambda i: blob[ends[i] : ends[i + 1]].tobytes(), lambda i: f"image {i} of {path}")
    return encoded, labels, classes
