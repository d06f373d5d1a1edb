"""Adam, and the clipping of gradients."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Adam", "clip"]

Array: TypeAlias = npt.NDArray[Any]


def clip(grads: Mapping[str, Array], limit: float) -> dict[str, Array]:
    """Scale gradients so that their norm, over all of them together, is at most `limit`.

    Examples
    --------
    >>> clip({"a": np.array([3.0]), "b": np.array([4.0])}, limit=1.0)
    {'a': array([0.6]), 'b': array([0.8])}
    """
    norm = np.sqrt(sum(np.sum(np.square(grad, dtype=np.float64)) for grad in grads.values()))
    if norm <= limit:
        return dict(grads)
    return {name: (grad * (limit / norm)).astype(grad.dtype) for name, grad in grads.items()}


class Adam:
    r"""Adam: steps scaled by running moments m and v of each gradient g.

    .. math::
        m &← β_1 m + (1 - β_1) g, \qquad v ← β_2 v + (1 - β_2) g^2 \\
        p &← p - lr \cdot \frac{m / (1 - β_1^t)}{\sqrt{v / (1 - β_2^t)} + ε}

    Parameters
    ----------
    parameters : mapping of str to ndarray
        What `step` changes, in place.
    learning_rate : float
    betas : tuple of float, default (0.9, 0.999)
    eps : float, default 1e-8

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980.
    """

    def __init__(
        self,
        parameters: Mapping[str, Array],
        learning_rate: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = parameters
        self.learning_rate = learning_rate
        self.betas = betas
        self.eps = eps
        self.steps = 0
        self.means = {name: np.zeros_like(array) for name, array in parameters.items()}
        self.squares = {name: np.zeros_like(array) for name, array in parameters.items()}

    def step(self, grads: Mapping[str, Array]) -> None:
        """Change every parameter by one step against its gradient, given under the same name."""
        self.steps += 1
        beta1, beta2 = self.betas
        for name, parameter in self.parameters.items():
            mean, square, grad = self.means[name], self.squares[name], grads[name]
            mean += (1 - beta1) * (grad - mean)
            square += (1 - beta2) * (grad * grad - square)
            step = mean / (1 - beta1**self.steps)
            step /= np.sqrt(square / (1 - beta2**self.steps)) + self.eps
            parameter -= self.learning_rate * step
