"""Product of a matrix with a packed one, in a fixed order; tiles.pxd tells how.

The rows and panels are dealt to the threads; what is computed does not depend on it.
"""
import numpy as np

from cython.parallel cimport prange

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.tiles cimport count_panels, multiply_panels, pack_all, panel_columns
from normlib._kernels.vec cimport at, at_out, vf32, vf64, vreal

cdef enum:
    PART_ROWS = 48       # rows of a work item: few panels still occupy all threads


cdef void multiply_part(const vreal *a, const vreal *packed, vreal *out, Py_ssize_t n_rows,
                        Py_ssize_t K, Py_ssize_t N, Py_ssize_t part,
                        Py_ssize_t n_parts) noexcept nogil:
    """Part of the rows by one panel; the parts of a panel follow each other."""
    cdef Py_ssize_t panel = part // n_parts
    cdef Py_ssize_t first = part % n_parts * PART_ROWS
    multiply_panels(at(a, first * K), packed, at_out(out, first * N),
                    min(PART_ROWS, n_rows - first), K, N, K, N, panel, panel + 1)


cdef void multiply_all(const vreal *a, const vreal *packed, vreal *out, Py_ssize_t n_rows,
                       Py_ssize_t K, Py_ssize_t N, int n_threads) noexcept nogil:
    cdef Py_ssize_t n_panels = count_panels(a, N)
    cdef Py_ssize_t n_parts = (n_rows + PART_ROWS - 1) // PART_ROWS
    cdef Py_ssize_t part
    if n_threads == 1:
        for part in range(n_parts * n_panels):
            multiply_part(a, packed, out, n_rows, K, N, part, n_parts)
    else:
        for part in prange(n_parts * n_panels, schedule="static", num_threads=n_threads):
            multiply_part(a, packed, out, n_rows, K, N, part, n_parts)


cdef class Packed:
    """A matrix (K, N) as ``product`` wants it on the right."""

    cdef readonly object panels     # its elements, 1-D
    cdef readonly Py_ssize_t K
    cdef readonly Py_ssize_t N

    def __init__(self, panels, Py_ssize_t K, Py_ssize_t N):
        self.panels = panels
        self.K = K
        self.N = N


def pack(b):
    """Pack b (K, N), of any strides, aligned."""
    cdef Py_ssize_t K = dim(b, 0)
    cdef Py_ssize_t N = dim(b, 1)
    cdef bint single = is_single(b)
    cdef Py_ssize_t width = panel_columns(<vf32 *>NULL) if single else panel_columns(<vf64 *>NULL)
    cdef Py_ssize_t stride_k = b.strides[0] // b.itemsize
    cdef Py_ssize_t stride_n = b.strides[1] // b.itemsize
    panels = np.empty((N + width - 1) // width * width * K, dtype=b.dtype)
    cdef void *b_data = address(b)
    cdef void *packed_data = address(panels)
    with nogil:
        if single:
            pack_all[vf32](<vf32 *>b_data, <vf32 *>packed_data, K, N, stride_k, stride_n)
        else:
            pack_all[vf64](<vf64 *>b_data, <vf64 *>packed_data, K, N, stride_k, stride_n)
    return Packed(panels, K, N)


def product(a, Packed packed, out, int n_threads):
    """out (M, N) = a (M, K) times the packed (K, N); all C-contiguous and of one type."""
    cdef Py_ssize_t n_rows = dim(a, 0)
    cdef void *a_data = address(a)
    cdef void *packed_data = address(packed.panels)
    cdef void *out_data = address(out)
    cdef bint single = is_single(a)
    with nogil:
        if single:
            multiply_all[vf32](<vf32 *>a_data, <vf32 *>packed_data, <vf32 *>out_data, n_rows,
                               packed.K, packed.N, n_threads)
        else:
            multiply_all[vf64](<vf64 *>a_data, <vf64 *>packed_data, <vf64 *>out_data, n_rows,
                               packed.K, packed.N, n_threads)
