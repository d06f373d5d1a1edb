"""Half types, float16 and bfloat16 ("brain"): stored as such, computed in float32.

A kernel widens a group of rows into scratch, does there what it does for float32, in place, and
rounds the result once.
"""
from libc.stdint cimport uint16_t

from normlib._kernels.arrays cimport address, dim
from normlib._kernels.vec cimport STREAM_FLOATS

cdef extern from "vec.h" nogil:
    void vec_widen_halves(const uint16_t *, float *, Py_ssize_t, bint) noexcept
    void vec_narrow_halves(const float *, uint16_t *, Py_ssize_t, bint, bint) noexcept


cdef struct Halves:
    const uint16_t *x    # IN  (n_rows, n)
    uint16_t *y          # OUT (n_rows, n), may be x
    bint brain
    float *scratch       # (threads, scratch_size): for each thread a group of rows
    Py_ssize_t scratch_size


cdef inline Halves as_halves(object x, object y, bint brain, object scratch):
    """x, y of uint16; scratch of float32."""
    return Halves(<const uint16_t *>address(x), <uint16_t *>address(y), brain,
                  <float *>address(scratch), dim(scratch, 1))


cdef inline bint streams(const Halves *halves, Py_ssize_t n_rows, Py_ssize_t n) noexcept nogil:
    """Whether y leaves the cache, and its rows are whole cache lines."""
    return (n_rows * n >= 2 * STREAM_FLOATS and n % 32 == 0
            and <size_t>halves.y % 64 == 0)
