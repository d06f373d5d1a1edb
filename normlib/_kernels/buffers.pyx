"""What Python would take several times as long for: checking arrays, and making aligned ones."""
cimport numpy as cnp

from normlib._kernels cimport arrays

cnp.import_array()


def is_plain(array):
    """Whether array is an ndarray of native float32 or float64, C-contiguous and aligned."""
    return arrays.is_plain(array)


def aligned_like(x):
    """An uninitialized array of the shape and type of a plain one, at a multiple of 64 bytes."""
    return arrays.aligned_like(x)
