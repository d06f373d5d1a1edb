"""Statistics of the channels of a batch.

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), no axis empty; statistics
in float64. channels.pxd tells how the loops go over memory.
"""
cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport sqrt

from normlib._kernels.arrays cimport address, is_single
from normlib._kernels.channels cimport (
    PANEL, Shape, add_blocks, block_size, clear_sums, items_per_block, load_doubles, n_blocks,
    n_items, padded_channels, scratch_size, store_doubles,
)
from normlib._kernels.plain cimport new_vector
from normlib._kernels.rows cimport (
    Merged, Moments, ScaledMoments, merge, merge_none, merge_row, merged_moments, needs_scaling,
    scaled_moments, sums_wide, unscaled_mean, unscaled_rstd, unscaled_var,
)
from normlib._kernels.vec cimport (
    MAX_PARTS, VF64_LANES, at, lanes, vec_prefetch, vf32, vf64, vf64_set, vf64_sqrt, vfma, vget,
    vload, vload_first, vload_wide, vreal, vselect_lt, vset, vwiden,
)

cnp.import_array()

cdef enum:
    CHUNK_ROWS = 8       # rows of columns that are summed together, at least
    CHUNK = 32768        # elements of rows that are, if there are more

cdef extern from *:
    """
    /* Vectors of columns whose two sums, in double, and shift fit the registers. */
    #define COLUMN_VECS (VEC_BYTES == 64 ? 4 : 2)
    """
    enum:
        COLUMN_VECS


def scratch_shape(Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner):
    """Shape of the float64 scratch that statistics and gradients need: blocks, sums, channels."""
    cdef Shape shape = Shape(outer, channels, inner)
    return n_blocks(&shape), 3, padded_channels(&shape)


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


cdef void moments_item(
    const vreal *x,         # IN  (outer, channels, inner)
    double *scratch,        # OUT (blocks, 3, padded): float32, the two sums about the channel's
                            # first value; float64, the moments m + c and m2
    const Shape *shape,
    Py_ssize_t padded,
    Py_ssize_t item,
) noexcept nogil:
    cdef Py_ssize_t size = block_size(shape)
    cdef Py_ssize_t block = item // items_per_block(shape)
    cdef Py_ssize_t channel = item % items_per_block(shape)
    cdef Py_ssize_t n_rows, rows, first, stop, r, o, i
    cdef const vreal *batch = x
    cdef double *out = scratch + 3 * block * padded
    cdef double sum_d, sum_d2
    cdef Merged all
    cdef Moments moments
    if shape.inner == 1:
        first = channel * PANEL
        stop = min(first + PANEL, shape.channels)
        n_rows = min(size, shape.outer - block * size)
        x = at(x, block * size * shape.channels)
        if vreal is vf32:
            clear_sums(out, out + padded, first, min(first + PANEL, padded))
            rows = max(CHUNK_ROWS, CHUNK // shape.channels)
            r = 0
            while r < n_rows:
                moments_columns(at(x, r * shape.channels), batch, out, min(rows, n_rows - r),
                                shape.channels, padded, first, stop)
                r += rows
        else:
            moments_columns(x, batch, out, n_rows, shape.channels, padded, first, stop)
        return
    merge_none(&all)
    out[channel] = 0
    out[padded + channel] = 0
    for o in range(block * size, min((block + 1) * size, shape.outer)):
        i = (o * shape.channels + channel) * shape.inner
        if vreal is vf32:
            sums_wide(at(x, i), shape.inner, vget(x, channel * shape.inner), &sum_d, &sum_d2)
            out[channel] += sum_d
            out[padded + channel] += sum_d2
        else:
            merge_row(&all, at(x, i), shape.inner)
    if vreal is vf64:
        merged_moments(&all, x, &moments)
        out[channel] = moments.mean_hi
        out[padded + channel] = moments.mean_lo
        out[2 * padded + channel] = all.m2


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


cdef void finish_channels(
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


cdef void merge_channel(
    const vreal *x,         # IN  (outer, channels, inner)
    const double *scratch,  # IN  (blocks, 3, padded)
    double *mean,           # OUT
    double *rest,           # OUT: what mean lacks for being a double
    double *var,            # OUT
    double *rstd,           # OUT
    const Shape *shape,
    Py_ssize_t padded,
    double eps,
    Py_ssize_t channel,
) noexcept nogil:
    cdef Merged all
    cdef Moments moments
    cdef ScaledMoments scaled
    cdef const double *block
    cdef Py_ssize_t size = block_size(shape)
    cdef Py_ssize_t b
    # float64: blocks merged in their order.
    merge_none(&all)
    for b in range(n_blocks(shape)):
        block = scratch + 3 * b * padded + channel
        merge(&all, <double>(min(size, shape.outer - b * size) * shape.inner),
              block[0], block[padded], block[2 * padded])
    merged_moments(&all, x, &moments)
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


cdef void moments_all(const vreal *x, double *scratch, double *mean, double *rest, double *var,
                      double *rstd, Shape shape, Py_ssize_t padded, double eps,
                      int n_threads) noexcept nogil:
    cdef Py_ssize_t i
    if n_threads == 1:
        for i in range(n_items(&shape)):
            moments_item(x, scratch, &shape, padded, i)
    else:
        for i in prange(n_items(&shape), schedule="static", num_threads=n_threads):
            moments_item(x, scratch, &shape, padded, i)
    if vreal is vf32:
        add_blocks(scratch, &shape, padded)
        finish_channels(x, scratch, mean, rest, var, rstd, &shape, padded, eps)
    elif n_threads == 1:
        for i in range(shape.channels):
            merge_channel(x, scratch, mean, rest, var, rstd, &shape, padded, eps, i)
    else:
        for i in prange(shape.channels, schedule="static", num_threads=n_threads):
            merge_channel(x, scratch, mean, rest, var, rstd, &shape, padded, eps, i)


def batch_moments(x, Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner, double eps,
                  int n_threads):
    """(mean, rest, var, rstd), each (C,), of x seen as (outer, C, inner).

    mean + rest is the mean, var biased, rstd = 1 / sqrt(var + eps).
    """
    cdef Shape shape = Shape(outer, channels, inner)
    mean = new_vector(channels, cnp.NPY_FLOAT64)
    rest = new_vector(channels, cnp.NPY_FLOAT64)
    var = new_vector(channels, cnp.NPY_FLOAT64)
    rstd = new_vector(channels, cnp.NPY_FLOAT64)
    scratch = new_vector(scratch_size(&shape), cnp.NPY_FLOAT64)
    cdef Py_ssize_t padded = padded_channels(&shape)
    cdef void *x_data = address(x)
    cdef double *scratch_data = <double *>address(scratch)
    cdef double *mean_data = <double *>address(mean)
    cdef double *rest_data = <double *>address(rest)
    cdef double *var_data = <double *>address(var)
    cdef double *rstd_data = <double *>address(rstd)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            moments_all[vf32](<vf32 *>x_data, scratch_data, mean_data, rest_data, var_data,
                              rstd_data, shape, padded, eps, n_threads)
        else:
            moments_all[vf64](<vf64 *>x_data, scratch_data, mean_data, rest_data, var_data,
                              rstd_data, shape, padded, eps, n_threads)
    return mean, rest, var, rstd
