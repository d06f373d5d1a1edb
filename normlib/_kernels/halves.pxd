"""Half types, float16 and bfloat16 ("brain"): stored as such, computed in float32.

A kernel widens a group of rows into scratch, does there what it does for float32, in place, and
rounds the result once.
"""
cimport numpy as cnp
from libc.stdint cimport uint16_t, uintptr_t
from libc.string cimport strstr

from normlib._kernels.arrays cimport address, overlap
from normlib._kernels.plain cimport apart, is_eps, is_vector, new_vector, starts_like
from normlib._kernels.vec cimport STREAM_FLOATS

cdef extern from "vec.h" nogil:
    void vec_widen_halves(const uint16_t *, float *, Py_ssize_t, bint) noexcept
    void vec_narrow_halves(const float *, uint16_t *, Py_ssize_t, bint, bint) noexcept

cdef enum Kind:
    NO_HALF = 0
    FLOAT16 = 1
    BFLOAT16 = 2

cdef enum:
    NPY_HALF = 23
    FIRST_USER_TYPE = 256


cdef struct Halves:
    const uint16_t *x    # IN  (n_rows, n)
    uint16_t *y          # OUT (n_rows, n), may be x
    bint brain
    float *scratch       # (threads, scratch_size), at a cache line: for each a group of rows
    Py_ssize_t scratch_size


cdef inline Kind kind_of(object array) noexcept:
    """Of a C-contiguous, aligned ndarray of a native half type; NO_HALF of all else."""
    if not (cnp.PyArray_CheckExact(array)
            and cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED)
            and cnp.PyArray_ISNOTSWAPPED(array) and cnp.PyArray_ITEMSIZE(array) == 2):
        return NO_HALF
    if cnp.PyArray_TYPE(array) == NPY_HALF:
        return FLOAT16
    if (cnp.PyArray_TYPE(array) >= FIRST_USER_TYPE
            and strstr((<cnp.ndarray>array).descr.typeobj.tp_name, b"bfloat16") != NULL):
        return BFLOAT16
    return NO_HALF


cdef inline bint is_plain_half(object x, object gain, object bias, object eps,
                               object out) noexcept:
    """Whether rows of halves, and all else, are as a kernel wants them (plain.pxd)."""
    cdef Py_ssize_t n
    if not (kind_of(x) != NO_HALF and cnp.PyArray_NDIM(x) > 0 and cnp.PyArray_SIZE(x) > 0
            and is_eps(eps)):
        return False
    n = cnp.PyArray_DIM(x, cnp.PyArray_NDIM(x) - 1)
    if not ((gain is None or is_vector(gain, cnp.NPY_FLOAT32, n))
            and (bias is None or is_vector(bias, cnp.NPY_FLOAT32, n))):
        return False
    return out is None or (
        kind_of(out) == kind_of(x) and starts_like(out, x, cnp.PyArray_NDIM(x))
        and cnp.PyArray_ISWRITEABLE(out) and (out is x or not overlap(out, x))
        and apart(out, gain, bias))


cdef inline object new_scratch(Halves *halves, object x, object y, Py_ssize_t size,
                               int n_threads):
    """Fill halves in, with scratch of at least size for each thread; return what owns that."""
    size = (size + 15) // 16 * 16
    cdef object memory = new_vector(n_threads * size + 16, cnp.NPY_FLOAT32)
    halves.x = <const uint16_t *>address(x)
    halves.y = <uint16_t *>address(y)
    halves.brain = kind_of(x) == BFLOAT16
    halves.scratch = <float *>((<uintptr_t>address(memory) + 63) & ~<uintptr_t>63)
    halves.scratch_size = size
    return memory


cdef inline bint streams(const Halves *halves, Py_ssize_t n_rows, Py_ssize_t n) noexcept nogil:
    """Whether y leaves the cache, and its rows are whole cache lines."""
    return (n_rows * n >= 2 * STREAM_FLOATS and n % 32 == 0
            and <uintptr_t>halves.y % 64 == 0)
