"""Gradients of layer normalization of rows.

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), statistics in float64, at
least one row and one feature.

Design
------
With g = dy * gain, and xhat recomputed as fma(x - mean_hi, rstd, offset):

    dx = rstd * (g - mean(g) - xhat * mean(g * xhat))

One pass takes the sums of TOGETHER rows and of their columns; a second one writes dx, while the
rows are in cache, as what is linear in g and x:

    dx = rstd * (g - center) + (x - mean_hi) * slope + level

or, where slope or level leaves the range of its type, as above.

dgain and dbias are summed over blocks of rows, in the row's type for TOGETHER rows and in double
beyond, then over the blocks in their order: the thread count never shows in the bits. A row's own
sums run in 16 lanes (float64: 8), whatever rows are beside it.
"""
cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport fabs, isfinite

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.norm_rows cimport NormBackward, backward_capsule
from normlib._kernels.buffers cimport aligned_like
from normlib._kernels.plain cimport (
    is_input, is_like, is_parameter, is_row_statistic, new_vector,
)
from normlib._kernels.row_sums cimport add_row_any
from normlib._kernels.rows cimport FOLD, sums_about, vector_range
from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_PARTS, MAX_WIDE_VECS, STREAM_FLOATS, at, at_out, block_vecs, lanes,
    to_boundary, vadd_to, vec_fence, vec_prefetch, vf32, vf64, vf64_set, vfirst, vfma, vget, vload,
    vload_first, vput, vreal, vround, vset, vstore, vstore_first, vsum_wide, vwiden,
)

cnp.import_array()

cdef enum:
    ROWS = 64            # rows in a block, at least
    BLOCK_ELEMENTS = 4096
    TOGETHER = 4         # rows whose sums are taken in one pass
    AHEAD = 256          # elements of a row from which the next ones are prefetched


cdef struct Row:
    bint vector          # not so extreme that double is needed
    double mean_hi       # xhat = fma(x - mean_hi, rstd, offset)
    double mean_lo
    double offset
    double rstd
    double first         # g[0]
    double center        # mean(g), in the row's type
    double rest          # mean(g) - center
    double mean_gx       # mean(g * xhat)
    double slope         # dx = fma(g - center, rstd, fma(x - mean_hi, slope, level))
    double level
    bint linear          # both in range


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


cdef inline vreal times_minus(vreal v, const vreal *gain, vreal w, Py_ssize_t n, bint has_gain,
                              bint full) noexcept nogil:
    """v * gain - w, rounded once; n elements of gain, full where that is a vector."""
    if not has_gain:
        return v - w
    return vfma(v, vload(gain, n, full), -w)


cdef inline void finish_row(const vreal *x, Row *row, double mean_shifted,
                            double mean_gx) noexcept nogil:
    """What dx takes, from the means of g - g[0] and of its product with xhat."""
    # mean(g) in two parts: where g is nearly constant, g - mean(g) must not lose it.
    row.center = vround(row.first + mean_shifted, x)
    row.rest = (row.first - row.center) + mean_shifted
    row.mean_gx = mean_gx
    row.slope = -mean_gx * row.rstd * row.rstd
    row.level = -(mean_gx * row.offset + row.rest) * row.rstd
    row.linear = isfinite(row.slope) and fabs(row.level) < 1e30 and (
        mean_gx == 0 or row.slope != 0 and vector_range(x, row.slope))


cdef inline void row_sums(
    const vreal *dy,        # IN  (n_rows, n)
    const vreal *x,         # IN  (n_rows, n)
    const vreal *gain,      # IN  (n,)
    Row *rows,              # IN/OUT (n_rows,)
    double *dgain,          # IN/OUT (n rounded up to blocks,)
    double *dbias,          # IN/OUT (n rounded up to blocks,)
    Py_ssize_t n,
    int n_rows,             # a constant, at most TOGETHER
    bint has_gain,          # a constant
    bint columns,           # a constant: add to dgain and dbias
) noexcept nogil:
    """Each row's sums, for its dx, and the sums of the columns, from one reading of dy and x."""
    # Sums of g - g[0]: xhat sums to zero, so the shift changes nothing but the rounding, which
    # would eat up dx where g is nearly constant.
    cdef vreal acc1[TOGETHER * MAX_BLOCK_VECS]
    cdef vreal acc2[TOGETHER * MAX_BLOCK_VECS]
    cdef vf64 wide1[TOGETHER * MAX_WIDE_VECS]
    cdef vf64 wide2[TOGETHER * MAX_WIDE_VECS]
    cdef vf64 parts[MAX_PARTS]
    cdef vreal m[TOGETHER]
    cdef vreal s[TOGETHER]
    cdef vreal t[TOGETHER]
    cdef vreal shift[TOGETHER]
    cdef vreal v, g, xhat, column1, column2
    cdef int r, k, p, n_parts
    cdef int n_vecs = block_vecs(x) // 4
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j, left, stop
    for r in range(n_rows):
        rows[r].first = vround(vget(dy, r * n) * (vget(gain, 0) if has_gain else 1), x)
        m[r] = vset(rows[r].mean_hi, x)
        s[r] = vset(rows[r].rstd, x)
        t[r] = vset(rows[r].offset, x)
        shift[r] = vset(rows[r].first, x)
        for k in range(MAX_WIDE_VECS):
            wide1[r * MAX_WIDE_VECS + k] = vf64_set(0)
            wide2[r * MAX_WIDE_VECS + k] = vf64_set(0)
    while i < n:
        for k in range(n_rows * n_vecs):
            acc1[k] = vset(0, x)
            acc2[k] = vset(0, x)
        stop = min(i + 2 * FOLD * n_vecs * width, n)
        while i + n_vecs * width <= stop:
            for k in range(n_vecs):
                j = i + k * width
                column1 = vset(0, x)
                column2 = vset(0, x)
                for r in range(n_rows):
                    v = at(dy, r * n + j)[0]
                    xhat = vfma(at(x, r * n + j)[0] - m[r], s[r], t[r])
                    g = times_minus(v, at(gain, j), shift[r], width, has_gain, True)
                    acc1[r * n_vecs + k] = acc1[r * n_vecs + k] + g
                    acc2[r * n_vecs + k] = vfma(g, xhat, acc2[r * n_vecs + k])
                    column1 = column1 + v
                    column2 = vfma(v, xhat, column2)
                if columns:
                    vadd_to(dbias + j, column1)
                    vadd_to(dgain + j, column2)
            i += n_vecs * width
        if i < stop:
            for k in range(n_vecs):
                j = i + k * width
                left = stop - j
                column1 = vset(0, x)
                column2 = vset(0, x)
                for r in range(n_rows):
                    v = vload_first(at(dy, r * n + j), left)
                    xhat = vfma(vload_first(at(x, r * n + j), left) - m[r], s[r], t[r])
                    xhat = vfirst(xhat, left)
                    g = times_minus(v, at(gain, j), shift[r], left, has_gain, False)
                    g = vfirst(g, left)
                    acc1[r * n_vecs + k] = acc1[r * n_vecs + k] + g
                    acc2[r * n_vecs + k] = vfma(g, xhat, acc2[r * n_vecs + k])
                    column1 = column1 + v
                    column2 = vfma(v, xhat, column2)
                if columns:
                    vadd_to(dbias + j, column1)
                    vadd_to(dgain + j, column2)
            i = stop
        for r in range(n_rows):
            for k in range(n_vecs):
                n_parts = vwiden(acc1[r * n_vecs + k], parts)
                for p in range(n_parts):
                    j = r * MAX_WIDE_VECS + k * n_parts + p
                    wide1[j] = wide1[j] + parts[p]
                vwiden(acc2[r * n_vecs + k], parts)
                for p in range(n_parts):
                    j = r * MAX_WIDE_VECS + k * n_parts + p
                    wide2[j] = wide2[j] + parts[p]
    for r in range(n_rows):
        finish_row(x, rows + r, vsum_wide(x, wide1 + r * MAX_WIDE_VECS) / n,
                   vsum_wide(x, wide2 + r * MAX_WIDE_VECS) / n)


cdef inline vreal gradient(vreal g, vreal d, vreal s, vreal t, vreal b, vreal c,
                           bint linear) noexcept nogil:
    """dx of g - center and d = x - mean_hi."""
    if linear:
        return vfma(g, s, vfma(d, b, c))
    return vfma(vfma(d, s, t), b, g - c) * s


cdef inline void row_gradient(
    const vreal *dy,        # IN
    const vreal *x,         # IN
    const vreal *gain,      # IN
    vreal *dx,              # OUT
    Py_ssize_t n,
    const Row *row,
    bint has_gain,          # a constant
    bint linear,            # a constant
    bint stream,            # a constant: past the cache
) noexcept nogil:
    cdef vreal m = vset(row.mean_hi, x)
    cdef vreal s = vset(row.rstd, x)
    cdef vreal t = vset(row.offset, x)
    cdef vreal a = vset(row.center, x)
    cdef vreal b = vset(row.slope if linear else -row.mean_gx, x)
    cdef vreal c = vset(row.level if linear else row.rest, x)
    cdef vreal g
    cdef bint ahead = stream and n >= AHEAD
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t left
    while i + width <= n:
        if ahead:
            # The next rows, whose sums read many short runs at a time.
            vec_prefetch(at(dy, TOGETHER * n + i))
            vec_prefetch(at(x, TOGETHER * n + i))
        g = times_minus(at(dy, i)[0], at(gain, i), a, width, has_gain, True)
        vstore(at_out(dx, i), gradient(g, at(x, i)[0] - m, s, t, b, c, linear), stream)
        i += width
    if i < n:
        left = n - i
        g = times_minus(vload_first(at(dy, i), left), at(gain, i), a, left, has_gain, False)
        vstore_first(at_out(dx, i),
                     gradient(g, vload_first(at(x, i), left) - m, s, t, b, c, linear), left)


cdef inline void row_gradient_any(const vreal *dy, const vreal *x, const vreal *gain, vreal *dx,
                                  Py_ssize_t n, const Row *row, bint has_gain,
                                  bint stream) noexcept nogil:
    """row_gradient, compiled for each case."""
    if not row.linear:
        row_gradient(dy, x, gain, dx, n, row, has_gain, False, False)
    elif stream:
        row_gradient(dy, x, gain, dx, n, row, has_gain, True, True)
    else:
        row_gradient(dy, x, gain, dx, n, row, has_gain, True, False)


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


cdef inline void backward_together(
    const vreal *dy,        # IN  (n_rows, n)
    const vreal *x,         # IN  (n_rows, n)
    const vreal *gain,      # IN  (n,) or NULL
    vreal *dx,              # OUT (n_rows, n)
    Row *rows,              # IN/OUT (n_rows,)
    double *dgain,          # IN/OUT (n rounded up to blocks,)
    double *dbias,          # IN/OUT (n rounded up to blocks,)
    Py_ssize_t n,
    int n_rows,             # a constant, at most TOGETHER
    bint has_gain,          # a constant
    bint columns,           # a constant: add to dgain and dbias
    bint stream,
) noexcept nogil:
    cdef Py_ssize_t r
    row_sums(dy, x, gain, rows, dgain, dbias, n, n_rows, has_gain, columns)
    for r in range(n_rows):
        row_gradient_any(at(dy, r * n), at(x, r * n), gain, at_out(dx, r * n), n, rows + r,
                         has_gain, stream)


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
    cdef Row rows[TOGETHER]
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t count, r, i
    cdef bint together
    for i in range(stride):
        dgain[i] = 0
        dbias[i] = 0
    while first < n_rows:
        count = min(TOGETHER, n_rows - first)
        together = count == TOGETHER
        for r in range(count):
            i = (first + r) * n
            prepare_row(at(x, i), n, mean[first + r], rstd[first + r], &rows[r])
            together = together and rows[r].vector
        i = first * n
        if together and gain != NULL:
            backward_together(at(dy, i), at(x, i), gain, at_out(dx, i), rows, dgain, dbias, n,
                              TOGETHER, True, True, stream)
        elif together:
            backward_together(at(dy, i), at(x, i), gain, at_out(dx, i), rows, dgain, dbias, n,
                              TOGETHER, False, True, stream)
        else:
            for r in range(count):
                i = (first + r) * n
                if not rows[r].vector:
                    backward_row_double(at(dy, i), at(x, i), gain, at_out(dx, i), n, rows + r,
                                        dgain, dbias)
                elif gain != NULL:
                    backward_together(at(dy, i), at(x, i), gain, at_out(dx, i), rows + r, dgain,
                                      dbias, n, 1, True, True, stream)
                else:
                    backward_together(at(dy, i), at(x, i), gain, at_out(dx, i), rows + r, dgain,
                                      dbias, n, 1, False, True, stream)
        first += count
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
        backward_together(dy, x, gain, dx, &row, dgain, dbias, n, 1, True, False, False)
    else:
        backward_together(dy, x, gain, dx, &row, dgain, dbias, n, 1, False, False, False)
    add_row_any(dy, x, n, row.mean_hi, row.rstd, row.offset, dgain, dbias, True)


def row_function(bint single):
    """A capsule of the function for a row, the gradient of that in layer_norm.pyx."""
    return backward_capsule(<NormBackward>backward_one[vf32], <NormBackward>backward_one[vf64],
                            single)
