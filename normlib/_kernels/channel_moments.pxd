"""Statistics of columns: sums or moments of some rows, and what is made of them.

channels.pxd tells how the loops go over memory; where they are one after the other, a caller may
take some columns alone.
"""
from libc.math cimport sqrt

from normlib._kernels.channels cimport Shape, load_doubles, store_doubles
from normlib._kernels.rows cimport (
    Merged, Moments, ScaledMoments, merged_moments, needs_scaling, scaled_moments, unscaled_mean,
    unscaled_rstd, unscaled_var,
)
from normlib._kernels.vec cimport (
    MAX_PARTS, VF64_LANES, at, lanes, vec_prefetch, vf32, vf64, vf64_set, vf64_sqrt, vfma, vget,
    vload, vload_first, vload_wide, vreal, vselect_lt, vset, vwiden,
)

cdef extern from *:
    """
    /* Vectors of columns whose two sums, in double, and shift fit the registers. */
    #define COLUMN_VECS (VEC_BYTES == 64 ? 4 : 2)
    """
    enum:
        COLUMN_VECS


cdef inline void column_sums(
    const vreal *x,         # IN  (n_rows, stride), at the first column
    const vreal *shift,     # IN  (columns,)
    double *sum_d,          # IN/OUT (columns,)
    double *sum_d2,         # IN/OUT (columns,)
    Py_ssize_t n_rows,
    Py_ssize_t stride,
    Py_ssize_t n_columns,   # at most COLUMN_VECS vectors
    bint full,              # a constant: exactly so many
) noexcept nogil:
    """float32: add some rows to the sums of d = x - shift and of d**2, in double."""
    cdef vf64 minus_shifts[COLUMN_VECS * MAX_PARTS]
    cdef vf64 acc1[COLUMN_VECS * MAX_PARTS]
    cdef vf64 acc2[COLUMN_VECS * MAX_PARTS]
    cdef vf64 parts[MAX_PARTS]
    cdef vf64 one = vf64_set(1)
    cdef vf64 d
    cdef int k, p, n_parts
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t r, i
    for k in range(COLUMN_VECS):
        n_parts = vwiden(vload(at(shift, k * width), n_columns - k * width, full), parts)
        for p in range(n_parts):
            i = k * n_parts + p
            minus_shifts[i] = -parts[p]
            acc1[i] = (<vf64 *>sum_d)[i]
            acc2[i] = (<vf64 *>sum_d2)[i]
    for r in range(n_rows):
        for k in range(COLUMN_VECS):
            # Of the rows to come: strips of columns are no pattern that the processor sees.
            vec_prefetch(at(x, (r + n_rows) * stride + k * width))
            if full:
                n_parts = vload_wide(at(x, r * stride + k * width), parts)
            else:
                n_parts = vwiden(
                    vload_first(at(x, r * stride + k * width), n_columns - k * width), parts)
            for p in range(n_parts):
                i = k * n_parts + p
                # Conversions and additions share ports that a multiplication by one leaves free.
                d = vfma(parts[p], one, minus_shifts[i])
                acc1[i] = acc1[i] + d
                acc2[i] = vfma(d, d, acc2[i])
    for i in range(COLUMN_VECS * n_parts):
        (<vf64 *>sum_d)[i] = acc1[i]
        (<vf64 *>sum_d2)[i] = acc2[i]


cdef inline void column_moments(
    const vreal *x,         # IN  (n_rows, stride), at the first column
    double *m,              # OUT (columns,) coarse mean
    double *c,              # OUT (columns,) mean - m
    double *m2,             # OUT (columns,) squared deviations from the mean
    Py_ssize_t n_rows,
    Py_ssize_t stride,
    Py_ssize_t n_columns,   # at most COLUMN_VECS vectors
    bint full,              # a constant: exactly so many
) noexcept nogil:
    """float64: the corrected two-pass formula."""
    cdef vreal center[COLUMN_VECS]
    cdef vreal acc1[COLUMN_VECS]
    cdef vreal acc2[COLUMN_VECS]
    cdef vreal d
    cdef vreal inverse = vset(1.0 / n_rows, x)
    cdef int k
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t r, i
    for k in range(COLUMN_VECS):
        center[k] = vload(at(x, k * width), n_columns - k * width, full)
        acc1[k] = vset(0, x)
    for r in range(1, n_rows):
        for k in range(COLUMN_VECS):
            d = vload(at(x, r * stride + k * width), n_columns - k * width, full) - center[k]
            acc1[k] = acc1[k] + d
    for k in range(COLUMN_VECS):
        center[k] = vfma(acc1[k], inverse, center[k])
        acc1[k] = vset(0, x)
        acc2[k] = vset(0, x)
    for r in range(n_rows):
        for k in range(COLUMN_VECS):
            d = vload(at(x, r * stride + k * width), n_columns - k * width, full) - center[k]
            acc1[k] = acc1[k] + d
            acc2[k] = vfma(d, d, acc2[k])
    for i in range(COLUMN_VECS * width):
        m[i] = vget(center, i)
        c[i] = vget(acc1, i) / n_rows
        m2[i] = vget(acc2, i) - vget(acc1, i) * c[i]


cdef inline void moments_columns(
    const vreal *x,         # IN  (n_rows, channels)
    const vreal *shift,     # IN  (channels,): the batch's first row
    double *sums,           # IN/OUT (3, padded)
    Py_ssize_t n_rows,
    Py_ssize_t channels,
    Py_ssize_t padded,
    Py_ssize_t first,
    Py_ssize_t stop,
) noexcept nogil:
    """The columns from first to stop: float32, added to the sums; float64, the moments."""
    cdef Py_ssize_t group = COLUMN_VECS * lanes(x)
    cdef Py_ssize_t c = first
    cdef Py_ssize_t n
    while c < stop:
        n = min(group, stop - c)
        if vreal is vf32:
            if n == group:
                column_sums(at(x, c), at(shift, c), sums + c, sums + padded + c, n_rows, channels,
                            group, True)
            else:
                column_sums(at(x, c), at(shift, c), sums + c, sums + padded + c, n_rows, channels,
                            n, False)
        else:
            if n == group:
                column_moments(at(x, c), sums + c, sums + padded + c, sums + 2 * padded + c, n_rows,
                               channels, group, True)
            else:
                column_moments(at(x, c), sums + c, sums + padded + c, sums + 2 * padded + c, n_rows,
                               channels, n, False)
        c += n


cdef inline void finish_vector(
    const vreal *x,         # IN  (outer, channels, inner)
    const double *sums,     # IN  (3, padded)
    double *mean,           # OUT (channels,)
    double *rest,           # OUT (channels,): what mean lacks for being a double
    double *var,            # OUT (channels,)
    double *rstd,           # OUT (channels,)
    const Shape *shape,
    Py_ssize_t padded,
    vf64 inverse,
    vf64 eps,
    Py_ssize_t first,
    Py_ssize_t n,           # channels, at most one vector of floats
    bint full,              # a constant: exactly one
) noexcept nogil:
    cdef vf64 zero = vf64_set(0)
    cdef vf64 shifts[MAX_PARTS]
    cdef vf64 m, c, v
    cdef Py_ssize_t i, left
    cdef int p
    if shape.inner == 1:
        vwiden(vload(at(x, first), n, full), shifts)
    else:
        for i in range(n):
            (<double *>shifts)[i] = vget(x, (first + i) * shape.inner)
    for p in range(lanes(x) // VF64_LANES):
        i = first + p * VF64_LANES
        left = n - p * VF64_LANES
        c = load_doubles(sums + i, left, full) * inverse
        v = vfma(load_doubles(sums + padded + i, left, full), inverse, zero - c * c)
        v = vselect_lt(v, zero, zero, v)
        m = shifts[p] + c
        store_doubles(mean + i, m, left, full)
        store_doubles(rest + i, (shifts[p] - m) + c, left, full)
        store_doubles(var + i, v, left, full)
        store_doubles(rstd + i, vf64_set(1) / vf64_sqrt(v + eps), left, full)


cdef inline void finish_channels(
    const vreal *x,         # IN  (outer, channels, inner)
    const double *sums,     # IN  (3, padded)
    double *mean,           # OUT (channels,)
    double *rest,           # OUT (channels,): what mean lacks for being a double
    double *var,            # OUT (channels,)
    double *rstd,           # OUT (channels,)
    const Shape *shape,
    Py_ssize_t padded,
    double eps,
) noexcept nogil:
    """float32: moments of the channels from their sums about their first values."""
    cdef vf64 inverse = vf64_set(1 / (<double>shape.outer * <double>shape.inner))
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t c = 0
    while c + width <= shape.channels:
        finish_vector(x, sums, mean, rest, var, rstd, shape, padded, inverse, vf64_set(eps), c,
                      width, True)
        c += width
    if c < shape.channels:
        finish_vector(x, sums, mean, rest, var, rstd, shape, padded, inverse, vf64_set(eps), c,
                      shape.channels - c, False)


cdef inline void finish_merged(
    const vreal *x,         # IN  (outer, channels, inner)
    const Merged *all,      # IN  a channel's values
    double *mean,           # OUT (channels,)
    double *rest,           # OUT (channels,): what mean lacks for being a double
    double *var,            # OUT (channels,)
    double *rstd,           # OUT (channels,)
    const Shape *shape,
    double eps,
    Py_ssize_t channel,
) noexcept nogil:
    """float64: moments of one channel."""
    cdef Moments moments
    cdef ScaledMoments scaled
    merged_moments(all, x, &moments)
    if needs_scaling(x, moments.var, 0):
        scaled_moments(at(x, channel * shape.inner), shape.outer, shape.channels * shape.inner,
                       shape.inner, eps, &scaled)
        mean[channel] = unscaled_mean(&scaled)
        rest[channel] = 0
        var[channel] = unscaled_var(&scaled)
        rstd[channel] = unscaled_rstd(&scaled)
    else:
        mean[channel] = moments.mean_hi + moments.mean_lo
        rest[channel] = (moments.mean_hi - mean[channel]) + moments.mean_lo
        var[channel] = moments.var
        rstd[channel] = 1 / sqrt(moments.var + eps)
