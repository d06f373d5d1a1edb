"""Layer normalization of rows.

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), statistics in float64, at
least one row and one feature.

Design
------
A thread takes a group of rows at a time, all their moments first and then their output, so that the
latency of one row's sums hides behind the next row's loads. With scale = rstd and
offset = -mean_lo * rstd,

    y = fma(fma(x - mean_hi, scale, offset), gain, bias)

Loops over threads have a serial twin, as in all kernels: a parallel region costs 0.7 us even for
one thread.
"""
cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport sqrt

from normlib._kernels.affine cimport add_run, affine_row
from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.buffers cimport aligned_like
from normlib._kernels.halves cimport (
    Halves, is_plain_half, new_scratch, streams, vec_narrow_halves, vec_widen_halves,
)
from normlib._kernels.lines cimport MAX_HELD, Lines, close_lines, no_lines, open_lines, pass_lines
from normlib._kernels.norm_rows cimport NormForward, forward_capsule
from normlib._kernels.plain cimport (
    apart, is_eps, is_input, is_like, is_output, is_pair, is_parameter,
)
from normlib._kernels.rows cimport (
    GROUP, Moments, QUICK, ScaledMoments, needs_scaling, quick_moments, row_moments,
    scaled_moments, scaled_xhat, unscaled_mean, unscaled_rstd, vector_range,
)
from normlib._kernels.vec cimport (
    STREAM_FLOATS, at, at_out, lanes, to_boundary, vec_fence, vec_prefetch, vf32, vf64, vfma, vget,
    vput, vreal, vset, vstore,
)

cnp.import_array()

cdef enum:
    GROUP_FLOATS = 3072  # elements in a group of rows (benchmarks.thresholds)


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
    Py_ssize_t ahead,       # elements to the next group's rows, prefetched if stream
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
            if stream:
                vec_prefetch(at(x, j + ahead))
                vec_prefetch(at(x, n + j + ahead))
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
                           offset + r, has_gain, has_bias, stream, n_rows * n)
            r += 2
            continue
        if not skip[r]:
            affine_row(at(x, r * n), gain, bias, at_out(y, r * n), n, mean[r], scale[r], offset[r],
                       True, has_gain, has_bias, stream)
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
    cdef bint large = n_rows * n >= STREAM_FLOATS
    cdef bint stream = large and n % (4 * lanes(x)) == 0 and to_boundary(y) == 0
    cdef bint by_lines = large and not stream and n <= GROUP_FLOATS
    cdef double memory[GROUP_FLOATS + 2 * MAX_HELD]
    cdef vreal *buffer = at_out(<vreal *>memory, to_boundary(<vreal *>memory))
    cdef vreal *target
    cdef Lines lines
    cdef Py_ssize_t count
    no_lines(&lines)
    if by_lines:
        open_lines(&lines, at_out(y, first * n))
    while first < stop:
        count = min(group, stop - first)
        target = at_out(buffer, lines.held) if by_lines else at_out(y, first * n)
        forward_group(at(x, first * n), gain, bias, target, NULL if mean == NULL else mean + first,
                      NULL if rstd == NULL else rstd + first, count, n, eps, stream)
        if by_lines:
            pass_lines(&lines, buffer, count * n, at(x, (first + count) * n))
        first += count
    if by_lines:
        close_lines(&lines, buffer)
    elif stream:
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


cdef int forward(object x, object gain, object bias, double eps, object y, object mean,
                 object rstd, Py_ssize_t n_rows, Py_ssize_t n, int n_threads) except -1:
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
    return 0


def layer_norm_forward(x, gain, bias, double eps, y, mean, rstd, int n_threads):
    """Normalize the rows of x (rows, n) into y; gain, bias, mean and rstd may be None."""
    forward(x, gain, bias, eps, y, mean, rstd, dim(x, 0), dim(x, 1), n_threads)


def layer_norm_plain(x, gain, bias, eps, out, bint statistics, threads_for):
    """layer_norm over the last axis, or (y, mean, rstd); None unless every argument is plain.

    threads_for(elements) tells how many threads to use.
    """
    cdef bint half = is_plain_half(x, gain, bias, eps, out)
    if not half and not (is_input(x) and is_eps(eps)):
        return None
    cdef int n_axes = cnp.PyArray_NDIM(x)
    cdef Py_ssize_t n = dim(x, n_axes - 1)
    cdef Py_ssize_t n_rows = cnp.PyArray_SIZE(x) // n
    if not half and not (is_parameter(gain, x, n) and is_parameter(bias, x, n)
                         and is_output(out, x) and apart(out, gain, bias)):
        return None
    y = aligned_like(x) if out is None else out
    mean = rstd = None
    if statistics:
        mean = cnp.PyArray_SimpleNew(n_axes - 1, cnp.PyArray_DIMS(x), cnp.NPY_FLOAT64)
        rstd = cnp.PyArray_SimpleNew(n_axes - 1, cnp.PyArray_DIMS(x), cnp.NPY_FLOAT64)
    if half:
        half_forward(x, gain, bias, eps, y, mean, rstd, n_rows, n, threads_for(n_rows * n))
    else:
        forward(x, gain, bias, eps, y, mean, rstd, n_rows, n, threads_for(n_rows * n))
    return (y, mean, rstd) if statistics else y


# ---- with a residual added first -----------------------------------------------------------------


cdef void add_part(const vreal *x, const vreal *residual, const vreal *gain, const vreal *bias,
                   vreal *y, vreal *total, double *mean, double *rstd, Py_ssize_t n_rows,
                   Py_ssize_t n, double eps, int part, int n_parts) noexcept nogil:
    """The groups of one of n_parts equal parts of total = x + residual, and of y."""
    # Where total goes past the cache, its group stays here until it is normalized.
    cdef double buffer[GROUP_FLOATS]
    cdef vreal *near = <vreal *>buffer
    cdef const vreal *source
    cdef Py_ssize_t group = max(1, min(GROUP, GROUP_FLOATS // n))
    cdef Py_ssize_t n_groups = (n_rows + group - 1) // group
    cdef Py_ssize_t first = n_groups * part // n_parts * group
    cdef Py_ssize_t stop = min(n_groups * (part + 1) // n_parts * group, n_rows)
    cdef bint large = n_rows * n >= STREAM_FLOATS and n % (4 * lanes(x)) == 0
    cdef bint stream = large and to_boundary(y) == 0
    cdef bint stream_total = large and to_boundary(total) == 0 and n <= GROUP_FLOATS
    cdef Py_ssize_t count, i
    while first < stop:
        count = min(group, stop - first)
        i = first * n
        if stream_total:
            add_run(at(x, i), at(residual, i), near, at_out(total, i), count * n, True)
            source = near
        else:
            add_run(at(x, i), at(residual, i), at_out(total, i), NULL, count * n, False)
            source = at(total, i)
        forward_group(source, gain, bias, at_out(y, i), NULL if mean == NULL else mean + first,
                      NULL if rstd == NULL else rstd + first, count, n, eps, stream)
        first += group
    if stream or stream_total:
        vec_fence()


cdef void add_rows(const vreal *x, const vreal *residual, const vreal *gain, const vreal *bias,
                   vreal *y, vreal *total, double *mean, double *rstd, Py_ssize_t n_rows,
                   Py_ssize_t n, double eps, int n_threads) noexcept nogil:
    cdef int part
    if n_threads == 1:
        add_part(x, residual, gain, bias, y, total, mean, rstd, n_rows, n, eps, 0, 1)
        return
    for part in prange(n_threads, schedule="static", num_threads=n_threads):
        add_part(x, residual, gain, bias, y, total, mean, rstd, n_rows, n, eps, part, n_threads)


cdef int run_add(object x, object residual, object gain, object bias, object y,
                 object total, object mean, object rstd, Py_ssize_t n_rows,
                 Py_ssize_t n, double eps, int n_threads) except -1:
    cdef void *x_data = address(x)
    cdef void *residual_data = address(residual)
    cdef void *gain_data = address(gain)
    cdef void *bias_data = address(bias)
    cdef void *y_data = address(y)
    cdef void *total_data = address(total)
    cdef double *mean_data = <double *>address(mean)
    cdef double *rstd_data = <double *>address(rstd)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            add_rows[vf32](<vf32 *>x_data, <vf32 *>residual_data, <vf32 *>gain_data,
                           <vf32 *>bias_data, <vf32 *>y_data, <vf32 *>total_data,
                           mean_data, rstd_data, n_rows, n, eps, n_threads)
        else:
            add_rows[vf64](<vf64 *>x_data, <vf64 *>residual_data, <vf64 *>gain_data,
                           <vf64 *>bias_data, <vf64 *>y_data, <vf64 *>total_data,
                           mean_data, rstd_data, n_rows, n, eps, n_threads)
    return 0


def add_layer_norm_forward(x, residual, gain, bias, double eps, y, total, mean, rstd,
                           int n_threads):
    """total = x + residual (rows, n), and its rows normalized into y."""
    run_add(x, residual, gain, bias, y, total, mean, rstd, dim(x, 0), dim(x, 1), eps, n_threads)


def add_layer_norm_plain(x, residual, gain, bias, eps, out, bint statistics, threads_for):
    """(y, x + residual) over the last axis, and mean, rstd; None unless every argument is plain."""
    if not (is_input(x) and is_like(residual, x) and is_eps(eps)):
        return None
    cdef int n_axes = cnp.PyArray_NDIM(x)
    cdef Py_ssize_t n = dim(x, n_axes - 1)
    cdef Py_ssize_t n_rows = cnp.PyArray_SIZE(x) // n
    if not (is_parameter(gain, x, n) and is_parameter(bias, x, n)
            and is_pair(out, x, residual, gain, bias)):
        return None
    y, total = (aligned_like(x), aligned_like(x)) if out is None else out
    mean = rstd = None
    if statistics:
        mean = cnp.PyArray_SimpleNew(n_axes - 1, cnp.PyArray_DIMS(x), cnp.NPY_FLOAT64)
        rstd = cnp.PyArray_SimpleNew(n_axes - 1, cnp.PyArray_DIMS(x), cnp.NPY_FLOAT64)
    run_add(x, residual, gain, bias, y, total, mean, rstd, n_rows, n, eps,
            threads_for(n_rows * n))
    return (y, total, mean, rstd) if statistics else (y, total)


# ---- half types ----------------------------------------------------------------------------------


cdef void half_part(const Halves *halves, const vf32 *gain, const vf32 *bias, double *mean,
                    double *rstd, Py_ssize_t n_rows, Py_ssize_t n, double eps, int part,
                    int n_parts) noexcept nogil:
    """The groups of one of n_parts equal parts."""
    cdef float *near = halves.scratch + part * halves.scratch_size
    cdef Py_ssize_t group = max(1, min(GROUP, GROUP_FLOATS // n))
    cdef Py_ssize_t n_groups = (n_rows + group - 1) // group
    cdef Py_ssize_t first = n_groups * part // n_parts * group
    cdef Py_ssize_t stop = min(n_groups * (part + 1) // n_parts * group, n_rows)
    cdef bint stream = streams(halves, n_rows, n)
    cdef Py_ssize_t count
    while first < stop:
        count = min(group, stop - first)
        vec_widen_halves(halves.x + first * n, near, count * n, halves.brain)
        forward_group(<const vf32 *>near, gain, bias, <vf32 *>near,
                      NULL if mean == NULL else mean + first,
                      NULL if rstd == NULL else rstd + first, count, n, eps, False)
        vec_narrow_halves(near, halves.y + first * n, count * n, halves.brain, stream)
        first += group
    if stream:
        vec_fence()


cdef void half_rows(Halves halves, const vf32 *gain, const vf32 *bias, double *mean,
                    double *rstd, Py_ssize_t n_rows, Py_ssize_t n, double eps,
                    int n_threads) noexcept nogil:
    cdef int part
    if n_threads == 1:
        half_part(&halves, gain, bias, mean, rstd, n_rows, n, eps, 0, 1)
        return
    for part in prange(n_threads, schedule="static", num_threads=n_threads):
        half_part(&halves, gain, bias, mean, rstd, n_rows, n, eps, part, n_threads)


cdef int half_forward(object x, object gain, object bias, double eps, object y, object mean,
                      object rstd, Py_ssize_t n_rows, Py_ssize_t n, int n_threads) except -1:
    cdef Halves halves
    _memory = new_scratch(&halves, x, y, max(<Py_ssize_t>GROUP_FLOATS, n), n_threads)
    cdef void *gain_data = address(gain)
    cdef void *bias_data = address(bias)
    cdef double *mean_data = <double *>address(mean)
    cdef double *rstd_data = <double *>address(rstd)
    with nogil:
        half_rows(halves, <vf32 *>gain_data, <vf32 *>bias_data, mean_data, rstd_data, n_rows, n,
                  eps, n_threads)
    return 0


def layer_norm_half(x, gain, bias, double eps, y, mean, rstd, int n_threads):
    """Rows of a half type; gain and bias in float32."""
    half_forward(x, gain, bias, eps, y, mean, rstd, dim(x, 0), dim(x, 1), n_threads)


# ---- one row, for a loop of others ---------------------------------------------------------------


cdef void forward_row(
    const vreal *x,         # IN  (n,)
    vreal *y,               # OUT (n,)
    Py_ssize_t n,
    const vreal **parameters,   # IN  gain, bias
    double eps,
    double *cache,          # OUT mean, rstd; or NULL
) noexcept nogil:
    forward_group(x, parameters[0], parameters[1], y, cache, NULL if cache == NULL else cache + 1,
                  1, n, eps, False)


def row_function(bint single):
    """A capsule of the function for a row of float, or else of double; norm_rows.pxd describes it.

    Its parameters are gain and bias, either of which may be NULL.
    """
    return forward_capsule(<NormForward>forward_row[vf32], <NormForward>forward_row[vf64], single)
