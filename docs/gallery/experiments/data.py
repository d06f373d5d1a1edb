"""Data to learn from: images of digits, and text; bundled, or from a file."""

import gzip
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib.demo.data import Images, load_images, split

__all__ = ["IMAGES", "TEXT", "Part", "Text", "batches", "images", "parts", "read_idx", "text"]

Array: TypeAlias = npt.NDArray[Any]

IMAGES = (
    "images in the IDX format, such as MNIST's train-images-idx3-ubyte.gz, with the labels' file "
    "beside it (default: the digits that come with scikit-learn)"
)
TEXT = "a text file (default: the sources of Python's standard library)"
CHARACTERS = 500_000


class Part(NamedTuple):
    """Examples and their labels; in sequences, time comes first in both."""

    x: Array
    labels: Array


def images(path: Path | None, seed: int) -> tuple[Images, Images]:
    """Load images to train on and to test with, a fifth: bundled ones, or those of an IDX file."""
    return split(load_images() if path is None else _load_idx(path), seed)


def parts(path: Path | None, seed: int) -> tuple[Part, Part]:
    """Load images as rows of pixels (N, pixels), which knows nothing of what is beside what."""
    train, test = (
        Part(part.pixels.reshape(len(part.pixels), -1), part.labels) for part in images(path, seed)
    )
    return train, test


def read_idx(path: Path) -> Array:
    """Read an array of bytes in the IDX format, packed by gzip or not."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes: it must begin with 00 00 08")
    n_axes = raw[3]
    shape = np.frombuffer(raw, ">u4", n_axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * n_axes).reshape(shape)


def _load_idx(path: Path) -> Images:
    labels = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    if labels == path or not labels.exists():
        raise ValueError(f"no labels beside {path}: looked for {labels.name}")
    pixels = read_idx(path).astype(np.float32) / 255
    return Images(pixels, read_idx(labels).astype(np.int64))


def batches(n: int, size: int, rng: np.random.Generator) -> Iterator[Array]:
    """Give the places of n examples in shuffled batches, without end; leftovers are left out."""
    size = min(size, n)
    while True:
        order = rng.permutation(n)
        for start in range(0, n - size + 1, size):
            yield order[start : start + size]


class Text:
    """A text as numbers, nine tenths to train on and a tenth, block by block, to test with."""

    def __init__(self, characters: str) -> None:
        kept, codes = np.unique(np.array(list(characters)), return_inverse=True)
        self.vocabulary = len(kept)
        block = max(1, len(codes) // 100)
        is_test = np.arange(len(codes)) // block % 10 == 9
        self.train, self.test = codes[~is_test], codes[is_test]

    def sample(self, codes: Array, n_steps: int, n_batch: int, rng: np.random.Generator) -> Part:
        """Draw sequences as one-hot rows, (T, N, V), and the character after each, (T, N)."""
        if len(codes) <= n_steps:
            raise ValueError(
                f"the text is too short for {n_steps} steps: {len(self.train)} characters to train "
                f"on and {len(self.test)} to test with"
            )
        starts = rng.integers(0, len(codes) - n_steps, n_batch)
        window = codes[starts + np.arange(n_steps + 1)[:, np.newaxis]]
        return Part(np.eye(self.vocabulary, dtype=np.float32)[window[:-1]], window[1:])


def text(path: Path | None) -> Text:
    """Load text: printable ASCII of a file, or of the standard library's modules."""
    if path is not None:
        found = path.read_text(encoding="utf-8", errors="replace")
    else:
        found = ""
        for module in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            found += module.read_text(encoding="utf-8", errors="replace")
            if len(found) > 2 * CHARACTERS:
                break
    return Text(
        "".join(c for c in found if c.isascii() and (c.isprintable() or c == "\n"))[:CHARACTERS]
    )
