"""Gradients by central differences, in float64."""

import numpy as np


def numerical_gradient(loss, array, step=1e-6):
    """Gradient of loss() by each element of array, which is changed in place and restored."""
    assert array.dtype == np.float64
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        h = step * max(1.0, abs(value))
        array[index] = value + h
        above = loss()
        array[index] = value - h
        below = loss()
        array[index] = value
        gradient[index] = (above - below) / (2 * h)
    return gradient


def assert_gradient(actual, loss, array, tolerance=1e-6):
    """Check a gradient against central differences, relative to its largest element."""
    expected = numerical_gradient(loss, array)
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)
