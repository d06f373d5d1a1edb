"""Layer normalization of rows.

Arrays come in checked: C-contiguous, of one dtype, gain and bias of that in which it is computed,
statistics in float64, at least one row and one feature.

Design
------
Rows go by groups (row_groups.pxd), all their moments first and then their output, so that the
latency of one row's sums hides behind the next row's loads. With scale = rstd and
offset = -mean_lo * rstd,

    y = fma(fma(x - mean_hi, scale, offset), gain, bias)
"""
cimport numpy as cnp
from libc.math cimport sqrt

from normlib._kernels.affine cimport affine_row
from normlib._kernels.arrays cimport dim
from normlib._kernels.norm_rows cimport NormForward, NormRows, forward_capsule, rows_capsule
from normlib._kernels.quick_moments cimport QUICK, output_moments, short_group_moments
from normlib._kernels.row_groups cimport (
    Normalization, NormalizeGroup, normalize, normalize_plain,
)
from normlib._kernels.rows cimport (
    GROUP, SHORT, Moments, ScaledMoments, needs_scaling, row_moments, scaled_moments, scaled_xhat,
    unscaled_mean, unscaled_rstd, vector_range,
)
from normlib._kernels.vec cimport (
    MAX_PARTS, MAX_WIDE_VECS, VF64_LANES, at, at_out, lanes, to_boundary, vbrain, vec_prefetch,
    vf32, vf64, vf64_set, vf64_sqrt, vfma, vget, vhalf, vnarrow, vput, vread, vreal, vset, vstored,
    vwrite,
)

cnp.import_array()


cdef inline void normalize_pair(
    const vstored *x,       # IN  (2, n)
    const vreal *gain,      # IN
    const vreal *bias,      # IN
    vstored *y,             # OUT (2, n), may be x
    Py_ssize_t n,
    const vreal *mean,      # IN  (2,)
    const vreal *scale,     # IN  (2,)
    const vreal *offset,    # IN  (2,)
    bint has_gain,
    bint has_bias,
    bint stream,            # y's rows start cache lines; past the cache with them
    Py_ssize_t ahead,       # elements to the next group's rows, prefetched if stream
) noexcept nogil:
    """Two rows, for which gain and bias are loaded once; n is a multiple of four vectors."""
    cdef vreal m0 = vset(vget(mean, 0), gain)
    cdef vreal s0 = vset(vget(scale, 0), gain)
    cdef vreal t0 = vset(vget(offset, 0), gain)
    cdef vreal m1 = vset(vget(mean, 1), gain)
    cdef vreal s1 = vset(vget(scale, 1), gain)
    cdef vreal t1 = vset(vget(offset, 1), gain)
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
            v0 = vfma(vread(at(x, j), gain) - m0, s0, t0)
            v1 = vfma(vread(at(x, n + j), gain) - m1, s1, t1)
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
            vwrite(at_out(y, j), v0, stream)
            vwrite(at_out(y, n + j), v1, stream)
        i += 2 * width


cdef inline void normalize_rows(
    const vstored *x,       # IN  (n_rows, n)
    const vreal *gain,      # IN
    const vreal *bias,      # IN
    vstored *y,             # OUT (n_rows, n), may be x
    Py_ssize_t n_rows,
    Py_ssize_t n,
    const vreal *mean,      # IN  (n_rows,)
    const vreal *scale,     # IN  (n_rows,)
    const vreal *offset,    # IN  (n_rows,)
    const bint *skip,       # IN  (n_rows,)
    bint has_gain,
    bint has_bias,
    bint stream,            # y's rows start cache lines; past the cache with them
) noexcept nogil:
    cdef Py_ssize_t r = 0
    cdef bint pairs = n % (4 * lanes(x)) == 0 and to_boundary(y) == 0
    while r < n_rows:
        if pairs and r + 1 < n_rows and not skip[r] and not skip[r + 1]:
            normalize_pair(at(x, r * n), gain, bias, at_out(y, r * n), n, at(mean, r),
                           at(scale, r), at(offset, r), has_gain, has_bias, stream, n_rows * n)
            r += 2
            continue
        if not skip[r]:
            affine_row(at(x, r * n), gain, bias, at_out(y, r * n), n, vget(mean, r), vget(scale, r),
                       vget(offset, r), True, has_gain, has_bias, stream)
        r += 1


cdef inline void normalize_rows_any(
    const vstored *x, const vreal *gain, const vreal *bias, vstored *y, Py_ssize_t n_rows,
    Py_ssize_t n, const vreal *mean, const vreal *scale, const vreal *offset,
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
    const vstored *x,       # IN
    const vreal *gain,      # IN, or NULL
    const vreal *bias,      # IN, or NULL
    vstored *y,             # OUT, may be x
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


cdef bint short_group(
    const vstored *x,       # IN  (GROUP, n)
    const vreal *gain,      # IN  (n,) or NULL
    const vreal *bias,      # IN  (n,) or NULL
    vstored *y,             # OUT (GROUP, n), may be x
    Py_ssize_t n,
    double eps,
    bint stream,
) noexcept nogil:
    """A whole group of short rows, none extreme; False, and nothing done, where quick moments fail.
    """
    cdef vf64 mean_hi[MAX_WIDE_VECS]
    cdef vf64 mean_lo[MAX_WIDE_VECS]
    cdef vf64 var[MAX_WIDE_VECS]
    cdef vf64 rstd[MAX_PARTS]
    cdef vf64 shift[MAX_PARTS]
    cdef vreal mean[MAX_WIDE_VECS]
    cdef vreal scale[MAX_WIDE_VECS]
    cdef vreal offset[MAX_WIDE_VECS]
    cdef bint skip[GROUP]
    cdef int g, p, r
    cdef int n_parts = lanes(x) // VF64_LANES
    for r in range(GROUP):
        skip[r] = False
    # Then neither var + eps nor its root leaves the range of float.
    if not (0 <= eps < 1e30 and short_group_moments(x, mean_hi, mean_lo, var, n, gain)):
        return False
    for g in range(GROUP // lanes(x)):
        for p in range(n_parts):
            r = g * n_parts + p
            rstd[p] = vf64_set(1) / vf64_sqrt(var[r] + vf64_set(eps))
            shift[p] = -mean_lo[r] * rstd[p]
        mean[g] = vnarrow(&mean_hi[g * n_parts], mean[0])
        scale[g] = vnarrow(rstd, scale[0])
        offset[g] = vnarrow(shift, offset[0])
    if stream:
        normalize_rows_any(x, gain, bias, y, GROUP, n, mean, scale, offset, skip, True)
    else:
        normalize_rows_any(x, gain, bias, y, GROUP, n, mean, scale, offset, skip, False)
    return True


cdef void forward_group(
    const vstored *x,       # IN  (n_rows, n)
    const vreal *gain,      # IN  (n,) or NULL
    const vreal *bias,      # IN  (n,) or NULL
    vstored *y,             # OUT (n_rows, n), may be x
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
    cdef vreal center[MAX_WIDE_VECS]
    cdef vreal scale[MAX_WIDE_VECS]
    cdef vreal offset[MAX_WIDE_VECS]
    cdef double factor[GROUP]
    cdef bint done[GROUP]
    cdef Py_ssize_t r
    if QUICK <= n < SHORT and n_rows == GROUP and mean == NULL:
        if short_group(x, gain, bias, y, n, eps, stream):
            return
    output_moments(x, moments, n_rows, n)
    for r in range(n_rows):
        factor[r] = 1 / sqrt(moments[r].var + eps)
        vput(center, r, moments[r].mean_hi)
        vput(scale, r, factor[r])
        vput(offset, r, -moments[r].mean_lo * factor[r])
        done[r] = False
    for r in range(n_rows):
        if mean != NULL:
            row_moments(at(x, r * n), n, &exact)
            mean[r] = exact.mean_hi + exact.mean_lo
            rstd[r] = 1 / sqrt(exact.var + eps)
        if needs_scaling(x, moments[r].var, eps) or not vector_range(x, factor[r]):
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


# ---- arrays --------------------------------------------------------------------------------------


cdef Normalization LAYER_NORM = Normalization(
    <NormalizeGroup>forward_group[vf32, vf32], <NormalizeGroup>forward_group[vf64, vf64],
    <NormalizeGroup>forward_group[vhalf, vf32], <NormalizeGroup>forward_group[vbrain, vf32], True)


def layer_norm_forward(x, residual, gain, bias, double eps, y, total, mean, rstd, int n_threads):
    """Normalize the rows of x (rows, n), or of total = x + residual, into y.

    residual and total, gain, bias, mean and rstd may be None.
    """
    normalize(&LAYER_NORM, x, residual, gain, bias, eps, y, total, mean, rstd, dim(x, 0),
              dim(x, 1), n_threads)


def layer_norm_plain(x, gain, bias, eps, out, bint statistics, threads_for):
    """layer_norm over the last axis, or (y, mean, rstd); None unless every argument is plain."""
    return normalize_plain(&LAYER_NORM, x, None, False, gain, bias, eps, out, statistics,
                           threads_for)


def add_layer_norm_plain(x, residual, gain, bias, eps, out, bint statistics, threads_for):
    """(y, x + residual) over the last axis, and mean, rstd; None unless every argument is plain."""
    return normalize_plain(&LAYER_NORM, x, residual, True, gain, bias, eps, out, statistics,
                           threads_for)


# ---- one row or a few, for a loop of others ------------------------------------------------------


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


cdef void forward_rows(
    const vreal *x,         # IN  (n_rows, n)
    vreal *y,               # OUT (n_rows, n), may be x
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t n,
    const vreal **parameters,   # IN  gain, bias
    double eps,
) noexcept nogil:
    forward_group(x, parameters[0], parameters[1], y, NULL, NULL, n_rows, n, eps, False)


def rows_function(bint single):
    """A capsule of the function for a few rows, each with the bits of ``row_function``."""
    return rows_capsule(<NormRows>forward_rows[vf32], <NormRows>forward_rows[vf64], single)
