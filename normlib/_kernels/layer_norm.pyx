"""Layer normalization of rows, forward and backward.

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), statistics in float64,
at least one row and one feature.

Design
------
Forward: a thread takes GROUP rows at a time, all their moments first and then their output, so
that the latency of one row's sums hides behind the next row's loads. With scale = rstd and
offset = -mean_lo * rstd,

    y = fma(fma(x - mean_hi, scale, offset), gain, bias)

Backward, with g = dy * gain and xhat recomputed as above:

    dx = rstd * (g - mean(g) - xhat * mean(g * xhat))

dgain and dbias are summed over blocks of rows, in the row's type for GROUP rows and in double
beyond, then over the blocks in their order: the thread count never shows in the bits.

Loops over threads have a serial twin, as in all kernels: a parallel region costs 0.7 us even for
one thread.
"""
cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport fabs, isfinite, sqrt

from normlib._kernels.arrays cimport address, aligned_like, dim, is_plain, is_single, overlap
from normlib._kernels.rows cimport (
    GROUP, QUICK, Moments, ScaledMoments, needs_scaling, quick_moments, row_moments,
    scaled_moments, scaled_xhat, sums_about, unscaled_mean, unscaled_rstd, vector_range,
)
from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_WIDE_VECS, vec_fence, vf32, vf64, vf64_set, vreal,
    at, at_out, block_vecs, lanes, to_boundary, vadd_to, vfirst, vfma, vfold, vget, vload,
    vload_first, vput, vround, vset, vstore, vstore_first, vsum_wide,
)

cnp.import_array()

cdef enum:
    GROUP_FLOATS = 3072  # elements in a group of rows
    STREAM_FLOATS = 1 << 23     # elements of an output that leaves the cache
    ROWS = 64            # rows in a block of the backward pass, at least
    BLOCK_ELEMENTS = 4096


# ---- forward -------------------------------------------------------------------------------------


cdef inline vreal affine(vreal v, const vreal *gain, const vreal *bias, Py_ssize_t n,
                         bint has_gain, bint has_bias) noexcept nogil:
    """v * gain + bias, from the first n elements of each."""
    cdef bint full = n == lanes(gain)
    if has_gain and has_bias:
        return vfma(v, vload(gain, n, full), vload(bias, n, full))
    if has_gain:
        return v * vload(gain, n, full)
    if has_bias:
        return v + vload(bias, n, full)
    return v


cdef inline void normalize_part(
    const vreal *x,         # IN
    const vreal *gain,      # IN
    const vreal *bias,      # IN
    vreal *y,               # OUT, may be x
    Py_ssize_t n,           # at most one vector
    vreal mean,
    vreal scale,
    vreal offset,
    bint has_gain,
    bint has_bias,
) noexcept nogil:
    cdef vreal v = vfma(vload_first(x, n) - mean, scale, offset)
    vstore_first(y, affine(v, gain, bias, n, has_gain, has_bias), n)


cdef inline void normalize_row(
    const vreal *x,         # IN
    const vreal *gain,      # IN
    const vreal *bias,      # IN
    vreal *y,               # OUT, may be x
    Py_ssize_t n,
    double mean,
    double scale,
    double offset,
    bint has_gain,
    bint has_bias,
    bint stream,            # y's rows start cache lines; past the cache with them
) noexcept nogil:
    cdef vreal m = vset(mean, x)
    cdef vreal s = vset(scale, x)
    cdef vreal t = vset(offset, x)
    cdef vreal v
    cdef int k
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j
    if n >= 4 * width:
        # Stores that stay in a cache line from here on.
        i = to_boundary(y)
        if i > 0:
            normalize_part(x, gain, bias, y, i, m, s, t, has_gain, has_bias)
    while i + 4 * width <= n:
        for k in range(4):
            j = i + k * width
            v = vfma(at(x, j)[0] - m, s, t)
            vstore(at_out(y, j), affine(v, at(gain, j), at(bias, j), width, has_gain, has_bias),
                   stream)
        i += 4 * width
    while i < n:
        normalize_part(at(x, i), at(gain, i), at(bias, i), at_out(y, i), min(width, n - i), m, s, t,
                       has_gain, has_bias)
        i += width


cdef inline void normalize_pair(
    const vreal *x,         # IN  (2, n)
    const vreal *gain,      # IN
    const vreal *bias,      # IN
    vreal *y,               # OUT (2, n), may be x
    Py_ssize_t n,
    const double *mean,     # IN  (2,)
    const double *scale,    # IN  (2,)
    const double *offset,   # IN  (2,)
    bint has_gain,
    bint has_bias,
    bint stream,            # y's rows start cache lines; past the cache with them
) noexcept nogil:
    """Two rows, for which gain and bias are loaded once; n is a multiple of four vectors."""
    cdef vreal m0 = vset(mean[0], x)
    cdef vreal s0 = vset(scale[0], x)
    cdef vreal t0 = vset(offset[0], x)
    cdef vreal m1 = vset(mean[1], x)
    cdef vreal s1 = vset(scale[1], x)
    cdef vreal t1 = vset(offset[1], x)
    cdef vreal v0, v1, g, b
    cdef int k
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j
    while i < n:
        for k in range(2):
            j = i + k * width
            v0 = vfma(at(x, j)[0] - m0, s0, t0)
            v1 = vfma(at(x, n + j)[0] - m1, s1, t1)
            if has_gain:
                g = at(gain, j)[0]
            if has_bias:
                b = at(bias, j)[0]
            if has_gain and has_bias:
                v0 = vfma(v0, g, b)
                v1 = vfma(v1, g, b)
            elif has_gain:
                v0 = v0 * g
                v1 = v1 * g
            elif has_bias:
                v0 = v0 + b
                v1 = v1 + b
            vstore(at_out(y, j), v0, stream)
            vstore(at_out(y, n + j), v1, stream)
        i += 2 * width


cdef inline void normalize_rows(
    const vreal *x,         # IN  (n_rows, n)
    const vreal *gain,      # IN
    const vreal *bias,      # IN
    vreal *y,               # OUT (n_rows, n), may be x
    Py_ssize_t n_rows,
    Py_ssize_t n,
    const double *mean,     # IN  (n_rows,)
    const double *scale,    # IN  (n_rows,)
    const double *offset,   # IN  (n_rows,)
    const bint *skip,       # IN  (n_rows,)
    bint has_gain,
    bint has_bias,
    bint stream,            # y's rows start cache lines; past the cache with them
) noexcept nogil:
    cdef Py_ssize_t r = 0
    cdef bint pairs = n % (4 * lanes(x)) == 0 and to_boundary(y) == 0
    while r < n_rows:
        if pairs and r + 1 < n_rows and not skip[r] and not skip[r + 1]:
            normalize_pair(at(x, r * n), gain, bias, at_out(y, r * n), n, mean + r, scale + r,
                           offset + r, has_gain, has_bias, stream)
            r += 2
            continue
        if not skip[r]:
            normalize_row(at(x, r * n), gain, bias, at_out(y, r * n), n, mean[r], scale[r],
                          offset[r], has_gain, has_bias, stream)
        r += 1


cdef inline void normalize_rows_any(
    const vreal *x, const vreal *gain, const vreal *bias, vreal *y, Py_ssize_t n_rows,
    Py_ssize_t n, const double *mean, const double *scale, const double *offset,
    const bint *skip, bint stream,
) noexcept nogil:
    """normalize_rows, compiled for each combination of gain and bias."""
    if gain != NULL and bias != NULL:
        normalize_rows(x, gain, bias, y, n_rows, n, mean, scale, offset, skip, True, True, stream)
    elif gain != NULL:
        normalize_rows(x, gain, bias, y, n_rows, n, mean, scale, offset, skip, True, False, stream)
    elif bias != NULL:
        normalize_rows(x, gain, bias, y, n_rows, n, mean, scale, offset, skip, False, True, stream)
    else:
        normalize_rows(x, gain, bias, y, n_rows, n, mean, scale, offset, skip, False, False, stream)


cdef void normalize_row_scaled(
    const vreal *x,         # IN
    const vreal *gain,      # IN, or NULL
    const vreal *bias,      # IN, or NULL
    vreal *y,               # OUT, may be x
    Py_ssize_t n,
    const ScaledMoments *moments,
) noexcept nogil:
    cdef double v
    cdef Py_ssize_t i
    for i in range(n):
        v = scaled_xhat(vget(x, i), moments)
        if gain != NULL:
            v = v * vget(gain, i)
        if bias != NULL:
            v = v + vget(bias, i)
        vput(y, i, v)


cdef void forward_group(
    const vreal *x,         # IN  (n_rows, n)
    const vreal *gain,      # IN  (n,) or NULL
    const vreal *bias,      # IN  (n,) or NULL
    vreal *y,               # OUT (n_rows, n), may be x
    double *mean,           # OUT (n_rows,) or NULL
    double *rstd,           # OUT (n_rows,) or NULL
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t n,
    double eps,
    bint stream,
) noexcept nogil:
    cdef Moments moments[GROUP]
    cdef Moments exact
    cdef ScaledMoments scaled
    cdef double center[GROUP]
    cdef double scale[GROUP]
    cdef double offset[GROUP]
    cdef bint good[GROUP]
    cdef bint done[GROUP]
    cdef Py_ssize_t r
    cdef bint quick = vreal is vf32 and n >= QUICK
    if quick:
        quick_moments(x, moments, good, n_rows, n)
    for r in range(n_rows):
        if not (quick and good[r]):
            row_moments(at(x, r * n), n, &moments[r])
    for r in range(n_rows):
        center[r] = moments[r].mean_hi
        scale[r] = 1 / sqrt(moments[r].var + eps)
        offset[r] = -moments[r].mean_lo * scale[r]
        done[r] = False
    for r in range(n_rows):
        if mean != NULL:
            row_moments(at(x, r * n), n, &exact)
            mean[r] = exact.mean_hi + exact.mean_lo
            rstd[r] = 1 / sqrt(exact.var + eps)
        if needs_scaling(x, moments[r].var, eps) or not vector_range(x, scale[r]):
            scaled_moments(at(x, r * n), 1, 0, n, eps, &scaled)
            normalize_row_scaled(at(x, r * n), gain, bias, at_out(y, r * n), n, &scaled)
            if mean != NULL:
                mean[r] = unscaled_mean(&scaled)
                rstd[r] = unscaled_rstd(&scaled)
            done[r] = True
    if stream:
        normalize_rows_any(x, gain, bias, y, n_rows, n, center, scale, offset, done, True)
    else:
        normalize_rows_any(x, gain, bias, y, n_rows, n, center, scale, offset, done, False)


cdef void forward_part(const vreal *x, const vreal *gain, const vreal *bias, vreal *y,
                       double *mean, double *rstd, Py_ssize_t n_rows, Py_ssize_t n,
                       double eps, int part, int n_parts) noexcept nogil:
    """The groups of one of n_parts equal parts."""
    # So few rows that they stay in L1 from their moments to their output.
    cdef Py_ssize_t group = max(1, min(GROUP, GROUP_FLOATS // n))
    cdef Py_ssize_t n_groups = (n_rows + group - 1) // group
    cdef Py_ssize_t first = n_groups * part // n_parts * group
    cdef Py_ssize_t stop = min(n_groups * (part + 1) // n_parts * group, n_rows)
    cdef bint stream = (n_rows * n >= STREAM_FLOATS and n % (4 * lanes(x)) == 0
                        and to_boundary(y) == 0)
    while first < stop:
        forward_group(
            at(x, first * n), gain, bias, at_out(y, first * n),
            NULL if mean == NULL else mean + first, NULL if rstd == NULL else rstd + first,
            min(group, stop - first), n, eps, stream)
        first += group
    if stream:
        vec_fence()


cdef void forward_rows(const vreal *x, const vreal *gain, const vreal *bias, vreal *y,
                       double *mean, double *rstd, Py_ssize_t n_rows, Py_ssize_t n,
                       double eps, int n_threads) noexcept nogil:
    cdef int part
    if n_threads == 1:
        forward_part(x, gain, bias, y, mean, rstd, n_rows, n, eps, 0, 1)
        return
    for part in prange(n_threads, schedule="static", num_threads=n_threads):
        forward_part(x, gain, bias, y, mean, rstd, n_rows, n, eps, part, n_threads)


def layer_norm_forward(x, gain, bias, double eps, y, mean, rstd, int n_threads):
    """Normalize the rows of x (rows, n) into y; gain, bias, mean and rstd may be None."""
    cdef Py_ssize_t n_rows = dim(x, 0)
    cdef Py_ssize_t n = dim(x, 1)
    cdef void *x_data = address(x)
    cdef void *gain_data = address(gain)
    cdef void *bias_data = address(bias)
    cdef void *y_data = address(y)
    cdef double *mean_data = <double *>address(mean)
    cdef double *rstd_data = <double *>address(rstd)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            forward_rows[vf32](<vf32 *>x_data, <vf32 *>gain_data, <vf32 *>bias_data,
                               <vf32 *>y_data, mean_data, rstd_data, n_rows, n, eps, n_threads)
        else:
            forward_rows[vf64](<vf64 *>x_data, <vf64 *>gain_data, <vf64 *>bias_data,
                               <vf64 *>y_data, mean_data, rstd_data, n_rows, n, eps, n_threads)


cdef inline bint is_parameter(object array, object x, Py_ssize_t n) noexcept:
    """None, or a plain (n,) of x's type."""
    if array is None:
        return True
    return (is_plain(array) and cnp.PyArray_TYPE(array) == cnp.PyArray_TYPE(x)
            and cnp.PyArray_NDIM(array) == 1 and dim(array, 0) == n)


cdef inline bint is_output(object out, object x, object gain, object bias) noexcept:
    """A plain, writeable array of x's type and shape, apart from all inputs or x itself."""
    cdef int axis
    if not (is_plain(out) and cnp.PyArray_ISWRITEABLE(out)
            and cnp.PyArray_TYPE(out) == cnp.PyArray_TYPE(x)
            and cnp.PyArray_NDIM(out) == cnp.PyArray_NDIM(x)):
        return False
    for axis in range(cnp.PyArray_NDIM(x)):
        if dim(out, axis) != dim(x, axis):
            return False
    return (out is x or not overlap(out, x)) and not (overlap(out, gain) or overlap(out, bias))


def layer_norm_plain(x, gain, bias, eps, out, threads_for):
    """layer_norm over the last axis if every argument is as a kernel wants it; None if not.

    Saves small arrays the checks and conversions in Python, which cost more than their kernel.
    threads_for(elements) tells how many threads to use.
    """
    cdef Py_ssize_t n, size
    cdef double eps_value
    if not is_plain(x) or cnp.PyArray_NDIM(x) == 0:
        return None
    n = dim(x, cnp.PyArray_NDIM(x) - 1)
    size = cnp.PyArray_SIZE(x)
    if size == 0 or type(eps) is not float:
        return None
    eps_value = eps
    if not (eps_value >= 0 and isfinite(eps_value)):
        return None
    if not (is_parameter(gain, x, n) and is_parameter(bias, x, n)):
        return None
    if out is None:
        out = aligned_like(x)
    elif not is_output(out, x, gain, bias):
        return None
    cdef int n_threads = threads_for(size)
    cdef void *x_data = address(x)
    cdef void *gain_data = address(gain)
    cdef void *bias_data = address(bias)
    cdef void *y_data = address(out)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            forward_rows[vf32](<vf32 *>x_data, <vf32 *>gain_data, <vf32 *>bias_data,
                               <vf32 *>y_data, NULL, NULL, size // n, n, eps_value, n_threads)
        else:
            forward_rows[vf64](<vf64 *>x_data, <vf64 *>gain_data, <vf64 *>bias_data,
                               <vf64 *>y_data, NULL, NULL, size // n, n, eps_value, n_threads)
    return out


# ---- backward ------------------------------------------------------------------------------------


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
        at_out(dx, i)[0] = vfma(xhat, b, (g - a_hi) - a_lo) * s
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
    double *dgain,          # IN/OUT
    double *dbias,          # IN/OUT
) noexcept nogil:
    """The same in double, dgain and dbias too, for a row beyond the range of its type's rstd."""
    cdef double g, xhat
    cdef double mean_g = 0
    cdef double mean_gx = 0
    cdef Py_ssize_t i
    for i in range(n):
        xhat = ((vget(x, i) - row.mean_hi) - row.mean_lo) * row.rstd
        g = vget(dy, i)
        dgain[i] += g * xhat
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
    Py_ssize_t padded,
) noexcept nogil:
    cdef Row rows[GROUP]
    cdef Py_ssize_t block = block_vecs(x) * lanes(x)
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t count, r, i
    for i in range(padded):
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
            elif gain != NULL:
                backward_row(at(dy, i), at(x, i), gain, at_out(dx, i), n, &rows[r], True)
            else:
                backward_row(at(dy, i), at(x, i), gain, at_out(dx, i), n, &rows[r], False)
        i = 0
        while i + block <= n:
            add_columns(at(dy, first * n + i), at(x, first * n + i), rows, dgain + i, dbias + i,
                        count, n, block, True)
            i += block
        if i < n:
            add_columns(at(dy, first * n + i), at(x, first * n + i), rows, dgain + i, dbias + i,
                        count, n, n - i, False)
        first += GROUP


cdef inline Py_ssize_t block_rows(Py_ssize_t n) noexcept nogil:
    """Rows in a block: more where they are short, lest the scratch outgrow the input."""
    return max(ROWS, BLOCK_ELEMENTS // n)


cdef void backward_rows(const vreal *dy, const vreal *x, const vreal *gain, const double *mean,
                        const double *rstd, vreal *dx, vreal *dgain, vreal *dbias,
                        double *partial, Py_ssize_t n_rows, Py_ssize_t n, Py_ssize_t padded,
                        int n_threads) noexcept nogil:
    cdef Py_ssize_t size = block_rows(n)
    cdef Py_ssize_t n_blocks = (n_rows + size - 1) // size
    cdef Py_ssize_t b, i
    cdef double total
    if n_threads == 1:
        for b in range(n_blocks):
            backward_block(at(dy, b * size * n), at(x, b * size * n), gain, mean + b * size,
                           rstd + b * size, at_out(dx, b * size * n), partial + 2 * b * padded,
                           partial + (2 * b + 1) * padded, min(size, n_rows - b * size), n, padded)
    else:
        for b in prange(n_blocks, schedule="static", num_threads=n_threads):
            backward_block(at(dy, b * size * n), at(x, b * size * n), gain, mean + b * size,
                           rstd + b * size, at_out(dx, b * size * n), partial + 2 * b * padded,
                           partial + (2 * b + 1) * padded, min(size, n_rows - b * size), n, padded)
    for i in range(n):
        total = 0
        for b in range(n_blocks):
            total += partial[(2 * b + 1) * padded + i]
        vput(dbias, i, total)
        if dgain != NULL:
            total = 0
            for b in range(n_blocks):
                total += partial[2 * b * padded + i]
            vput(dgain, i, total)


def layer_norm_backward_scratch(Py_ssize_t n_rows, Py_ssize_t n):
    """Shape of the float64 scratch for layer_norm_backward: blocks, dgain and dbias, features."""
    cdef Py_ssize_t size = block_rows(n)
    return (n_rows + size - 1) // size, 2, (n + 63) // 64 * 64


def layer_norm_backward(dy, x, gain, mean, rstd, dx, dgain, dbias, partial, int n_threads):
    """Gradients of layer_norm_forward; gain and dgain may be None."""
    cdef Py_ssize_t n_rows = dim(x, 0)
    cdef Py_ssize_t n = dim(x, 1)
    cdef Py_ssize_t padded = dim(partial, 2)
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
                                <vf32 *>dbias_data, partial_data, n_rows, n, padded, n_threads)
        else:
            backward_rows[vf64](<vf64 *>dy_data, <vf64 *>x_data, <vf64 *>gain_data, mean_data,
                                rstd_data, <vf64 *>dx_data, <vf64 *>dgain_data,
                                <vf64 *>dbias_data, partial_data, n_rows, n, padded, n_threads)
