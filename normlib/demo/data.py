"""Handwritten digits as sequences, for a network that reads them bit by bit."""

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

__all__ = ["CLASSES", "Digits", "Images", "Reading", "load", "load_images", "read_digits", "split"]

Array: TypeAlias = npt.NDArray[Any]
Reading: TypeAlias = Literal["pixel", "row"]

CLASSES = 10


class Digits(NamedTuple):
    """Sequences, shape (T, N, I), and the digit of each, shape (N,)."""

    x: Array
    labels: npt.NDArray[np.int64]


class Images(NamedTuple):
    """Pixels in [0, 1], shape (N, height, width), and the digit of each image, shape (N,)."""

    pixels: Array
    labels: npt.NDArray[np.int64]


def read_digits(images: Array, by: Reading) -> Array:
    """Return images as sequences, from the top left to the bottom right.

    Parameters
    ----------
    images : ndarray, shape (N, height, width)
        Pixels.
    by : {"pixel", "row"}
        What a time step shows.

    Returns
    -------
    x : ndarray, shape (height · width, N, 1) or (height, N, width)

    Examples
    --------
    >>> images = np.arange(8).reshape(2, 2, 2)
    >>> read_digits(images, "pixel")[:, 0, 0]
    array([0, 1, 2, 3])
    >>> read_digits(images, "row")[:, 0]
    array([[0, 1],
           [2, 3]])
    """
    size = 1 if by == "pixel" else images.shape[2]
    return np.ascontiguousarray(images.reshape(len(images), -1, size).swapaxes(0, 1))


def split(images: Images, seed: int) -> tuple[Images, Images]:
    """Return four fifths and one fifth of the images, with the same mix of digits."""
    parts = train_test_split(*images, test_size=0.2, stratify=images.labels, random_state=seed)
    train_pixels, test_pixels, train_labels, test_labels = parts
    return Images(train_pixels, train_labels), Images(test_pixels, test_labels)


def load_images(samples: int | None = None) -> Images:
    """Load the digits that come with scikit-learn, 1797 images of 8 × 8 pixels, in float32."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels[:samples] / 16).astype(np.float32).reshape(-1, 8, 8)
    return Images(pixels, labels[:samples])


def load(by: Reading = "pixel", *, seed: int = 0, samples: int | None = None) -> tuple[Digits, ...]:
    """Load scikit-learn's digits as sequences.

    Parameters
    ----------
    by : {"pixel", "row"}
        What a time step shows: T = 64 steps of I = 1 value, or 8 steps of 8.
    seed : int, default 0
        Draws which images are for training.
    samples : int, optional
        Take only so many images.

    Returns
    -------
    train, test : Digits
        Four fifths and one fifth of the images, with the same mix of digits. Pixels are float32 in
        [0, 1].
    """
    parts = split(load_images(samples), seed)
    return tuple(Digits(read_digits(part.pixels, by), part.labels) for part in parts)
