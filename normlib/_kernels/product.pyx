"""Products of matrices, in a fixed order; tiles.pxd tells how.

``product`` multiplies with a packed matrix. ``add_gradient`` adds the product of two matrices along
their first axis, which is long: it takes DEPTH rows of both at a time, packs them, and adds what
comes of them to the sum.

The rows and panels are dealt to the threads; what is computed does not depend on it.
"""
import numpy as np

cimport numpy as cnp
from cython.parallel cimport prange, threadid

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.buffers cimport aligned_like
from normlib._kernels.packing cimport pack_all, pack_panel
from normlib._kernels.tiles cimport (
    PANEL, TILE, count_panels, multiply_columns, multiply_panels, multiply_tile, panel_columns,
)
from normlib._kernels.vec cimport at, at_out, vf32, vf64, vget, vput, vreal
cnp.import_array()

cdef enum:
    PART_ROWS = 48       # rows of a work item: few panels still occupy all threads
    DEPTH = 512          # rows of both matrices whose product is summed before it is added
    GROUP_TILES = 8      # tiles of a work item of add_gradient


cdef void multiply_part(const vreal *a, const vreal *packed, vreal *out, Py_ssize_t n_rows,
                        Py_ssize_t K, Py_ssize_t N, Py_ssize_t part,
                        Py_ssize_t n_parts) noexcept nogil:
    """Part of the rows by one panel; the parts of a panel follow each other."""
    cdef Py_ssize_t panel = part // n_parts
    cdef Py_ssize_t first = part % n_parts * PART_ROWS
    multiply_panels(at(a, first * K), packed, at_out(out, first * N),
                    min(PART_ROWS, n_rows - first), K, N, K, N, panel, panel + 1, False)


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
    panels = aligned_like(np.empty((N + width - 1) // width * width * K, dtype=b.dtype))
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


# ---- products along the first axis ---------------------------------------------------------------


cdef inline void pack_tile(const vreal *a, vreal *packed, Py_ssize_t K, Py_ssize_t stride,
                           Py_ssize_t n_columns) noexcept nogil:
    """n_columns of a (K, ...), at most TILE, as (K, TILE); the rest zero."""
    cdef Py_ssize_t k, r
    if n_columns == TILE:
        for k in range(K):
            for r in range(TILE):
                vput(packed, k * TILE + r, vget(a, k * stride + r))
        return
    for k in range(K):
        for r in range(TILE):
            vput(packed, k * TILE + r, vget(a, k * stride + r) if r < n_columns else 0)


cdef void add_group(
    const vreal *a,         # IN  (K, M), rows stride_a apart
    const vreal *panels,    # IN  (panels, K, panel)
    vreal *out,             # IN/OUT (M, N)
    vreal *packed,          # scratch, (GROUP_TILES, K, TILE)
    Py_ssize_t K,           # at most DEPTH
    Py_ssize_t M,
    Py_ssize_t N,
    Py_ssize_t stride_a,
    Py_ssize_t group,
) noexcept nogil:
    """Add a.T times the packed matrix to some rows of out."""
    cdef Py_ssize_t width = panel_columns(a)
    cdef Py_ssize_t first = group * GROUP_TILES * TILE
    cdef Py_ssize_t stop = min(first + GROUP_TILES * TILE, M)
    cdef Py_ssize_t panel, r, n_rows, n_columns
    cdef const vreal *tile
    cdef const vreal *b
    cdef vreal *c
    cdef vreal edge[TILE * PANEL]
    r = first
    while r < stop:
        pack_tile(at(a, r), at_out(packed, (r - first) * K), K, stride_a, min(TILE, stop - r))
        r += TILE
    for panel in range(count_panels(a, N)):
        b = at(panels, panel * width * K)
        n_columns = min(width, N - panel * width)
        r = first
        while r < stop:
            tile = at(packed, (r - first) * K)
            c = at_out(out, r * N + panel * width)
            n_rows = stop - r
            if n_rows >= TILE:
                multiply_columns(tile, b, c, 1, TILE, N, K, n_columns, TILE, True)
            else:
                multiply_tile(tile, b, &edge[0], 1, TILE, width, K, width, TILE, PANEL, False)
                add_edge(&edge[0], c, n_rows, n_columns, N)
            r += TILE


cdef inline void add_edge(const vreal *edge, vreal *out, Py_ssize_t n_rows, Py_ssize_t n_columns,
                          Py_ssize_t stride) noexcept nogil:
    cdef Py_ssize_t r, j
    for r in range(n_rows):
        for j in range(n_columns):
            vput(out, r * stride + j,
                 vget(out, r * stride + j) + vget(edge, r * panel_columns(edge) + j))


cdef inline void pack_rows(const vreal *b, vreal *panels, Py_ssize_t K, Py_ssize_t N,
                           Py_ssize_t stride_b, Py_ssize_t panel) noexcept nogil:
    cdef Py_ssize_t width = panel_columns(b)
    pack_panel(at(b, panel * width), at_out(panels, panel * width * K), K,
               min(width, N - panel * width), stride_b, 1)


cdef void add_depth(const vreal *a, const vreal *b, vreal *out, vreal *panels, vreal *packed,
                    Py_ssize_t K, Py_ssize_t M, Py_ssize_t N, Py_ssize_t stride_a,
                    Py_ssize_t stride_b, int n_threads) noexcept nogil:
    """Add a.T b of at most DEPTH rows to out; packed has room for each thread."""
    cdef Py_ssize_t n_groups = (M + GROUP_TILES * TILE - 1) // (GROUP_TILES * TILE)
    cdef Py_ssize_t n_panels = count_panels(a, N)
    cdef Py_ssize_t i
    if n_threads == 1:
        for i in range(n_panels):
            pack_rows(b, panels, K, N, stride_b, i)
        for i in range(n_groups):
            add_group(a, panels, out, packed, K, M, N, stride_a, i)
        return
    for i in prange(n_panels, schedule="static", num_threads=n_threads):
        pack_rows(b, panels, K, N, stride_b, i)
    for i in prange(n_groups, schedule="static", num_threads=n_threads):
        add_group(a, panels, out,
                  at_out(packed, threadid() * GROUP_TILES * TILE * K), K, M, N, stride_a, i)


def add_gradient(a, b, out, int n_threads):
    """out (M, N) += a.T b, for a (K, M) and b (K, N), whose rows are contiguous; of one type.

    Sums run over DEPTH rows at a time, in order, so that the bits do not depend on the threads.
    """
    cdef Py_ssize_t K = dim(a, 0)
    cdef Py_ssize_t M = dim(a, 1)
    cdef Py_ssize_t N = dim(b, 1)
    cdef bint single = is_single(a)
    cdef Py_ssize_t item = 4 if single else 8
    cdef Py_ssize_t stride_a = cnp.PyArray_STRIDE(a, 0) // item
    cdef Py_ssize_t stride_b = cnp.PyArray_STRIDE(b, 0) // item
    cdef Py_ssize_t width = panel_columns(<vf32 *>NULL) if single else panel_columns(<vf64 *>NULL)
    # No larger than needed: for a few rows the system would take longer to clear their pages.
    cdef Py_ssize_t depth = min(DEPTH, K)
    panels = np.empty((N + width - 1) // width * width * depth, a.dtype)
    packed = np.empty(n_threads * GROUP_TILES * TILE * depth, a.dtype)
    cdef void *a_data = address(a)
    cdef void *b_data = address(b)
    cdef void *out_data = address(out)
    cdef void *panels_data = address(panels)
    cdef void *packed_data = address(packed)
    cdef Py_ssize_t k = 0
    with nogil:
        while k < K:
            if single:
                add_depth[vf32](at(<const vf32 *>a_data, k * stride_a),
                                at(<const vf32 *>b_data, k * stride_b), <vf32 *>out_data,
                                <vf32 *>panels_data, <vf32 *>packed_data, min(DEPTH, K - k), M, N,
                                stride_a, stride_b, n_threads)
            else:
                add_depth[vf64](at(<const vf64 *>a_data, k * stride_a),
                                at(<const vf64 *>b_data, k * stride_b), <vf64 *>out_data,
                                <vf64 *>panels_data, <vf64 *>packed_data, min(DEPTH, K - k), M, N,
                                stride_a, stride_b, n_threads)
            k += DEPTH
