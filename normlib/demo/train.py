"""A network that reads digits, and its training: NumPy and normlib's public interface, no more."""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import normlib
from normlib.demo.data import CLASSES, Digits
from normlib.demo.loss import cross_entropy
from normlib.demo.optimizer import Adam, clip
from normlib.diagnostics import HiddenState, hidden_state

__all__ = ["Classifier", "Epoch", "train"]

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images gave."""

    loss: float
    train_accuracy: float
    test_accuracy: float
    seconds: float


class Classifier:
    """A recurrent network, and a linear readout of its last hidden state: a score for each digit.

    Parameters
    ----------
    input_size, hidden_size, n_steps : int
        I, H and T.
    cell : str
        "lstm", "gru" or "rnn".
    norm : str
        A registered normalizer. If it can keep statistics for each time step, it does.
    seed : int
        Draws the weights, which are the same for every normalizer.
    dtype : {float32, float64}, default float32
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        n_steps: int,
        *,
        cell: str,
        norm: str,
        seed: int,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        rng = np.random.default_rng(seed)
        offered = normlib.create(norm, hidden_size).get_config()
        self.rnn = normlib.RNN(
            input_size,
            hidden_size,
            cell=cell,
            norm=norm,
            norm_config={"steps": n_steps} if "steps" in offered else None,
            rng=rng,
            dtype=dtype,
        )
        bound = 1 / np.sqrt(hidden_size)
        self.weight = rng.uniform(-bound, bound, (hidden_size, CLASSES)).astype(dtype)
        self.bias = np.zeros(CLASSES, dtype)

    @property
    def parameters(self) -> dict[str, Array]:
        """All that is learned, as live arrays."""
        return {**self.rnn.parameters, "weight": self.weight, "bias": self.bias}

    def __call__(self, x: Array) -> Array:
        """Return scores, shape (N, 10), for sequences of shape (T, N, I)."""
        y, _ = self.rnn(x)
        scores: Array = y[-1] @ self.weight + self.bias
        return scores

    def accuracy(self, digits: Digits) -> float:
        """Return the share of `digits` that it reads right."""
        return float(np.mean(self(digits.x).argmax(axis=1) == digits.labels))

    def loss_and_gradients(self, digits: Digits) -> tuple[float, float, dict[str, Array]]:
        """Return the mean cross-entropy, the accuracy, and the gradients of the former."""
        y, _, cache = self.rnn.forward(digits.x)
        scores = y[-1] @ self.weight + self.bias
        loss, accuracy, d_scores = cross_entropy(scores, digits.labels)
        dy = np.zeros_like(y)
        dy[-1] = d_scores @ self.weight.T
        _, _, grads = self.rnn.backward(dy, cache)
        grads |= {"weight": y[-1].T @ d_scores, "bias": d_scores.sum(axis=0)}
        return loss, accuracy, grads

    def hidden_state(self, x: Array) -> HiddenState:
        """Measure the hidden state over time, normalized by the statistics of `x` itself.

        That is how training sees it; a new network has no running statistics yet. The network does
        not change.
        """
        y, _, _ = copy.deepcopy(self.rnn).forward(x)
        return hidden_state(y)


def train(
    classifier: Classifier,
    digits: Digits,
    test: Digits,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    max_norm: float = 1.0,
) -> Iterator[Epoch]:
    """Train by Adam on shuffled batches, in place; give the figures of each epoch when it is done.

    Parameters
    ----------
    classifier : Classifier
        What learns.
    digits, test : Digits
        To train on, and to measure the accuracy with after each epoch.
    epochs, batch_size : int
        Passes over the digits, and how many of them make a batch.
    learning_rate : float
        Of Adam.
    seed : int
        Draws the batches.
    max_norm : float, default 1.0
        Gradients are scaled down to this norm.
    """
    rng = np.random.default_rng(seed)
    optimizer = Adam(classifier.parameters, learning_rate)
    n_images = len(digits.labels)
    for _ in range(epochs):
        start = time.perf_counter()
        loss = correct = 0.0
        for batch in np.split(rng.permutation(n_images), range(batch_size, n_images, batch_size)):
            part = Digits(digits.x[:, batch], digits.labels[batch])
            batch_loss, batch_accuracy, grads = classifier.loss_and_gradients(part)
            optimizer.step(clip(grads, max_norm))
            loss += batch_loss * len(batch)
            correct += batch_accuracy * len(batch)
        seconds = time.perf_counter() - start
        yield Epoch(loss / n_images, correct / n_images, classifier.accuracy(test), seconds)
