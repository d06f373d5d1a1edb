"""Group normalization of x (samples, channels, inner).

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), statistics in float64, no
axis empty, groups dividing the channels.

Design
------
A group of a sample is one contiguous row, of channels / groups * inner elements, whose moments are
those of layer norm. The output goes by planes, the runs of one channel:

    y = fma(x - mean_hi, gain * rstd, bias - mean_lo * gain * rstd)

or, where inner is 1, by rows, gain and bias taken element by element, as in layer_norm.pyx.
"""
cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport sqrt

from normlib._kernels.affine cimport affine_row, at_or_null
from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.buffers cimport aligned_like
from normlib._kernels.groups cimport Layout, find_groups, is_short
from normlib._kernels.norm_rows cimport NormForward, forward_capsule
from normlib._kernels.plain cimport apart, is_eps, is_input, is_output, is_parameter
from normlib._kernels.quick_moments cimport QUICK, output_moments, short_group_moments
from normlib._kernels.rows cimport (
    GROUP, GROUP_FLOATS, SHORT, Moments, ScaledMoments, needs_scaling, row_moments, scaled_moments,
    scaled_xhat, unscaled_mean, unscaled_rstd, vector_range,
)
from normlib._kernels.vec cimport (
    MAX_WIDE_VECS, STREAM_FLOATS, VF64_LANES, at, at_out, lanes, to_boundary, vec_fence, vf32, vf64,
    vf64_set, vf64_sqrt, vget, vload_first, vput, vreal, vround, vstore_first,
)

cnp.import_array()


cdef struct Row:
    bint extreme         # done in double, by the moments in scaled
    double mean_hi
    double rstd
    double offset        # -mean_lo * rstd
    ScaledMoments scaled


cdef inline void few_moments(const vreal *x, Moments *out, Py_ssize_t n_rows,
                             Py_ssize_t n) noexcept nogil:
    """Moments of rows shorter than QUICK, which are not worth vectors."""
    cdef double inverse = 1.0 / n
    cdef double d, sum_d, sum_d2
    cdef Py_ssize_t r, i
    for r in range(n_rows):
        sum_d = 0
        for i in range(1, n):
            sum_d += vget(x, i) - vget(x, 0)
        out[r].mean_hi = vround(vget(x, 0) + sum_d * inverse, x)
        sum_d = 0
        sum_d2 = 0
        for i in range(n):
            d = vget(x, i) - out[r].mean_hi
            sum_d += d
            sum_d2 += d * d
        out[r].mean_lo = sum_d * inverse
        d = sum_d2 * inverse - out[r].mean_lo * out[r].mean_lo
        out[r].var = 0 if d < 0 else d
        x = at(x, n)


cdef inline bint short_statistics(
    const vreal *x,         # IN  (GROUP, n), n from QUICK to SHORT
    Row *rows,              # OUT (GROUP,)
    Py_ssize_t n,
    double eps,
) noexcept nogil:
    """Those of GROUP rows, none of them extreme; False where quick moments fail."""
    cdef vf64 mean_hi[MAX_WIDE_VECS]
    cdef vf64 mean_lo[MAX_WIDE_VECS]
    cdef vf64 var[MAX_WIDE_VECS]
    cdef vf64 rstd[MAX_WIDE_VECS]
    cdef int v, r
    # Then neither var + eps nor its root leaves the range of float.
    if not (0 <= eps < 1e30 and short_group_moments(x, mean_hi, mean_lo, var, n, x)):
        return False
    for v in range(GROUP // VF64_LANES):
        rstd[v] = vf64_set(1) / vf64_sqrt(var[v] + vf64_set(eps))
        mean_lo[v] = -mean_lo[v] * rstd[v]
    for r in range(GROUP):
        rows[r].extreme = False
        rows[r].mean_hi = (<double *>mean_hi)[r]
        rows[r].rstd = (<double *>rstd)[r]
        rows[r].offset = (<double *>mean_lo)[r]
    return True


cdef inline void row_statistics(
    const vreal *x,         # IN  (n_rows, n)
    Row *rows,              # OUT (n_rows,)
    double *mean,           # OUT (n_rows,) or NULL
    double *rstd,           # OUT (n_rows,) or NULL
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t n,
    double eps,
) noexcept nogil:
    cdef Moments moments[GROUP]
    cdef Moments exact
    cdef Py_ssize_t r
    if QUICK <= n < SHORT and n_rows == GROUP and mean == NULL:
        if short_statistics(x, rows, n, eps):
            return
    if n < QUICK:
        few_moments(x, moments, n_rows, n)
    else:
        output_moments(x, moments, n_rows, n)
    for r in range(n_rows):
        rows[r].mean_hi = moments[r].mean_hi
        rows[r].rstd = 1 / sqrt(moments[r].var + eps)
        rows[r].offset = -moments[r].mean_lo * rows[r].rstd
    for r in range(n_rows):
        if mean != NULL:
            exact = moments[r]
            if n >= QUICK:
                row_moments(at(x, r * n), n, &exact)
            mean[r] = exact.mean_hi + exact.mean_lo
            rstd[r] = 1 / sqrt(exact.var + eps)
        rows[r].extreme = (needs_scaling(x, moments[r].var, eps)
                           or not vector_range(x, rows[r].rstd))
        if rows[r].extreme:
            scaled_moments(at(x, r * n), 1, 0, n, eps, &rows[r].scaled)
            if mean != NULL:
                mean[r] = unscaled_mean(&rows[r].scaled)
                rstd[r] = unscaled_rstd(&rows[r].scaled)


cdef void normalize_extreme(
    const vreal *x,         # IN  (channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    vreal *y,               # OUT (channels, inner), may be x
    const Row *row,
    Py_ssize_t channels,
    Py_ssize_t inner,
) noexcept nogil:
    cdef double v
    cdef Py_ssize_t c, i
    for c in range(channels):
        for i in range(c * inner, (c + 1) * inner):
            if row.extreme:
                v = scaled_xhat(vget(x, i), &row.scaled)
            else:
                v = (vget(x, i) - row.mean_hi) * row.rstd + row.offset
            if gain != NULL:
                v = v * vget(gain, c)
            if bias != NULL:
                v = v + vget(bias, c)
            vput(y, i, v)


cdef inline void normalize_planes(
    const vreal *x,         # IN  (channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    vreal *y,               # OUT (channels, inner), may be x
    const Row *row,
    Py_ssize_t channels,
    Py_ssize_t inner,
    bint stream,            # a constant: past the cache
) noexcept nogil:
    cdef double factor, scale, offset
    cdef Py_ssize_t c, i
    for c in range(channels):
        i = c * inner
        factor = 1 if gain == NULL else vget(gain, c)
        scale = factor * row.rstd
        offset = factor * row.offset + (0 if bias == NULL else vget(bias, c))
        if not vector_range(x, scale):
            normalize_extreme(at(x, i), at_or_null(gain, c),
                              at_or_null(bias, c), at_out(y, i), row, 1, inner)
        else:
            affine_row(at(x, i), <const vreal *>NULL, <const vreal *>NULL, at_out(y, i), inner,
                       row.mean_hi, scale, offset, True,
                       False, False, stream)


cdef inline void normalize_elements(
    const vreal *x,         # IN  (n,)
    const vreal *gain,      # IN  (n,) or NULL
    const vreal *bias,      # IN  (n,) or NULL
    vreal *y,               # OUT (n,), may be x
    const Row *row,
    Py_ssize_t n,
    bint stream,            # a constant: past the cache
) noexcept nogil:
    if gain != NULL and bias != NULL:
        affine_row(x, gain, bias, y, n, row.mean_hi, row.rstd, row.offset, True, True, True, stream)
    elif gain != NULL:
        affine_row(x, gain, bias, y, n, row.mean_hi, row.rstd, row.offset, True, True, False,
                   stream)
    elif bias != NULL:
        affine_row(x, gain, bias, y, n, row.mean_hi, row.rstd, row.offset, True, False, True,
                   stream)
    else:
        affine_row(x, gain, bias, y, n, row.mean_hi, row.rstd, row.offset, True, False, False,
                   stream)


cdef inline void normalize_row(
    const vreal *x, const vreal *gain, const vreal *bias, vreal *y, const Row *row,
    Py_ssize_t channels, Py_ssize_t inner, bint stream,
) noexcept nogil:
    if row.extreme:
        normalize_extreme(x, gain, bias, y, row, channels, inner)
    elif inner == 1:
        normalize_elements(x, gain, bias, y, row, channels, stream)
    else:
        normalize_planes(x, gain, bias, y, row, channels, inner, stream)


cdef void forward_part(const vreal *x, const vreal *gain, const vreal *bias, vreal *y,
                       double *mean, double *rstd, const Layout *layout, double eps, int part,
                       int n_parts) noexcept nogil:
    """Some rows: one of n_parts equal parts."""
    cdef Row rows[GROUP]
    cdef const vreal *row_gain
    cdef const vreal *row_bias
    cdef Py_ssize_t channels = layout.channels
    cdef Py_ssize_t inner = layout.inner
    cdef Py_ssize_t n = channels * inner
    cdef Py_ssize_t n_rows = layout.samples * layout.groups
    # So few rows that they stay in L1 from their moments to their output.
    cdef Py_ssize_t size = max(1, min(GROUP, GROUP_FLOATS // n))
    cdef Py_ssize_t n_sizes = (n_rows + size - 1) // size
    cdef Py_ssize_t first = n_sizes * part // n_parts * size
    cdef Py_ssize_t stop = min(n_sizes * (part + 1) // n_parts * size, n_rows)
    cdef Py_ssize_t run = n if inner == 1 else inner
    cdef bint stream = (n_rows * n >= STREAM_FLOATS and run % (4 * lanes(x)) == 0
                        and to_boundary(y) == 0)
    cdef Py_ssize_t group = first % layout.groups
    cdef Py_ssize_t count, r, i
    while first < stop:
        count = min(size, stop - first)
        row_statistics(at(x, first * n), rows, NULL if mean == NULL else mean + first,
                       NULL if rstd == NULL else rstd + first, count, n, eps)
        for r in range(count):
            row_gain = at_or_null(gain, group * channels)
            row_bias = at_or_null(bias, group * channels)
            group += 1
            if group == layout.groups:
                group = 0
            i = (first + r) * n
            if stream:
                normalize_row(at(x, i), row_gain, row_bias, at_out(y, i), &rows[r], channels,
                              inner, True)
            else:
                normalize_row(at(x, i), row_gain, row_bias, at_out(y, i), &rows[r], channels,
                              inner, False)
        first += count
    if stream:
        vec_fence()


cdef void forward_rows(const vreal *x, const vreal *gain, const vreal *bias, vreal *y,
                       double *mean, double *rstd, Layout layout, double eps,
                       int n_threads) noexcept nogil:
    cdef int part
    if n_threads == 1:
        forward_part(x, gain, bias, y, mean, rstd, &layout, eps, 0, 1)
        return
    for part in prange(n_threads, schedule="static", num_threads=n_threads):
        forward_part(x, gain, bias, y, mean, rstd, &layout, eps, part, n_threads)


cdef int forward(object x, object gain, object bias, double eps, object y, object mean,
                 object rstd, Layout layout, int n_threads) except -1:
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
                               <vf32 *>y_data, mean_data, rstd_data, layout, eps, n_threads)
        else:
            forward_rows[vf64](<vf64 *>x_data, <vf64 *>gain_data, <vf64 *>bias_data,
                               <vf64 *>y_data, mean_data, rstd_data, layout, eps, n_threads)
    return 0


def group_norm_forward(x, Py_ssize_t groups, gain, bias, double eps, y, mean, rstd,
                       int n_threads):
    """Normalize x (samples, channels, inner) into y.

    gain, bias (channels,), and mean, rstd (samples, groups) may be None.
    """
    forward(x, gain, bias, eps, y, mean, rstd,
            Layout(dim(x, 0), groups, dim(x, 1) // groups, dim(x, 2)), n_threads)


def group_norm_plain(x, groups, gain, bias, channel_axis, eps, out, bint statistics, threads_for):
    """(y, mean, rstd), the last two None without statistics, groups None for one a channel; None
    unless every argument is plain.
    """
    cdef Layout layout
    cdef cnp.npy_intp sizes[2]
    if not (is_input(x) and is_eps(eps) and is_output(out, x)):
        return None
    layout = find_groups(x, groups, channel_axis)
    if not (layout.groups > 0 and is_parameter(gain, x, dim(x, 1))
            and is_parameter(bias, x, dim(x, 1)) and apart(out, gain, bias)):
        return None
    if gain is None and bias is None:   # a group is a plane
        layout.inner *= layout.channels
        layout.channels = 1
    elif is_short(&layout):
        return None
    y = aligned_like(x) if out is None else out
    mean = rstd = None
    if statistics:
        sizes[0] = layout.samples
        sizes[1] = layout.groups
        mean = cnp.PyArray_SimpleNew(2, sizes, cnp.NPY_FLOAT64)
        rstd = cnp.PyArray_SimpleNew(2, sizes, cnp.NPY_FLOAT64)
    forward(x, gain, bias, eps, y, mean, rstd, layout, threads_for(cnp.PyArray_SIZE(x)))
    return y, mean, rstd


# ---- one row, for a loop of others ---------------------------------------------------------------


cdef void forward_row(
    const vreal *x,         # IN  (n,)
    vreal *y,               # OUT (n,)
    Py_ssize_t n,
    const vreal **parameters,   # IN  gain, bias, the number of groups
    double eps,
    double *cache,          # OUT mean (groups,), rstd (groups,); or NULL
) noexcept nogil:
    cdef Py_ssize_t groups = <Py_ssize_t>vget(parameters[2], 0)
    cdef Layout layout = Layout(1, groups, n // groups, 1)
    forward_part(x, parameters[0], parameters[1], y, cache,
                 NULL if cache == NULL else cache + groups, &layout, eps, 0, 1)


def row_function(bint single):
    """A capsule of the function for a row of float, or else of double; norm_rows.pxd describes it.

    Its parameters are gain and bias, either of which may be NULL, and the number of groups.
    """
    return forward_capsule(<NormForward>forward_row[vf32], <NormForward>forward_row[vf64], single)


cdef void affine_only(
    const vreal *x,         # IN  (n,)
    vreal *y,               # OUT (n,)
    Py_ssize_t n,
    const vreal **parameters,   # IN  gain, bias
    double eps,
    double *cache,          # not used
) noexcept nogil:
    cdef const vreal *gain = parameters[0]
    cdef const vreal *bias = parameters[1]
    cdef vreal v
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t count
    while i < n:
        count = min(lanes(x), n - i)
        v = vload_first(at(x, i), count)
        if gain != NULL:
            v = v * vload_first(at(gain, i), count)
        if bias != NULL:
            v = v + vload_first(at(bias, i), count)
        vstore_first(at_out(y, i), v, count)
        i += count


def affine_function(bint single):
    """A capsule of x * gain + bias, rounded twice as `Normalizer.affine` does it."""
    return forward_capsule(<NormForward>affine_only[vf32], <NormForward>affine_only[vf64], single)
