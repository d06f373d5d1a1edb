"""Packing a matrix into the panels of tiles.pxd.

Design
------
Weights are (outputs, inputs) and enter a product transposed, so that the elements of a line of a
panel are far apart: squares of vectors are transposed in registers. Where they lie side by side,
the last panel, which may be narrower, takes parts of vectors.
"""
from normlib._kernels.tiles cimport PANEL, count_panels, panel_columns
from normlib._kernels.vec cimport (
    VF32_LANES, at, at_out, lanes, vf32, vf64, vget, vload_first, vput, vreal,
)

cdef extern from "transpose.h" nogil:
    void vf32_transpose(vf32 *) noexcept
    void vf64_transpose(vf64 *) noexcept


cdef inline void transpose(vreal *square) noexcept nogil:
    """As many rows as a vector has lanes, in place."""
    if vreal is vf32:
        vf32_transpose(square)
    else:
        vf64_transpose(square)


cdef inline void pack_panel(
    const vreal *b,         # IN  (K, n_columns), with strides in elements
    vreal *packed,          # OUT (K, panel); columns that b does not have are zero
    Py_ssize_t K,
    Py_ssize_t n_columns,
    Py_ssize_t stride_k,
    Py_ssize_t stride_n,
) noexcept nogil:
    cdef vreal square[VF32_LANES]
    cdef Py_ssize_t width = panel_columns(b)
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t k, j
    cdef int i
    if n_columns == width and stride_n == 1:
        for k in range(K):
            for i in range(PANEL):
                at_out(packed, k * width + i * lanes(b))[0] = at(b, k * stride_k + i * lanes(b))[0]
        return
    if stride_n == 1:
        for k in range(K):
            for i in range(PANEL):
                at_out(packed, k * width + i * lanes(b))[0] = vload_first(
                    at(b, k * stride_k + i * lanes(b)), n_columns - i * lanes(b))
        return
    while first < width:
        k = 0
        if first + lanes(b) <= n_columns and stride_k == 1:
            while k + lanes(b) <= K:
                for i in range(lanes(b)):
                    square[i] = at(b, (first + i) * stride_n + k)[0]
                transpose(&square[0])
                for i in range(lanes(b)):
                    at_out(packed, (k + i) * width + first)[0] = square[i]
                k += lanes(b)
        for k in range(k, K):
            for j in range(first, first + lanes(b)):
                vput(packed, k * width + j,
                     vget(b, k * stride_k + j * stride_n) if j < n_columns else 0)
        first += lanes(b)


cdef inline void pack_all(const vreal *b, vreal *packed, Py_ssize_t K, Py_ssize_t N,
                          Py_ssize_t stride_k, Py_ssize_t stride_n) noexcept nogil:
    cdef Py_ssize_t width = panel_columns(b)
    cdef Py_ssize_t panel
    for panel in range(count_panels(b, N)):
        pack_panel(at(b, panel * width * stride_n), at_out(packed, panel * width * K), K,
                   min(width, N - panel * width), stride_k, stride_n)
