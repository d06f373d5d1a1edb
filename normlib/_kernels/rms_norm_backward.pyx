"""Gradients of root-mean-square normalization of rows.

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), rstd in float64, at least
one row and one feature.

Design
------
With g = dy * gain and xhat = x * rstd:

    dx = rstd * (g - xhat * mean(g * xhat))

dgain is summed as in layer_norm_backward.pyx: over blocks of rows, in the row's type for GROUP
rows and in double beyond, then over the blocks in their order.
"""
from cython.parallel cimport prange

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.norm_rows cimport NormBackward, backward_capsule
from normlib._kernels.row_sums cimport add_row_any
from normlib._kernels.rows cimport FOLD, GROUP, vector_range
from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_WIDE_VECS, STREAM_FLOATS, at, at_out, block_vecs, lanes, to_boundary,
    vadd_to, vec_fence, vf32, vf64, vf64_set, vfma, vfold, vget, vload, vload_first, vput, vreal,
    vset, vstore, vstore_first, vsum_wide,
)

cdef enum:
    ROWS = 64            # rows in a block, at least
    BLOCK_ELEMENTS = 4096


cdef inline vreal times(vreal v, const vreal *gain, Py_ssize_t n, bint has_gain) noexcept nogil:
    if not has_gain:
        return v
    return v * vload(gain, n, n == lanes(gain))


cdef inline void backward_row(
    const vreal *dy,        # IN
    const vreal *x,         # IN
    const vreal *gain,      # IN
    vreal *dx,              # OUT
    Py_ssize_t n,
    double rstd,
    bint has_gain,
    bint stream,            # dx starts a cache line, and goes past the cache
) noexcept nogil:
    cdef vreal acc[MAX_BLOCK_VECS]
    cdef vf64 wide[MAX_WIDE_VECS]
    cdef vreal s = vset(rstd, x)
    cdef vreal g, xhat, b
    cdef int k
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j, left, stop
    for k in range(MAX_WIDE_VECS):
        wide[k] = vf64_set(0)
    while i < n:
        for k in range(n_vecs):
            acc[k] = vset(0, x)
        stop = min(i + FOLD * n_vecs * width, n)
        while i + n_vecs * width <= stop:
            for k in range(n_vecs):
                j = i + k * width
                g = times(at(dy, j)[0], at(gain, j), width, has_gain)
                acc[k] = vfma(g, at(x, j)[0] * s, acc[k])
            i += n_vecs * width
        if i < stop:
            for k in range(n_vecs):
                j = i + k * width
                left = stop - j
                g = times(vload_first(at(dy, j), left), at(gain, j), left, has_gain)
                acc[k] = vfma(g, vload_first(at(x, j), left) * s, acc[k])
            i = stop
        vfold(acc, wide)
    b = vset(-(vsum_wide(x, wide) / n), x)
    i = 0
    while i + width <= n:
        g = times(at(dy, i)[0], at(gain, i), width, has_gain)
        xhat = at(x, i)[0] * s
        vstore(at_out(dx, i), vfma(xhat, b, g) * s, stream)
        i += width
    if i < n:
        left = n - i
        g = times(vload_first(at(dy, i), left), at(gain, i), left, has_gain)
        xhat = vload_first(at(x, i), left) * s
        vstore_first(at_out(dx, i), vfma(xhat, b, g) * s, left)


cdef void backward_row_double(
    const vreal *dy,        # IN
    const vreal *x,         # IN
    const vreal *gain,      # IN  or NULL
    vreal *dx,              # OUT
    Py_ssize_t n,
    double rstd,
    double *dgain,          # IN/OUT or NULL
) noexcept nogil:
    """The same in double, dgain too, for a row beyond the range of its type's rstd."""
    cdef double g, xhat
    cdef double mean_gx = 0
    cdef Py_ssize_t i
    for i in range(n):
        xhat = vget(x, i) * rstd
        g = vget(dy, i)
        if dgain != NULL:
            dgain[i] += g * xhat
        if gain != NULL:
            g = g * vget(gain, i)
        mean_gx += g * xhat / n
    for i in range(n):
        xhat = vget(x, i) * rstd
        g = vget(dy, i)
        if gain != NULL:
            g = g * vget(gain, i)
        vput(dx, i, (g - xhat * mean_gx) * rstd)


cdef inline void add_columns(
    const vreal *dy,        # IN  (n_rows, stride), at the first column
    const vreal *x,         # IN  (n_rows, stride)
    const double *rstd,     # IN  (n_rows,)
    double *dgain,          # IN/OUT (block,)
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t stride,
    Py_ssize_t n_columns,   # at most one block
    bint full,              # a constant: exactly one block
) noexcept nogil:
    """Add the rows' dy * xhat to the sums of the columns."""
    cdef vreal acc[MAX_BLOCK_VECS]
    cdef vreal s
    cdef int k
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t r, j, left
    for k in range(n_vecs):
        acc[k] = vset(0, x)
    for r in range(n_rows):
        if not vector_range(x, rstd[r]):
            continue
        s = vset(rstd[r], x)
        for k in range(n_vecs):
            left = n_columns - k * width
            j = r * stride + k * width
            acc[k] = vfma(vload(at(dy, j), left, full), vload(at(x, j), left, full) * s, acc[k])
    for k in range(n_vecs):
        vadd_to(dgain + k * width, acc[k])


cdef void backward_block(
    const vreal *dy,        # IN  (n_rows, n)
    const vreal *x,         # IN  (n_rows, n)
    const vreal *gain,      # IN  (n,) or NULL
    const double *rstd,     # IN  (n_rows,)
    vreal *dx,              # OUT (n_rows, n)
    double *dgain,          # OUT (n rounded up to blocks,) or NULL
    Py_ssize_t n_rows,
    Py_ssize_t n,
    Py_ssize_t padded,
    bint stream,
) noexcept nogil:
    cdef Py_ssize_t block = block_vecs(x) * lanes(x)
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t count, r, i
    if dgain != NULL:
        for i in range(padded):
            dgain[i] = 0
    while first < n_rows:
        count = min(GROUP, n_rows - first)
        for r in range(first, first + count):
            i = r * n
            if not vector_range(x, rstd[r]):
                backward_row_double(at(dy, i), at(x, i), gain, at_out(dx, i), n, rstd[r], dgain)
            elif gain != NULL and stream:
                backward_row(at(dy, i), at(x, i), gain, at_out(dx, i), n, rstd[r], True, True)
            elif gain != NULL:
                backward_row(at(dy, i), at(x, i), gain, at_out(dx, i), n, rstd[r], True, False)
            elif stream:
                backward_row(at(dy, i), at(x, i), gain, at_out(dx, i), n, rstd[r], False, True)
            else:
                backward_row(at(dy, i), at(x, i), gain, at_out(dx, i), n, rstd[r], False, False)
        i = 0
        while dgain != NULL and i + block <= n:
            add_columns(at(dy, first * n + i), at(x, first * n + i), rstd + first, dgain + i,
                        count, n, block, True)
            i += block
        if dgain != NULL and i < n:
            add_columns(at(dy, first * n + i), at(x, first * n + i), rstd + first, dgain + i,
                        count, n, n - i, False)
        first += GROUP
    if stream:
        vec_fence()


cdef inline Py_ssize_t block_rows(Py_ssize_t n) noexcept nogil:
    """Rows in a block: more where they are short, lest the scratch outgrow the input."""
    return max(ROWS, BLOCK_ELEMENTS // n)


cdef inline void backward_part(
    const vreal *dy, const vreal *x, const vreal *gain, const double *rstd, vreal *dx,
    double *partial, Py_ssize_t n_rows, Py_ssize_t n, Py_ssize_t padded, bint stream,
    Py_ssize_t b,
) noexcept nogil:
    """Block b."""
    cdef Py_ssize_t first = b * block_rows(n)
    backward_block(at(dy, first * n), at(x, first * n), gain, rstd + first,
                   at_out(dx, first * n), NULL if partial == NULL else partial + b * padded,
                   min(block_rows(n), n_rows - first), n, padded, stream)


cdef void backward_rows(const vreal *dy, const vreal *x, const vreal *gain, const double *rstd,
                        vreal *dx, vreal *dgain, double *partial, Py_ssize_t n_rows,
                        Py_ssize_t n, Py_ssize_t padded, int n_threads) noexcept nogil:
    cdef Py_ssize_t n_blocks = (n_rows + block_rows(n) - 1) // block_rows(n)
    cdef bint stream = (n_rows * n >= STREAM_FLOATS and n % lanes(x) == 0
                        and to_boundary(dx) == 0)
    cdef Py_ssize_t b, i
    cdef double total
    if n_threads == 1:
        for b in range(n_blocks):
            backward_part(dy, x, gain, rstd, dx, partial, n_rows, n, padded, stream, b)
    else:
        for b in prange(n_blocks, schedule="static", num_threads=n_threads):
            backward_part(dy, x, gain, rstd, dx, partial, n_rows, n, padded, stream, b)
    if dgain == NULL:
        return
    for i in range(n):
        total = 0
        for b in range(n_blocks):
            total += partial[b * padded + i]
        vput(dgain, i, total)


def scratch_shape(Py_ssize_t n_rows, Py_ssize_t n):
    """Shape of the float64 scratch that dgain needs: blocks, features."""
    cdef Py_ssize_t size = block_rows(n)
    return (n_rows + size - 1) // size, (n + 63) // 64 * 64


def rms_norm_backward(dy, x, gain, rstd, dx, dgain, partial, int n_threads):
    """Gradients of rms_norm_forward; without a gain, dgain and partial are None."""
    cdef Py_ssize_t n_rows = dim(x, 0)
    cdef Py_ssize_t n = dim(x, 1)
    cdef Py_ssize_t padded = 0 if partial is None else dim(partial, 1)
    cdef void *dy_data = address(dy)
    cdef void *x_data = address(x)
    cdef void *gain_data = address(gain)
    cdef double *rstd_data = <double *>address(rstd)
    cdef void *dx_data = address(dx)
    cdef void *dgain_data = address(dgain)
    cdef double *partial_data = <double *>address(partial)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            backward_rows[vf32](<vf32 *>dy_data, <vf32 *>x_data, <vf32 *>gain_data, rstd_data,
                                <vf32 *>dx_data, <vf32 *>dgain_data, partial_data, n_rows, n,
                                padded, n_threads)
        else:
            backward_rows[vf64](<vf64 *>dy_data, <vf64 *>x_data, <vf64 *>gain_data, rstd_data,
                                <vf64 *>dx_data, <vf64 *>dgain_data, partial_data, n_rows, n,
                                padded, n_threads)


# ---- one row, for a loop of others ---------------------------------------------------------------


cdef void backward_one(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    vreal *dx,              # OUT (n,)
    Py_ssize_t n,
    const vreal **parameters,   # IN  gain
    double eps,
    const double *cache,    # IN  rstd
    double **gradients,     # IN/OUT of gain
) noexcept nogil:
    cdef const vreal *gain = parameters[0]
    cdef double rstd = cache[0]
    if not vector_range(x, rstd):
        backward_row_double(dy, x, gain, dx, n, rstd, gradients[0])
        return
    if gain != NULL:
        backward_row(dy, x, gain, dx, n, rstd, True, False)
    else:
        backward_row(dy, x, gain, dx, n, rstd, False, False)
    add_row_any(dy, x, n, 0, rstd, 0, gradients[0], NULL, False)


def row_function(bint single):
    """A capsule of the function for a row, the gradient of that in rms_norm.pyx."""
    return backward_capsule(<NormBackward>backward_one[vf32], <NormBackward>backward_one[vf64],
                            single)
