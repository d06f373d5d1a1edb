"""Gradients of layer normalization of rows.

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), statistics in float64, at
least one row and one feature.

Design
------
With g = dy * gain, and xhat recomputed as fma(x - mean_hi, rstd, offset):

    dx = rstd * (g - mean(g) - xhat * mean(g * xhat))

dgain and dbias are summed over blocks of rows, in the row's type for GROUP rows and in double
beyond, then over the blocks in their order: the thread count never shows in the bits.
"""
cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport fabs

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.norm_rows cimport NormBackward, backward_capsule
from normlib._kernels.buffers cimport aligned_like
from normlib._kernels.plain cimport (
    is_input, is_like, is_parameter, is_row_statistic, new_vector,
)
from normlib._kernels.row_sums cimport add_row_any
from normlib._kernels.rows cimport GROUP, sums_about, vector_range
from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_WIDE_VECS, STREAM_FLOATS, at, at_out, block_vecs, lanes, to_boundary,
    vadd_to, vec_fence, vf32, vf64, vf64_set, vfirst, vfma, vfold, vget, vload, vload_first, vput,
    vreal, vround, vset, vstore, vstore_first, vsum_wide,
)

cnp.import_array()

cdef enum:
    ROWS = 64            # rows in a block, at least
    BLOCK_ELEMENTS = 4096


cdef struct Row:
    bint vector          # not so extreme that double is needed
    double mean_hi       # xhat = fma(x - mean_hi, rstd, offset)
    double mean_lo
    double offset
    double rstd


cdef inline void prepare_row(const vreal *x, Py_ssize_t n, double mean, double rstd,
                             Row *row) noexcept nogil:
    cdef double sum_d, sum_d2, rest
    row.mean_hi = vround(mean, x)
    row.mean_lo = mean - row.mean_hi
    if vreal is vf64:
        # What a double has no room for: the mean of the deviations from it.
        sums_about(x, n, mean, &sum_d, &sum_d2)
        rest = sum_d / n
        if fabs(rest) <= 4e-16 * fabs(mean):
            row.mean_lo = rest
    row.rstd = rstd
    row.offset = -row.mean_lo * rstd
    row.vector = vector_range(x, rstd)


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
    const Row *row,
    bint has_gain,
    bint stream,            # dx starts a cache line, and goes past the cache
) noexcept nogil:
    # Sums of g - g[0]: xhat sums to zero, so the shift changes nothing but the rounding, which
    # would eat up dx where g is nearly constant.
    cdef vreal acc1[MAX_BLOCK_VECS]
    cdef vreal acc2[MAX_BLOCK_VECS]
    cdef vf64 wide1[MAX_WIDE_VECS]
    cdef vf64 wide2[MAX_WIDE_VECS]
    cdef vreal m = vset(row.mean_hi, x)
    cdef vreal s = vset(row.rstd, x)
    cdef vreal t = vset(row.offset, x)
    cdef double g_first = vget(dy, 0) * (vget(gain, 0) if has_gain else 1)
    cdef vreal shift = vset(g_first, x)
    cdef vreal g, xhat, a_hi, a_lo, b
    cdef double mean_g, mean_gx, rest
    cdef int k
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j, left, stop
    for k in range(MAX_WIDE_VECS):
        wide1[k] = vf64_set(0)
        wide2[k] = vf64_set(0)
    while i < n:
        for k in range(n_vecs):
            acc1[k] = vset(0, x)
            acc2[k] = vset(0, x)
        stop = min(i + 8 * n_vecs * width, n)
        while i + n_vecs * width <= stop:
            for k in range(n_vecs):
                j = i + k * width
                g = times(at(dy, j)[0], at(gain, j), width, has_gain) - shift
                xhat = vfma(at(x, j)[0] - m, s, t)
                acc1[k] = acc1[k] + g
                acc2[k] = vfma(g, xhat, acc2[k])
            i += n_vecs * width
        if i < stop:
            for k in range(n_vecs):
                j = i + k * width
                left = stop - j
                g = times(vload_first(at(dy, j), left), at(gain, j), left, has_gain) - shift
                g = vfirst(g, left)
                xhat = vfirst(vfma(vload_first(at(x, j), left) - m, s, t), left)
                acc1[k] = acc1[k] + g
                acc2[k] = vfma(g, xhat, acc2[k])
            i = stop
        vfold(acc1, wide1)
        vfold(acc2, wide2)
    g_first = vround(g_first, x)
    rest = vsum_wide(x, wide1) / n
    mean_g = vround(g_first + rest, x)
    mean_gx = vsum_wide(x, wide2) / n
    # mean(g) in two parts: where g is nearly constant, g - mean(g) must not lose it.
    a_hi = vset(mean_g, x)
    a_lo = vset((g_first - mean_g) + rest, x)
    b = vset(-mean_gx, x)
    i = 0
    while i + width <= n:
        g = times(at(dy, i)[0], at(gain, i), width, has_gain)
        xhat = vfma(at(x, i)[0] - m, s, t)
        vstore(at_out(dx, i), vfma(xhat, b, (g - a_hi) - a_lo) * s, stream)
        i += width
    if i < n:
        left = n - i
        g = times(vload_first(at(dy, i), left), at(gain, i), left, has_gain)
        xhat = vfma(vload_first(at(x, i), left) - m, s, t)
        vstore_first(at_out(dx, i), vfma(xhat, b, (g - a_hi) - a_lo) * s, left)


cdef void backward_row_double(
    const vreal *dy,        # IN
    const vreal *x,         # IN
    const vreal *gain,      # IN  or NULL
    vreal *dx,              # OUT
    Py_ssize_t n,
    const Row *row,
    double *dgain,          # IN/OUT, or NULL
    double *dbias,          # IN/OUT, or NULL
) noexcept nogil:
    """The same in double, dgain and dbias too, for a row beyond the range of its type's rstd."""
    cdef double g, xhat
    cdef double mean_g = 0
    cdef double mean_gx = 0
    cdef Py_ssize_t i
    for i in range(n):
        xhat = ((vget(x, i) - row.mean_hi) - row.mean_lo) * row.rstd
        g = vget(dy, i)
        if dgain != NULL:
            dgain[i] += g * xhat
        if dbias != NULL:
            dbias[i] += g
        if gain != NULL:
            g = g * vget(gain, i)
        mean_g += g / n
        mean_gx += g * xhat / n
    for i in range(n):
        xhat = ((vget(x, i) - row.mean_hi) - row.mean_lo) * row.rstd
        g = vget(dy, i)
        if gain != NULL:
            g = g * vget(gain, i)
        vput(dx, i, (g - mean_g - xhat * mean_gx) * row.rstd)


cdef inline void add_columns(
    const vreal *dy,        # IN  (n_rows, stride), at the first column
    const vreal *x,         # IN  (n_rows, stride)
    const Row *rows,        # IN  (n_rows,)
    double *dgain,          # IN/OUT (block,)
    double *dbias,          # IN/OUT (block,)
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t stride,
    Py_ssize_t n_columns,   # at most one block
    bint full,              # a constant: exactly one block
) noexcept nogil:
    """Add the rows' dy * xhat and dy to the sums of the columns."""
    cdef vreal acc1[MAX_BLOCK_VECS]
    cdef vreal acc2[MAX_BLOCK_VECS]
    cdef vreal g, xhat, m, s, t
    cdef int k
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t r, j, left
    for k in range(n_vecs):
        acc1[k] = vset(0, x)
        acc2[k] = vset(0, x)
    for r in range(n_rows):
        if not rows[r].vector:
            continue
        m = vset(rows[r].mean_hi, x)
        s = vset(rows[r].rstd, x)
        t = vset(rows[r].offset, x)
        for k in range(n_vecs):
            left = n_columns - k * width
            j = r * stride + k * width
            g = vload(at(dy, j), left, full)
            xhat = vfma(vload(at(x, j), left, full) - m, s, t)
            acc1[k] = acc1[k] + g
            acc2[k] = vfma(g, xhat, acc2[k])
    for k in range(n_vecs):
        vadd_to(dbias + k * width, acc1[k])
        vadd_to(dgain + k * width, acc2[k])


cdef void backward_block(
    const vreal *dy,        # IN  (n_rows, n)
    const vreal *x,         # IN  (n_rows, n)
    const vreal *gain,      # IN  (n,) or NULL
    const double *mean,     # IN  (n_rows,)
    const double *rstd,     # IN  (n_rows,)
    vreal *dx,              # OUT (n_rows, n)
    double *dgain,          # OUT (n rounded up to blocks,)
    double *dbias,          # OUT (n rounded up to blocks,)
    Py_ssize_t n_rows,
    Py_ssize_t n,
    Py_ssize_t stride,
    bint stream,
) noexcept nogil:
    cdef Row rows[GROUP]
    cdef Py_ssize_t block = block_vecs(x) * lanes(x)
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t count, r, i
    for i in range(stride):
        dgain[i] = 0
        dbias[i] = 0
    while first < n_rows:
        count = min(GROUP, n_rows - first)
        for r in range(count):
            i = (first + r) * n
            prepare_row(at(x, i), n, mean[first + r], rstd[first + r], &rows[r])
            if not rows[r].vector:
                backward_row_double(at(dy, i), at(x, i), gain, at_out(dx, i), n, &rows[r],
                                    dgain, dbias)
            elif gain != NULL and stream:
                backward_row(at(dy, i), at(x, i), gain, at_out(dx, i), n, &rows[r], True, True)
            elif gain != NULL:
                backward_row(at(dy, i), at(x, i), gain, at_out(dx, i), n, &rows[r], True, False)
            elif stream:
                backward_row(at(dy, i), at(x, i), gain, at_out(dx, i), n, &rows[r], False, True)
            else:
                backward_row(at(dy, i), at(x, i), gain, at_out(dx, i), n, &rows[r], False, False)
        i = 0
        while i + block <= n:
            add_columns(at(dy, first * n + i), at(x, first * n + i), rows, dgain + i, dbias + i,
                        count, n, block, True)
            i += block
        if i < n:
            add_columns(at(dy, first * n + i), at(x, first * n + i), rows, dgain + i, dbias + i,
                        count, n, n - i, False)
        first += GROUP
    if stream:
        vec_fence()


cdef inline Py_ssize_t block_rows(Py_ssize_t n) noexcept nogil:
    """Rows in a block: more where they are short, lest the scratch outgrow the input."""
    return max(ROWS, BLOCK_ELEMENTS // n)


cdef inline Py_ssize_t n_blocks(Py_ssize_t n_rows, Py_ssize_t n) noexcept nogil:
    return (n_rows + block_rows(n) - 1) // block_rows(n)


cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    """n, rounded up to whole vectors of any kind."""
    return (n + 63) // 64 * 64


cdef void backward_rows(const vreal *dy, const vreal *x, const vreal *gain, const double *mean,
                        const double *rstd, vreal *dx, vreal *dgain, vreal *dbias,
                        double *partial, Py_ssize_t n_rows, Py_ssize_t n, Py_ssize_t stride,
                        int n_threads) noexcept nogil:
    cdef Py_ssize_t size = block_rows(n)
    cdef Py_ssize_t blocks = n_blocks(n_rows, n)
    cdef bint stream = (n_rows * n >= STREAM_FLOATS and n % lanes(x) == 0
                        and to_boundary(dx) == 0)
    cdef Py_ssize_t b, i
    cdef double total
    if n_threads == 1:
        for b in range(blocks):
            backward_block(at(dy, b * size * n), at(x, b * size * n), gain, mean + b * size,
                           rstd + b * size, at_out(dx, b * size * n), partial + 2 * b * stride,
                           partial + (2 * b + 1) * stride, min(size, n_rows - b * size), n, stride,
                           stream)
    else:
        for b in prange(blocks, schedule="static", num_threads=n_threads):
            backward_block(at(dy, b * size * n), at(x, b * size * n), gain, mean + b * size,
                           rstd + b * size, at_out(dx, b * size * n), partial + 2 * b * stride,
                           partial + (2 * b + 1) * stride, min(size, n_rows - b * size), n, stride,
                           stream)
    for i in range(n):
        total = 0
        for b in range(blocks):
            total += partial[(2 * b + 1) * stride + i]
        vput(dbias, i, total)
        if dgain != NULL:
            total = 0
            for b in range(blocks):
                total += partial[2 * b * stride + i]
            vput(dgain, i, total)


def scratch_shape(Py_ssize_t n_rows, Py_ssize_t n):
    """Shape of the float64 scratch that gradients need: blocks, dgain and dbias, features."""
    return n_blocks(n_rows, n), 2, padded(n)


cdef int backward(object dy, object x, object gain, object mean, object rstd, object dx,
                  object dgain, object dbias, Py_ssize_t n_rows, Py_ssize_t n,
                  int n_threads) except -1:
    cdef Py_ssize_t size = padded(n)
    partial = new_vector(2 * size * n_blocks(n_rows, n), cnp.NPY_FLOAT64)
    cdef void *dy_data = address(dy)
    cdef void *x_data = address(x)
    cdef void *gain_data = address(gain)
    cdef double *mean_data = <double *>address(mean)
    cdef double *rstd_data = <double *>address(rstd)
    cdef void *dx_data = address(dx)
    cdef void *dgain_data = address(dgain)
    cdef void *dbias_data = address(dbias)
    cdef double *partial_data = <double *>address(partial)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            backward_rows[vf32](<vf32 *>dy_data, <vf32 *>x_data, <vf32 *>gain_data, mean_data,
                                rstd_data, <vf32 *>dx_data, <vf32 *>dgain_data,
                                <vf32 *>dbias_data, partial_data, n_rows, n, size, n_threads)
        else:
            backward_rows[vf64](<vf64 *>dy_data, <vf64 *>x_data, <vf64 *>gain_data, mean_data,
                                rstd_data, <vf64 *>dx_data, <vf64 *>dgain_data,
                                <vf64 *>dbias_data, partial_data, n_rows, n, size, n_threads)
    return 0


def layer_norm_backward(dy, x, gain, mean, rstd, dx, dgain, dbias, int n_threads):
    """Gradients of layer_norm_forward for x (rows, n); gain and dgain may be None."""
    backward(dy, x, gain, mean, rstd, dx, dgain, dbias, dim(x, 0), dim(x, 1), n_threads)


def layer_norm_backward_plain(dy, x, mean, rstd, gain, threads_for):
    """(dx, dgain, dbias) over the last axis; None unless every argument is plain.

    threads_for(elements) tells how many threads to use.
    """
    if not (is_input(x) and is_like(dy, x) and is_row_statistic(mean, x)
            and is_row_statistic(rstd, x)):
        return None
    cdef int number = cnp.PyArray_TYPE(x)
    cdef Py_ssize_t n = dim(x, cnp.PyArray_NDIM(x) - 1)
    cdef Py_ssize_t n_rows = cnp.PyArray_SIZE(x) // n
    if not is_parameter(gain, x, n):
        return None
    dx = aligned_like(x)
    dgain = None if gain is None else new_vector(n, number)
    dbias = new_vector(n, number)
    backward(dy, x, gain, mean, rstd, dx, dgain, dbias, n_rows, n, threads_for(n_rows * n))
    return dx, dgain, dbias


# ---- one row, for a loop of others ---------------------------------------------------------------


cdef void backward_one(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    vreal *dx,              # OUT (n,)
    Py_ssize_t n,
    const vreal **parameters,   # IN  gain, bias
    double eps,
    const double *cache,    # IN  mean, rstd
    double **gradients,     # IN/OUT of gain, of bias
) noexcept nogil:
    cdef Row row
    cdef const vreal *gain = parameters[0]
    cdef double *dgain = gradients[0]
    cdef double *dbias = gradients[1]
    prepare_row(x, n, cache[0], cache[1], &row)
    if not row.vector:
        backward_row_double(dy, x, gain, dx, n, &row, dgain, dbias)
        return
    if gain != NULL:
        backward_row(dy, x, gain, dx, n, &row, True, False)
    else:
        backward_row(dy, x, gain, dx, n, &row, False, False)
    add_row_any(dy, x, n, row.mean_hi, row.rstd, row.offset, dgain, dbias, True)


def row_function(bint single):
    """A capsule of the function for a row, the gradient of that in layer_norm.pyx."""
    return backward_capsule(<NormBackward>backward_one[vf32], <NormBackward>backward_one[vf64],
                            single)
