"""The loss of a classifier."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["cross_entropy"]

Array: TypeAlias = npt.NDArray[Any]


def cross_entropy(scores: Array, labels: Array) -> tuple[float, float, Array]:
    """Return the mean negative log likelihood of the labels, the accuracy, and the gradient.

    Parameters
    ----------
    scores : ndarray, shape (N, classes)
        Logits: their softmax is the probabilities.
    labels : ndarray of int, shape (N,)
        The right classes.

    Returns
    -------
    loss, accuracy : float
    d_scores : ndarray, shape (N, classes)

    Examples
    --------
    >>> loss, accuracy, d_scores = cross_entropy(np.zeros((1, 2)), np.array([1]))
    >>> round(loss, 4), d_scores
    (0.6931, array([[ 0.5, -0.5]]))
    """
    rows = np.arange(len(labels))
    scores = scores - scores.max(axis=1, keepdims=True)
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    d_scores = np.exp(log_p)
    d_scores[rows, labels] -= 1
    d_scores /= len(labels)
    accuracy = np.mean(scores.argmax(axis=1) == labels)
    return float(-log_p[rows, labels].mean()), float(accuracy), d_scores
