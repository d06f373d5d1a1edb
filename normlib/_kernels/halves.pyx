"""Conversions between half types and float32, of whole arrays."""
from cython.parallel cimport prange
from libc.stdint cimport uint16_t

from normlib._kernels.arrays cimport address
from normlib._kernels.halves cimport vec_narrow_halves, vec_widen_halves

cdef enum:
    CHUNK = 16384        # elements that are one work item


def widen(x, y, Py_ssize_t n, bint brain, int n_threads):
    """y = x: n elements, x of uint16 that stand for halves, y of float32."""
    cdef const uint16_t *x_data = <const uint16_t *>address(x)
    cdef float *y_data = <float *>address(y)
    cdef Py_ssize_t i
    with nogil:
        if n_threads == 1:
            vec_widen_halves(x_data, y_data, n, brain)
        else:
            for i in prange((n + CHUNK - 1) // CHUNK, schedule="static", num_threads=n_threads):
                vec_widen_halves(x_data + i * CHUNK, y_data + i * CHUNK,
                                 min(<Py_ssize_t>CHUNK, n - i * CHUNK), brain)


def narrow(x, y, Py_ssize_t n, bint brain, int n_threads):
    """y = x, rounded to nearest, ties to even: n elements, x of float32, y of uint16."""
    cdef const float *x_data = <const float *>address(x)
    cdef uint16_t *y_data = <uint16_t *>address(y)
    cdef Py_ssize_t i
    with nogil:
        if n_threads == 1:
            vec_narrow_halves(x_data, y_data, n, brain, False)
        else:
            for i in prange((n + CHUNK - 1) // CHUNK, schedule="static", num_threads=n_threads):
                vec_narrow_halves(x_data + i * CHUNK, y_data + i * CHUNK,
                                  min(<Py_ssize_t>CHUNK, n - i * CHUNK), brain, False)
