"""Product of rows with a packed matrix, in a fixed order.

Design
------
Every element of the result is one chain of fused multiply-adds over k = 0, 1, ..., K-1, so a row's
bits depend on that row and the packed matrix alone: not on the other rows, the thread count, the
tile, or the width of a vector.

The right-hand matrix (K, N) is packed once into panels of PANEL vectors of columns, (panels, K,
PANEL vectors), padded with zeros (packing.pxd); a tile of TILE rows by one panel is held in
registers.
"""
from normlib._kernels.vec cimport (
    at, at_out, lanes, vfma, vget, vload_first, vreal, vset, vstore_first,
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


cdef inline Py_ssize_t panel_columns(const vreal *tag) noexcept nogil:
    return PANEL * lanes(tag)


cdef inline Py_ssize_t count_panels(const vreal *tag, Py_ssize_t N) noexcept nogil:
    return (N + panel_columns(tag) - 1) // panel_columns(tag)


cdef inline void multiply_tile(
    const vreal *a,         # IN  (n_rows, K), rows stride_a apart, elements of a row stride_k
    const vreal *panel,     # IN  (K, panel)
    vreal *out,             # OUT (n_rows, n_columns), rows stride_out apart
    Py_ssize_t stride_a,
    Py_ssize_t stride_k,
    Py_ssize_t stride_out,
    Py_ssize_t K,
    Py_ssize_t n_columns,
    int n_rows,             # a constant where this is inlined, at most TILE
    int n_vecs,             # a constant: vectors that n_columns need, at most PANEL
    bint add,               # a constant: to what is in out
) noexcept nogil:
    cdef vreal acc[TILE * PANEL]
    cdef vreal line[PANEL]
    cdef vreal factor
    cdef int r, p
    cdef Py_ssize_t width = lanes(a)
    cdef Py_ssize_t k
    for r in range(n_rows):
        for p in range(n_vecs):
            acc[r * PANEL + p] = vset(0, a)
    for k in range(K):
        for p in range(n_vecs):
            line[p] = at(panel, (k * PANEL + p) * width)[0]
        for r in range(n_rows):
            factor = vset(vget(a, r * stride_a + k * stride_k), a)
            for p in range(n_vecs):
                acc[r * PANEL + p] = vfma(factor, line[p], acc[r * PANEL + p])
    if add:
        for r in range(n_rows):
            for p in range(n_vecs):
                acc[r * PANEL + p] = acc[r * PANEL + p] + vload_first(
                    at(out, r * stride_out + p * width), n_columns - p * width)
    for r in range(n_rows):
        for p in range(n_vecs):
            vstore_first(at_out(out, r * stride_out + p * width), acc[r * PANEL + p],
                         n_columns - p * width)


cdef inline void multiply_columns(
    const vreal *a,         # IN  as multiply_tile takes it, as is what follows
    const vreal *panel,
    vreal *out,
    Py_ssize_t stride_a,
    Py_ssize_t stride_k,
    Py_ssize_t stride_out,
    Py_ssize_t K,
    Py_ssize_t n_columns,
    int n_rows,             # a constant where this is inlined
    bint add,               # a constant
) noexcept nogil:
    """A tile as narrow as its columns allow: the last panel of a matrix may be no whole one."""
    if n_columns > (PANEL - 1) * lanes(a):
        multiply_tile(a, panel, out, stride_a, stride_k, stride_out, K, n_columns, n_rows, PANEL,
                      add)
    elif n_columns > lanes(a):      # a PANEL of 3 alone has this case
        multiply_tile(a, panel, out, stride_a, stride_k, stride_out, K, n_columns, n_rows, 2, add)
    else:
        multiply_tile(a, panel, out, stride_a, stride_k, stride_out, K, n_columns, n_rows, 1, add)


cdef inline void multiply_panel(
    const vreal *a,         # IN  (n_rows, K), rows stride_a apart
    const vreal *panel,     # IN  (K, panel)
    vreal *out,             # OUT (n_rows, n_columns), rows stride_out apart
    Py_ssize_t n_rows,
    Py_ssize_t stride_a,
    Py_ssize_t stride_out,
    Py_ssize_t K,
    Py_ssize_t n_columns,
) noexcept nogil:
    cdef Py_ssize_t r = 0
    while r + TILE <= n_rows:
        multiply_columns(at(a, r * stride_a), panel, at_out(out, r * stride_out), stride_a, 1,
                         stride_out, K, n_columns, TILE, False)
        r += TILE
    if r + 4 <= n_rows:
        multiply_columns(at(a, r * stride_a), panel, at_out(out, r * stride_out), stride_a, 1,
                         stride_out, K, n_columns, 4, False)
        r += 4
    if r + 2 <= n_rows:
        multiply_columns(at(a, r * stride_a), panel, at_out(out, r * stride_out), stride_a, 1,
                         stride_out, K, n_columns, 2, False)
        r += 2
    if r < n_rows:
        multiply_columns(at(a, r * stride_a), panel, at_out(out, r * stride_out), stride_a, 1,
                         stride_out, K, n_columns, 1, False)


cdef inline void multiply_panels(
    const vreal *a,         # IN  (n_rows, K), rows stride_a apart
    const vreal *packed,    # IN  (panels, K, panel)
    vreal *out,             # OUT (n_rows, N), rows stride_out apart
    Py_ssize_t n_rows,
    Py_ssize_t stride_a,
    Py_ssize_t stride_out,
    Py_ssize_t K,
    Py_ssize_t N,
    Py_ssize_t first_panel,
    Py_ssize_t stop_panel,
    bint reverse,           # from the last panel to the first
) noexcept nogil:
    """The columns of some panels; each panel meets all rows before the next is read.

    Who multiplies with one matrix again and again turns round each time: the panels read last,
    which are in the cache yet, are then read first.
    """
    cdef Py_ssize_t width = panel_columns(a)
    cdef Py_ssize_t i, panel
    for i in range(first_panel, stop_panel):
        panel = first_panel + stop_panel - 1 - i if reverse else i
        multiply_panel(a, at(packed, panel * width * K), at_out(out, panel * width), n_rows,
                       stride_a, stride_out, K, min(width, N - panel * width))
