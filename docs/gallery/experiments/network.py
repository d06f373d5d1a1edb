"""Feed-forward networks. Layers have the interface of `normlib.Normalizer`, which is one of them.

Inference is ``layer(x)``, training ``layer.forward(x)`` and ``layer.backward(dy, cache)``; what is
learned is in ``layer.parameters``.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

import normlib
from experiments.data import Part
from normlib.demo.loss import cross_entropy

__all__ = [
    "ChannelNorm",
    "Convolution",
    "Dense",
    "Flatten",
    "LayerLike",
    "Network",
    "Pool",
    "Relu",
    "perceptron",
]

Array: TypeAlias = npt.NDArray[Any]
Grads: TypeAlias = dict[str, Array]


class LayerLike(Protocol):
    """What a network is made of."""

    parameters: dict[str, Array]

    def __call__(self, x: Array, /) -> Array:
        """Infer."""

    def forward(self, x: Array, /) -> tuple[Array, Any]:
        """Compute for training."""

    def backward(self, dy: Array, cache: Any, /) -> tuple[Array, Grads]:
        """Differentiate."""


class Layer:
    """A layer that computes the same in training and in inference."""

    def __init__(self) -> None:
        self.parameters: dict[str, Array] = {}

    def __call__(self, x: Array) -> Array:
        return self.forward(x)[0]

    def forward(self, x: Array) -> tuple[Array, Any]:
        """Compute for training; each layer defines it."""
        raise NotImplementedError


class Dense(Layer):
    """y = x W + b."""

    def __init__(self, n_in: int, n_out: int, rng: np.random.Generator) -> None:
        super().__init__()
        weight = rng.standard_normal((n_in, n_out)) * np.sqrt(2 / n_in)
        self.parameters = {
            "weight": weight.astype(np.float32),
            "bias": np.zeros(n_out, np.float32),
        }

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Compute y."""
        return x @ self.parameters["weight"] + self.parameters["bias"], x

    def backward(self, dy: Array, cache: Array) -> tuple[Array, Grads]:
        """Differentiate."""
        grads = {"weight": cache.T @ dy, "bias": dy.sum(axis=0)}
        return dy @ self.parameters["weight"].T, grads


class Relu(Layer):
    """y = max(x, 0)."""

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Compute y."""
        return np.maximum(x, 0), x > 0

    def backward(self, dy: Array, cache: Array) -> tuple[Array, Grads]:
        """Differentiate."""
        return dy * cache, {}


class Flatten(Layer):
    """Each case in one row."""

    def forward(self, x: Array) -> tuple[Array, tuple[int, ...]]:
        """Compute y."""
        return x.reshape(len(x), -1), x.shape

    def backward(self, dy: Array, cache: tuple[int, ...]) -> tuple[Array, Grads]:
        """Differentiate."""
        return dy.reshape(cache), {}


class Pool(Layer):
    """The mean of squares of pixels: (N, C, h, w) to (N, C, h / side, w / side)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Array) -> tuple[Array, None]:
        """Compute y."""
        n, c, height, width = x.shape
        side = self.side
        squares = x.reshape(n, c, height // side, side, width // side, side)
        return squares.mean(axis=(3, 5)), None

    def backward(self, dy: Array, cache: None) -> tuple[Array, Grads]:
        """Differentiate."""
        return (dy / self.side**2).repeat(self.side, axis=2).repeat(self.side, axis=3), {}


class Convolution(Layer):
    """3 × 3, with the image's border padded by zeros: (N, C_in, h, w) to (N, C_out, h, w)."""

    def __init__(self, c_in: int, c_out: int, rng: np.random.Generator) -> None:
        super().__init__()
        weight = rng.standard_normal((c_out, c_in, 3, 3)) * np.sqrt(2 / (9 * c_in))
        self.parameters = {
            "weight": weight.astype(np.float32),
            "bias": np.zeros((c_out, 1, 1), np.float32),
        }

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Compute y: a product with every window of the image."""
        windows = _windows(x)
        return _product(windows, self.parameters["weight"]) + self.parameters["bias"], windows

    def backward(self, dy: Array, cache: Array) -> tuple[Array, Grads]:
        """Differentiate: the image's gradient is a convolution with the kernel turned round."""
        grads = {
            "weight": np.tensordot(dy, cache, axes=((0, 2, 3), (0, 2, 3))),
            "bias": dy.sum(axis=(0, 2, 3))[:, np.newaxis, np.newaxis],
        }
        turned = self.parameters["weight"][:, :, ::-1, ::-1].swapaxes(0, 1)
        return _product(_windows(dy), turned), grads


def _windows(x: Array) -> Array:
    """Return the 3 × 3 surroundings of each pixel, (N, C, h, w, 3, 3)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))


def _product(windows: Array, weight: Array) -> Array:
    y = np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3)))  # (N, h, w, C)
    return np.ascontiguousarray(y.transpose(0, 3, 1, 2))


class ChannelNorm(Layer):
    """A normalization of images (N, C, h, w), from normlib's functions of arrays.

    Parameters
    ----------
    kind : {"layer", "batch", "group"}
        Statistics over one case's channels and pixels; over the batch's pixels of one channel; over
        one case's pixels of a group of channels.
    shape : tuple of int
        (C, h, w).
    groups : int
        How many groups.
    """

    def __init__(self, kind: str, shape: tuple[int, int, int], groups: int = 4) -> None:
        super().__init__()
        factors = shape if kind == "layer" else shape[:1]
        self.kind, self.groups = kind, groups
        self.parameters = {
            "gain": np.ones(factors, np.float32),
            "bias": np.zeros(factors, np.float32),
        }
        self.running = np.zeros(shape[0]), np.ones(shape[0])

    def __call__(self, x: Array) -> Array:
        if self.kind == "batch":
            gain, bias = self.parameters.values()
            return normlib.batch_norm(x, *self.running, gain, bias, channel_axis=1)
        return self.forward(x)[0]

    def forward(self, x: Array) -> tuple[Array, Any]:
        """Normalize; batch norm's running statistics move by a tenth."""
        gain, bias = self.parameters.values()
        if self.kind == "layer":
            y, *statistics = normlib.layer_norm_forward(x, gain, bias, axis=(1, 2, 3))
        elif self.kind == "batch":
            y, *statistics = normlib.batch_norm_forward(x, gain, bias, channel_axis=1)
            for running, new in zip(self.running, statistics, strict=True):
                running += 0.1 * (new - running)
        else:
            y, *statistics = normlib.group_norm_forward(x, self.groups, gain, bias)
        return y, (x, *statistics)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        """Differentiate."""
        x, *statistics = cache
        gain = self.parameters["gain"]
        if self.kind == "layer":
            grads = normlib.layer_norm_backward(dy, x, *statistics, gain, axis=(1, 2, 3))
        elif self.kind == "batch":
            grads = normlib.batch_norm_backward(dy, x, *statistics, gain, channel_axis=1)
        else:
            grads = normlib.group_norm_backward(dy, x, self.groups, *statistics, gain)
        dx, dgain, dbias = grads
        return dx, {"gain": dgain, "bias": dbias}


class Network:
    """Layers one after the other, and the cross-entropy of what comes out."""

    def __init__(self, layers: Sequence[LayerLike]) -> None:
        self.layers = layers
        self.parameters = {
            f"{place}.{name}": array
            for place, layer in enumerate(layers)
            for name, array in layer.parameters.items()
        }

    def __call__(self, x: Array) -> Array:
        """Return scores for inference."""
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, x: Array) -> tuple[Array, list[Any]]:
        """Return scores as training computes them."""
        caches = []
        for layer in self.layers:
            x, cache = layer.forward(x)
            caches.append(cache)
        return x, caches

    def loss_and_gradients(self, part: Part) -> tuple[float, float, Grads]:
        """Return the mean negative log likelihood, the accuracy, and the gradients."""
        scores, caches = self.forward(part.x)
        loss, accuracy, gradient = cross_entropy(scores, part.labels)
        grads: Grads = {}
        for place in reversed(range(len(self.layers))):
            gradient, own = self.layers[place].backward(gradient, caches[place])
            grads.update({f"{place}.{name}": array for name, array in own.items()})
        return loss, accuracy, grads

    def error(self, part: Part) -> float:
        """Return the share of cases that it gets wrong, in inference."""
        return float(np.mean(self(part.x).argmax(axis=1) != part.labels))


def perceptron(sizes: Sequence[int], norm: Callable[[int], LayerLike] | None, seed: int) -> Network:
    """Make a network of dense layers, each but the last normalized and cut off at 0."""
    rng = np.random.default_rng(seed)
    layers: list[LayerLike] = []
    for n_in, n_out in itertools.pairwise(sizes[:-1]):
        layers.append(Dense(n_in, n_out, rng))
        if norm is not None:
            layers.append(norm(n_out))
        layers.append(Relu())
    return Network([*layers, Dense(sizes[-2], sizes[-1], rng)])
