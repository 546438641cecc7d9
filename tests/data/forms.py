"""The forms of data, made up on the disk, and how a test looks into what was loaded."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from hwnas.data import Dataset, Split, load_data
from hwnas.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
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


class Runs:
    """Unpickled, it calls what it was given."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


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
