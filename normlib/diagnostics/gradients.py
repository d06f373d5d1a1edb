"""How much of a gradient arrives at each earlier time step."""

import copy
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from normlib.arrays import Array, as_float
from normlib.errors import ParameterError, ShapeError
from normlib.rnn import RNN
from normlib.rnn.arguments import State

__all__ = ["GradientNorms", "gradient_norms"]


class GradientNorms(NamedTuple):
    """What `gradient_norms` measures: Euclidean norms over rows and units, in float64.

    Attributes
    ----------
    h : ndarray, shape (layers, T)
        Of the gradient with respect to the hidden state after each time step. In layers below the
        last one it is what comes back from later time steps, without the way up through the layer
        above at the same step.
    c : ndarray, shape (layers, T), or None
        Of that with respect to the LSTM's cell, h being held; None for the other cells.
    x : ndarray, shape (T,)
        Of that with respect to the input.
    """

    h: Array
    c: Array | None
    x: Array


def gradient_norms(
    rnn: RNN, x: npt.ArrayLike, dy: npt.ArrayLike, *, state: State | None = None
) -> GradientNorms:
    r"""Measure the gradient of a loss at each time step.

    For the loss L whose gradient `dy` is, the norm of the whole derivative

    .. math::
        \frac{dL}{dh_t} = \frac{∂L}{∂h_t}
            + \left(\frac{∂h_{t+1}}{∂h_t}\right)^{\!\top} \frac{dL}{dh_{t+1}},

    and likewise for c and x. With a `dy` at the last time step alone, this shows whether gradients
    vanish or explode on their way back.

    Parameters
    ----------
    rnn : RNN
        A network that looks back only. It does not change.
    x : array_like, shape (T, N, I)
        What it reads. Batch statistics are those of these rows, as in training.
    dy : array_like, shape (T, N, H) or (N, H)
        The gradient with respect to y; with two axes, that at the last time step, the others
        having none.
    state : ndarray or tuple of ndarray, optional
        The initial state; zero if not given.

    Returns
    -------
    GradientNorms

    Raises
    ------
    ParameterError
        If `rnn` is bidirectional: a state of it is not the only way from one step to the next. Or
        if there are fewer rows than its normalizers need for their statistics.
    ShapeError, DTypeError
        As ``RNN.forward`` and ``RNN.backward`` raise them.

    Notes
    -----
    The network runs on one time step after the other, each continuing from the state before, and
    back the same way: the states' gradients then pass through the public interface. Outputs and
    gradients are those of one run over the whole sequence.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> from normlib.diagnostics import gradient_norms
    >>> rnn = normlib.RNN(1, 8, cell="rnn", norm=None, rng=0)
    >>> x = np.random.default_rng(0).standard_normal((20, 4, 1), dtype=np.float32)
    >>> norms = gradient_norms(rnn, x, np.ones((4, 8), np.float32))
    >>> bool(norms.h[0, 0] < 0.01 * norms.h[0, -1])  # it has vanished
    True
    """
    if rnn.bidirectional:
        raise ParameterError(
            "gradient_norms needs a network that only looks back: create it with "
            "bidirectional=False"
        )
    array, gradient = as_float(x, "x"), as_float(dy, "dy")
    if array.ndim != 3:
        raise ShapeError(f"x must have shape (T, N, {rnn.input_size}); got {array.shape}")
    n_steps, n_batch, _ = array.shape
    few = max((norm.min_rows for norm in rnn.normalizers.values()), default=0)
    if n_batch < few:
        raise ParameterError(
            f"this network's normalizers need at least {few} rows for their statistics; x has "
            f"{n_batch}"
        )
    shape = (n_steps, n_batch, rnn.output_size)
    if gradient.ndim == 2 and n_steps and gradient.shape == shape[1:]:
        last, gradient = gradient, np.zeros(shape, gradient.dtype)
        gradient[-1] = last
    if gradient.shape != shape:
        raise ShapeError(
            f"dy must have the shape of y, {shape}, or {shape[1:]} for the last time step alone; "
            f"got {gradient.shape}"
        )

    copied = copy.deepcopy(rnn)  # forward may update running statistics
    caches = []
    for step in range(n_steps):
        _, state, cache = copied.forward(array[step : step + 1], state)
        caches.append(cache)
    n_states = 2 if rnn.cell == "lstm" else 1
    norms = np.empty((n_states, rnn.num_layers, n_steps))
    of_input = np.empty(n_steps)
    dstate: State | None = None
    for step in reversed(range(n_steps)):
        arrays = _parts(dstate) or [np.zeros((rnn.num_layers, n_batch, rnn.hidden_size))] * n_states
        whole = [part.astype(np.float64) for part in arrays]
        dx, dstate, _ = copied.backward(gradient[step : step + 1], caches.pop(), dstate)
        with np.errstate(all="ignore"):  # gradients that explode are measured, too
            whole[0][-1] += gradient[step]
            for place, part in enumerate(whole):
                norms[place, :, step] = np.sqrt(np.square(part).sum(axis=(1, 2)))
            of_input[step] = np.sqrt(np.square(dx, dtype=np.float64).sum())
    return GradientNorms(norms[0], norms[1] if n_states == 2 else None, of_input)


def _parts(state: State | None) -> list[Array]:
    if state is None:
        return []
    return list(state) if isinstance(state, tuple) else [state]
