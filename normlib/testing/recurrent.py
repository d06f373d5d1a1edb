"""Checks inside the recurrent cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from normlib.arrays import Array
from normlib.rnn import RNN
from normlib.testing.gradients import DIFFERENCE, expect_gradient
from normlib.testing.subject import Subject, expect


def check_in_rnn(subject: Subject) -> None:
    """It works at every time step of a vanilla RNN, and gradients through time are right."""
    _check_in_cell(subject, "rnn")


def check_in_gru(subject: Subject) -> None:
    """It works at every time step of a GRU, and gradients through time are right."""
    _check_in_cell(subject, "gru")


def check_in_lstm(subject: Subject) -> None:
    """It works at every time step of an LSTM, and gradients through time are right."""
    _check_in_cell(subject, "lstm")


def _check_in_cell(subject: Subject, cell: str) -> None:
    steps, inputs, hidden = 3, 2, subject.features
    rng = np.random.default_rng(6)
    rnn = RNN(inputs, hidden, cell=cell, norm=subject.make, rng=rng, dtype=np.float64)
    # Sequences of different lengths, so that masks come into it; as many rows last to the end as
    # forward needs, because frozen running statistics are not differentiated.
    batch = 2 + max([4, *(norm.min_rows for norm in rnn.normalizers.values())])
    lengths = np.array([steps] * (batch - 2) + [2, 1])
    arrays = dict(rnn.parameters)
    for array in arrays.values():  # away from 0, where statistics vanish and curvature is extreme
        array += rng.uniform(-0.5, 0.5, array.shape)
    arrays["x"] = rng.normal(size=(steps, batch, inputs))
    states = ["h_0", "c_0"] if cell == "lstm" else ["h_0"]
    for name in states:
        arrays[name] = rng.normal(size=(1, batch, hidden))
    dy = rng.normal(size=(steps, batch, hidden))
    dstate = [rng.normal(size=(1, batch, hidden)) for _ in states]
    buffers = rnn.state_dict()

    def as_state(parts: Sequence[Array]) -> Array | tuple[Array, Array]:
        return (parts[0], parts[1]) if cell == "lstm" else parts[0]

    def as_parts(state: Array | tuple[Array, ...]) -> Sequence[Array]:
        return state if isinstance(state, tuple) else [state]

    def forward(lengths: npt.NDArray[np.int_]) -> tuple[float, Any]:
        rnn.load_state_dict({**buffers, **rnn.parameters})
        initial = as_state([arrays[name] for name in states])
        y, final, cache = rnn.forward(arrays["x"], initial, lengths=lengths)
        ends = [np.sum(a * b) for a, b in zip(as_parts(final), dstate, strict=True)]
        return float(np.sum(y * dy) + np.sum(ends)), cache

    y, _ = rnn(arrays["x"], as_state([arrays[name] for name in states]), lengths=lengths)
    expect(np.all(np.isfinite(y)), f"inference in the {cell} cell must give finite values")
    _, cache = forward(np.array([steps] + [1] * (batch - 1)))
    dx, _, _ = rnn.backward(dy, cache, as_state(dstate))
    expect(np.all(np.isfinite(dx)), f"with one row at a step, the {cell} cell must give finite dx")

    _, cache = forward(lengths)
    dx, dinitial, grads = rnn.backward(dy, cache, as_state(dstate))
    got = {**grads, "x": dx, **dict(zip(states, as_parts(dinitial), strict=True))}
    for name, array in arrays.items():
        direction = rng.normal(size=array.shape)
        direction /= np.linalg.norm(direction)
        kept = array.copy()
        losses = []
        for sign in (1, -1):
            array[...] = kept + sign * DIFFERENCE * direction
            losses.append(forward(lengths)[0])
        array[...] = kept
        expect_gradient(
            f"{name!r} in the {cell} cell over {steps} steps, along a random direction,",
            np.array(np.sum(got[name] * direction)),
            np.array((losses[0] - losses[1]) / (2 * DIFFERENCE)),
        )
