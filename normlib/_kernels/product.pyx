"""Product of a matrix with a packed one, in a fixed order.

Design
------
Every element of the result is one chain of fused multiply-adds over k = 0, 1, ..., K-1, so a row's
bits depend on that row and the packed matrix alone: not on the other rows, the thread count, the
tile, or the width of a vector.

The right-hand matrix (K, N) is packed once into panels of PANEL vectors of columns, (panels, K,
PANEL vectors), padded with zeros; a tile of TILE rows by one panel is held in registers.
"""
import numpy as np

from cython.parallel cimport prange

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.vec cimport (
    at, at_out, lanes, vf32, vf64, vfma, vget, vput, vreal, vset, vstore_first,
)

cdef extern from *:
    """
    /* Accumulators and one panel's line must fit the registers: 32 at v4 and arm64, else 16. */
    #if VEC_BYTES == 64 || defined(__aarch64__)
    #define PANEL 3
    #define TILE 8
    #else
    #define PANEL 2
    #define TILE 6
    #endif
    """
    enum:
        PANEL
        TILE

cdef enum:
    PART_ROWS = 48       # rows of a work item: few panels still occupy all threads


cdef inline Py_ssize_t panel_columns(const vreal *tag) noexcept nogil:
    return PANEL * lanes(tag)


cdef void pack_panel(
    const vreal *b,         # IN  (K, N), with strides in elements
    vreal *packed,          # OUT (K, panel)
    Py_ssize_t K,
    Py_ssize_t n_columns,   # of the panel that b has
    Py_ssize_t stride_k,
    Py_ssize_t stride_n,
) noexcept nogil:
    cdef Py_ssize_t width = panel_columns(b)
    cdef Py_ssize_t k, j
    for k in range(K):
        for j in range(width):
            vput(packed, k * width + j,
                 vget(b, k * stride_k + j * stride_n) if j < n_columns else 0)


cdef inline void multiply_tile(
    const vreal *a,         # IN  (n_rows, K)
    const vreal *panel,     # IN  (K, panel)
    vreal *out,             # OUT (n_rows, N), at the panel's first column
    Py_ssize_t K,
    Py_ssize_t N,
    Py_ssize_t n_columns,
    int n_rows,             # a constant where this is inlined, at most TILE
) noexcept nogil:
    cdef vreal acc[TILE * PANEL]
    cdef vreal line[PANEL]
    cdef vreal factor
    cdef int r, p
    cdef Py_ssize_t width = lanes(a)
    cdef Py_ssize_t k
    for r in range(n_rows):
        for p in range(PANEL):
            acc[r * PANEL + p] = vset(0, a)
    for k in range(K):
        for p in range(PANEL):
            line[p] = at(panel, (k * PANEL + p) * width)[0]
        for r in range(n_rows):
            factor = vset(vget(a, r * K + k), a)
            for p in range(PANEL):
                acc[r * PANEL + p] = vfma(factor, line[p], acc[r * PANEL + p])
    for r in range(n_rows):
        for p in range(PANEL):
            vstore_first(at_out(out, r * N + p * width), acc[r * PANEL + p],
                         n_columns - p * width)


cdef void multiply_panel(
    const vreal *a,         # IN  (n_rows, K)
    const vreal *panel,     # IN  (K, panel)
    vreal *out,             # OUT (n_rows, N), at the panel's first column
    Py_ssize_t n_rows,
    Py_ssize_t K,
    Py_ssize_t N,
    Py_ssize_t n_columns,
) noexcept nogil:
    cdef Py_ssize_t r = 0
    while r + TILE <= n_rows:
        multiply_tile(at(a, r * K), panel, at_out(out, r * N), K, N, n_columns, TILE)
        r += TILE
    while r + 2 <= n_rows:
        multiply_tile(at(a, r * K), panel, at_out(out, r * N), K, N, n_columns, 2)
        r += 2
    if r < n_rows:
        multiply_tile(at(a, r * K), panel, at_out(out, r * N), K, N, n_columns, 1)


cdef void pack_all(const vreal *b, vreal *packed, Py_ssize_t K, Py_ssize_t N,
                   Py_ssize_t stride_k, Py_ssize_t stride_n) noexcept nogil:
    cdef Py_ssize_t width = panel_columns(b)
    cdef Py_ssize_t panel
    for panel in range((N + width - 1) // width):
        pack_panel(at(b, panel * width * stride_n), at_out(packed, panel * width * K), K,
                   min(width, N - panel * width), stride_k, stride_n)


cdef void multiply_part(const vreal *a, const vreal *packed, vreal *out, Py_ssize_t n_rows,
                        Py_ssize_t K, Py_ssize_t N, Py_ssize_t part,
                        Py_ssize_t n_parts) noexcept nogil:
    """Part of the rows by one panel; the parts of a panel follow each other."""
    cdef Py_ssize_t width = panel_columns(a)
    cdef Py_ssize_t panel = part // n_parts
    cdef Py_ssize_t first = part % n_parts * PART_ROWS
    multiply_panel(at(a, first * K), at(packed, panel * width * K),
                   at_out(out, first * N + panel * width), min(PART_ROWS, n_rows - first), K, N,
                   min(width, N - panel * width))


cdef void multiply_all(const vreal *a, const vreal *packed, vreal *out, Py_ssize_t n_rows,
                       Py_ssize_t K, Py_ssize_t N, int n_threads) noexcept nogil:
    cdef Py_ssize_t n_panels = (N + panel_columns(a) - 1) // panel_columns(a)
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
