"""Source: labelled images as stored, before they are chosen, split and normalised. Every reader returns one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.data.resize import resize
from hwnas.errors import UserError

Array = NDArray[Any]
Labels = NDArray[np.int64]
Tick = Callable[[int], None]  # told how many more images have been read


@dataclass(frozen=True, eq=False)
class Pile:
    """Labels, and images that are read when they are chosen: `read(indices, tick)` is [n, h, w, c] or [n, features]."""

    labels: Labels
    read: Callable[[Labels, Tick], Array]


@dataclass(frozen=True, eq=False)
class Source:
    """Stored data. Without a test pile, a test split is cut from the other. `natural`: mirrored, it is as likely."""

    name: str
    classes: tuple[str, ...]
    train: Pile
    test: Pile | None
    natural: bool


def number_names(labels: Labels) -> tuple[str, ...]:
    """Class names for labels that came without: their numbers."""
    return tuple(str(i) for i in range(int(labels.max()) + 1))


def checked_labels(stored: Array, count: int, where: str, classes: int | None = None) -> Labels:
    """Labels as int64 [count], each below `classes` if that is known."""
    if count == 0:
        raise _empty(where)
    if stored.ndim == 2 and stored.shape[1] == 1:
        stored = stored[:, 0]
    if stored.ndim == 1 and len(stored) != count:
        remedy = "every image needs exactly one label"
        raise UserError(f"{where} must be labelled", got=f"{count} images and {len(stored)} labels", remedy=remedy)
    if stored.ndim != 1 or stored.dtype.kind not in "ui":
        got = f"{stored.dtype} of shape {list(stored.shape)}"
        raise UserError(f"the labels of {where} must be whole numbers, one an image", got=got)
    # Without names, a label that is no smaller than the number of images leaves some class without any.
    bound = count if classes is None else classes
    outside = (stored < 0) | (stored >= bound)
    if outside.any():
        known = "number the classes from 0, none left out"
        remedy = known if classes is None else f"the classes of training are 0 to {bound - 1}"
        raise UserError(f"a label of {where} is out of range", got=int(stored[outside][0]), remedy=remedy)
    return stored.astype(np.int64)


def class_names(stored: Array, where: str) -> tuple[str, ...]:
    if stored.ndim != 1 or stored.dtype.kind not in "SU":
        got = f"{stored.dtype} of shape {list(stored.shape)}"
        raise UserError(f"the class names of {where} must be a list of strings", got=got)
    names = tuple(n.decode("utf-8", "replace") if isinstance(n, bytes) else n for n in stored.tolist())
    if len(set(names)) != len(names):
        raise UserError(f"the class names of {where} must differ", got=", ".join(names))
    return names


def checked_images(images: Array, size: int | None, where: str) -> Array:
    """Images as [n, h, w, c] or [n, features]; from [n, h, w] too."""
    if images.size == 0:
        raise _empty(where)
    if images.dtype.kind not in "uifb" or images.ndim not in (2, 3, 4):
        got = f"{images.dtype} of shape {list(images.shape)}"
        raise UserError(f"{where} must hold numbers of shape [n, h, w], [n, h, w, c] or [n, features]", got=got)
    if images.dtype.kind == "f":
        with np.errstate(over="ignore"):
            finite = np.isfinite(images.astype(np.float32)).reshape(len(images), -1).all(axis=1)
        if not finite.all():
            got = f"NaN, infinity or a number beyond float32 in image {int(np.argmin(finite))}"
            raise UserError(f"{where} must be finite", got=got, remedy="repair the image or drop it")
    if images.ndim == 2 and size is not None:
        raise UserError("only images have a size", got=f"{images.shape[1]} features", remedy="leave the size out")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        got = f"shape {list(images.shape)}"
        raise UserError(f"{where} must have 1 or 3 channels", got=got, remedy="store them last: [n, h, w, c]")
    return images


def array_pile(images: Array, labels: Labels, size: int | None) -> Pile:
    """A pile of checked images in memory."""

    def read(indices: Labels, tick: Tick) -> Array:
        chosen = images[indices]
        if size is not None and chosen.shape[1:3] != (size, size):
            chosen = resize(chosen, size)
        tick(len(indices))
        return chosen

    return Pile(labels, read)


def missing_class(where: str, found: str, classes: tuple[str, ...]) -> UserError:
    known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    return UserError(f"{where} has a class that training lacks", got=found, remedy=f"known: {known}")


def _empty(where: str) -> UserError:
    return UserError(f"{where} is empty", got="0 images", remedy="name data with labelled images")
