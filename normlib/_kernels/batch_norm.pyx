"""Batch normalization of views (outer, C, inner): statistics per channel over the other two axes.

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), no axis empty; statistics
in float64.

Design
------
Two memory orders, and so two loops for each step. Where inner is 1 the channels lie side by side,
and a vector holds neighbouring channels ("columns"); else a vector holds neighbours of one channel
("planes", each a contiguous run of inner elements).

Sums over the batch run in blocks, of a size that only the shape decides, any thread taking any
block; each block leaves its result in scratch, and blocks are merged in their order. float32
statistics are sums in double about each channel's first value, which blocks just add; float64 ones
those of rows.pxd, merged by Chan's formula. Sums of gradients are folded into double after FOLD
steps.

With scale = gain * rstd and offset = bias - mean_lo * scale, the output is
fma(x - mean_hi, scale, offset). A channel whose scale is beyond the range of its type is done in
double.
"""
from cython.parallel cimport prange
from libc.math cimport fabs, sqrt

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.rows cimport (
    FOLD, Merged, Moments, ScaledMoments, merge, merge_none, merge_row, merged_moments,
    needs_scaling, scaled_moments, sums_wide, unscaled_mean, unscaled_rstd, unscaled_var,
    vector_range,
)
from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_PARTS, MAX_WIDE_VECS, VF64_LANES, vf32, vf64, vf64_set, vf64_sqrt,
    vreal,
    at, at_out, block_vecs, lanes, vadd_to, vfirst, vfma, vfold, vget, vload, vload_first,
    vload_wide, vnarrow, vput, vselect_lt, vset, vstore_first, vsum_wide, vwiden,
)

cdef extern from *:
    """
    /* Vectors of columns whose two sums, in double, and shift fit the registers. */
    #define COLUMN_VECS (VEC_BYTES == 64 ? 4 : 2)
    """
    enum:
        COLUMN_VECS

cdef enum:
    ROWS = 64            # rows in a block of the column loops, at least
    PLANES = 16          # planes in a block of the plane loops, at least
    BLOCK_ELEMENTS = 4096
    OUTER = 8            # rows of columns that are normalized together
    STRIP = 64           # columns of a work item; a block of floats, two of doubles


cdef struct Shape:
    Py_ssize_t outer
    Py_ssize_t channels
    Py_ssize_t inner


cdef inline Py_ssize_t block_size(const Shape *shape) noexcept nogil:
    """Rows, or planes, in a block: more of short ones, lest the scratch outgrow the input."""
    if shape.inner == 1:
        return max(ROWS, BLOCK_ELEMENTS // shape.channels)
    return max(PLANES, BLOCK_ELEMENTS // shape.inner)


cdef inline Py_ssize_t n_blocks(const Shape *shape) noexcept nogil:
    return (shape.outer + block_size(shape) - 1) // block_size(shape)


cdef inline Py_ssize_t n_columns(const Shape *shape) noexcept nogil:
    """Work items in a block: strips of columns, or channels."""
    if shape.inner == 1:
        return (shape.channels + STRIP - 1) // STRIP
    return shape.channels


cdef inline Py_ssize_t n_items(const Shape *shape) noexcept nogil:
    """Work items; those of a block follow each other, as in memory."""
    return n_blocks(shape) * n_columns(shape)


def scratch_shape(Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner):
    """Shape of the float64 scratch that statistics and gradients need: blocks, sums, channels."""
    cdef Shape shape = Shape(outer, channels, inner)
    return n_blocks(&shape), 3, n_columns(&shape) * (STRIP if inner == 1 else 1)


# ---- statistics ----------------------------------------------------------------------------------


cdef inline void column_sums(
    const vreal *x,         # IN  (n_rows, stride), at the first column
    const vreal *shift,     # IN  (columns,)
    double *sum_d,          # OUT (columns,)
    double *sum_d2,         # OUT (columns,)
    Py_ssize_t n_rows,
    Py_ssize_t stride,
    Py_ssize_t n_columns,   # at most COLUMN_VECS vectors
    bint full,              # a constant: exactly so many
) noexcept nogil:
    """float32: sums of d = x - shift and of d**2, in double."""
    cdef vf64 shifts[COLUMN_VECS * MAX_PARTS]
    cdef vf64 acc1[COLUMN_VECS * MAX_PARTS]
    cdef vf64 acc2[COLUMN_VECS * MAX_PARTS]
    cdef vf64 parts[MAX_PARTS]
    cdef vf64 d
    cdef int k, p, n_parts
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t r, i
    for k in range(COLUMN_VECS):
        n_parts = vwiden(vload(at(shift, k * width), n_columns - k * width, full), parts)
        for p in range(n_parts):
            shifts[k * n_parts + p] = parts[p]
            acc1[k * n_parts + p] = vf64_set(0)
            acc2[k * n_parts + p] = vf64_set(0)
    for r in range(n_rows):
        for k in range(COLUMN_VECS):
            if full:
                n_parts = vload_wide(at(x, r * stride + k * width), parts)
            else:
                n_parts = vwiden(
                    vload_first(at(x, r * stride + k * width), n_columns - k * width), parts)
            for p in range(n_parts):
                i = k * n_parts + p
                d = parts[p] - shifts[i]
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


cdef inline void column_item(
    const vreal *x,         # IN  (n_rows, channels), at the first column
    const vreal *shift,     # IN  (n_columns,): the batch's first row
    double *out,            # OUT (3, padded), at the first column
    Py_ssize_t n_rows,
    Py_ssize_t channels,
    Py_ssize_t n_columns,
    Py_ssize_t padded,
    bint full,              # a constant
) noexcept nogil:
    if vreal is vf32:
        column_sums(x, shift, out, out + padded, n_rows, channels, n_columns, full)
    else:
        column_moments(x, out, out + padded, out + 2 * padded, n_rows, channels, n_columns, full)


cdef void moments_item(
    const vreal *x,         # IN  (outer, channels, inner)
    double *scratch,        # OUT (blocks, 3, padded): float32, the two sums about the channel's
                            # first value; float64, the moments m + c and m2
    const Shape *shape,
    Py_ssize_t padded,
    Py_ssize_t item,
) noexcept nogil:
    cdef Py_ssize_t size = block_size(shape)
    cdef Py_ssize_t block = item // n_columns(shape)
    cdef Py_ssize_t channel = item % n_columns(shape)
    cdef Py_ssize_t group = COLUMN_VECS * lanes(x)
    cdef Py_ssize_t n_rows, first, stop, o, i
    cdef const vreal *columns
    cdef double *out = scratch + 3 * block * padded
    cdef double sum_d, sum_d2
    cdef Merged all
    cdef Moments moments
    if shape.inner == 1:
        n_rows = min(size, shape.outer - block * size)
        first = channel * STRIP
        stop = min((channel + 1) * STRIP, shape.channels)
        while first < stop:
            columns = at(x, block * size * shape.channels + first)
            if first + group <= stop:
                column_item(columns, at(x, first), out + first, n_rows, shape.channels, group,
                            padded, True)
            else:
                column_item(columns, at(x, first), out + first, n_rows, shape.channels,
                            stop - first, padded, False)
            first += group
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


cdef inline void add_blocks(
    double *scratch,        # IN/OUT (blocks, 3, padded): the first block becomes the sum of all
    const Shape *shape,
    Py_ssize_t padded,
) noexcept nogil:
    cdef const double *block
    cdef Py_ssize_t b, c
    for b in range(1, n_blocks(shape)):
        block = scratch + 3 * b * padded
        for c in range(2 * padded):
            scratch[c] += block[c]


cdef inline vf64 load_doubles(const double *array, Py_ssize_t n) noexcept nogil:
    return vload_first(<const vf64 *>array, n)


cdef inline void store_doubles(double *array, vf64 v, Py_ssize_t n) noexcept nogil:
    vstore_first(<vf64 *>array, v, n)


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
    cdef vf64 zero = vf64_set(0)
    cdef double shifts[VF64_LANES]
    cdef vf64 shift, c, m, v
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t n, i
    while first < shape.channels:
        n = min(<Py_ssize_t>VF64_LANES, shape.channels - first)
        for i in range(n):
            shifts[i] = vget(x, (first + i) * shape.inner)
        shift = load_doubles(shifts, n)
        c = load_doubles(sums + first, n) * inverse
        v = vfma(load_doubles(sums + padded + first, n), inverse, zero - c * c)
        v = vselect_lt(v, zero, zero, v)
        m = shift + c
        store_doubles(mean + first, m, n)
        store_doubles(rest + first, (shift - m) + c, n)
        store_doubles(var + first, v, n)
        store_doubles(rstd + first, vf64_set(1) / vf64_sqrt(v + vf64_set(eps)), n)
        first += VF64_LANES


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


def batch_moments(x, scratch, mean, rest, var, rstd, double eps, int n_threads):
    """Statistics (C,) of x (outer, C, inner): mean + rest, biased variance, 1 / sqrt(var + eps)."""
    cdef Shape shape = Shape(dim(x, 0), dim(x, 1), dim(x, 2))
    cdef Py_ssize_t padded = dim(scratch, 2)
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


# ---- normalization -------------------------------------------------------------------------------


cdef struct Statistics:     # each (channels,)
    const double *mean
    const double *rest      # or NULL for 0
    const double *rstd


cdef inline double rest_of(const Statistics *statistics, Py_ssize_t c) noexcept nogil:
    return 0 if statistics.rest == NULL else statistics.rest[c]


cdef inline double gain_of(const vreal *gain, Py_ssize_t c) noexcept nogil:
    return 1 if gain == NULL else vget(gain, c)


cdef inline bint beyond(const vreal *x, const vreal *gain, const Statistics *statistics,
                        Py_ssize_t c) noexcept nogil:
    """Whether channel c must be done in double."""
    cdef double rstd = statistics.rstd[c]
    return not (vector_range(x, rstd) and vector_range(x, gain_of(gain, c) * rstd))


cdef inline void scale_channels(
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    vreal *mean_hi,         # OUT (channels,)
    vreal *scale,           # OUT (channels,): gain * rstd
    vreal *offset,          # OUT (channels,): bias - mean_lo * scale
    const Statistics *statistics,
    Py_ssize_t channels,
) noexcept nogil:
    cdef vf64 gains[MAX_PARTS]
    cdef vf64 biases[MAX_PARTS]
    cdef vf64 means[MAX_PARTS]
    cdef vf64 highs[MAX_PARTS]
    cdef vf64 scales[MAX_PARTS]
    cdef vf64 offsets[MAX_PARTS]
    cdef vf64 low
    cdef vreal high
    cdef int p, n_parts
    cdef Py_ssize_t width = lanes(mean_hi)
    cdef Py_ssize_t c = 0
    cdef Py_ssize_t n, i
    while c < channels:
        n = min(width, channels - c)
        n_parts = vwiden(vset(1, mean_hi) if gain == NULL else vload_first(at(gain, c), n), gains)
        vwiden(vset(0, mean_hi) if bias == NULL else vload_first(at(bias, c), n), biases)
        for p in range(n_parts):
            i = c + p * VF64_LANES
            means[p] = load_doubles(statistics.mean + i, channels - i)
            scales[p] = gains[p] * load_doubles(statistics.rstd + i, channels - i)
        high = vnarrow(means, vset(0, mean_hi))
        vwiden(high, highs)
        for p in range(n_parts):
            i = c + p * VF64_LANES
            low = means[p] - highs[p]
            if statistics.rest != NULL:
                low = low + load_doubles(statistics.rest + i, channels - i)
            offsets[p] = biases[p] - low * scales[p]
        vstore_first(at_out(mean_hi, c), high, n)
        vstore_first(at_out(scale, c), vnarrow(scales, high), n)
        vstore_first(at_out(offset, c), vnarrow(offsets, high), n)
        c += width


cdef inline void find_doubles(
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *scale,     # IN  (channels,)
    Py_ssize_t *doubles,    # OUT (channels + 1,): the channels beyond vector range, then channels
    const Statistics *statistics,
    Py_ssize_t channels,
) noexcept nogil:
    cdef double size, rstd
    cdef Py_ssize_t suspects = 0
    cdef Py_ssize_t n = 0
    cdef Py_ssize_t c
    for c in range(channels):
        size = fabs(vget(scale, c))
        rstd = statistics.rstd[c]
        suspects += 1 - ((size > 1e-30) & (size < 1e30) & (rstd > 1e-30) & (rstd < 1e30))
    if suspects > 0:
        for c in range(channels):
            if beyond(scale, gain, statistics, c):
                doubles[n] = c
                n += 1
    doubles[n] = channels


cdef inline void normalize_double(
    const vreal *x,         # IN
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    vreal *y,               # OUT, may be x
    Py_ssize_t n,
    const Statistics *statistics,
    Py_ssize_t c,
) noexcept nogil:
    """n neighbours of channel c."""
    cdef double v
    cdef Py_ssize_t i
    for i in range(n):
        v = ((vget(x, i) - statistics.mean[c]) - rest_of(statistics, c)) * statistics.rstd[c]
        v = v * gain_of(gain, c)
        if bias != NULL:
            v += vget(bias, c)
        vput(y, i, v)


cdef inline void normalize_columns(
    const vreal *x,         # IN  a row
    const vreal *factors,   # IN  (3, channels)
    vreal *y,               # OUT a row, may be x
    Py_ssize_t channels,
    Py_ssize_t first,
    Py_ssize_t stop,
) noexcept nogil:
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t c = first
    cdef Py_ssize_t left
    while c + width <= stop:
        at_out(y, c)[0] = vfma(at(x, c)[0] - at(factors, c)[0], at(factors, channels + c)[0],
                               at(factors, 2 * channels + c)[0])
        c += width
    left = stop - c
    if left > 0:
        vstore_first(at_out(y, c),
                     vfma(vload_first(at(x, c), left) - vload_first(at(factors, c), left),
                          vload_first(at(factors, channels + c), left),
                          vload_first(at(factors, 2 * channels + c), left)), left)


cdef inline void normalize_plane(
    const vreal *x,         # IN  (n,)
    vreal *y,               # OUT (n,), may be x
    Py_ssize_t n,
    double mean,
    double scale,
    double offset,
) noexcept nogil:
    cdef vreal m = vset(mean, x)
    cdef vreal s = vset(scale, x)
    cdef vreal t = vset(offset, x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    while i + width <= n:
        at_out(y, i)[0] = vfma(at(x, i)[0] - m, s, t)
        i += width
    if i < n:
        vstore_first(at_out(y, i), vfma(vload_first(at(x, i), n - i) - m, s, t), n - i)


cdef void normalize_item(
    const vreal *x,         # IN  (outer, channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    const vreal *factors,   # IN  (3, channels)
    const Py_ssize_t *doubles,  # IN, ended by channels
    vreal *y,               # OUT (outer, channels, inner), may be x
    const Shape *shape,
    const Statistics *statistics,
    Py_ssize_t o,
) noexcept nogil:
    cdef Py_ssize_t row = o * shape.channels * shape.inner
    cdef Py_ssize_t i, c
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t d = 0
    if shape.inner == 1:
        while first <= shape.channels:
            c = doubles[d]
            normalize_columns(at(x, row), factors, at_out(y, row), shape.channels, first, c)
            if c < shape.channels:
                normalize_double(at(x, row + c), gain, bias, at_out(y, row + c), 1, statistics, c)
            first = c + 1
            d += 1
        return
    for c in range(shape.channels):
        i = row + c * shape.inner
        if c == doubles[d]:
            normalize_double(at(x, i), gain, bias, at_out(y, i), shape.inner, statistics, c)
            d += 1
        else:
            normalize_plane(at(x, i), at_out(y, i), shape.inner, vget(factors, c),
                            vget(factors, shape.channels + c),
                            vget(factors, 2 * shape.channels + c))


cdef void normalize_all(const vreal *x, const vreal *gain, const vreal *bias, vreal *factors,
                        Py_ssize_t *doubles, vreal *y, Shape shape, Statistics statistics,
                        int n_threads) noexcept nogil:
    cdef Py_ssize_t o
    scale_channels(gain, bias, factors, at_out(factors, shape.channels),
                   at_out(factors, 2 * shape.channels), &statistics, shape.channels)
    find_doubles(gain, at(factors, shape.channels), doubles, &statistics, shape.channels)
    if n_threads == 1:
        for o in range(shape.outer):
            normalize_item(x, gain, bias, factors, doubles, y, &shape, &statistics, o)
    else:
        for o in prange(shape.outer, schedule="static", num_threads=n_threads):
            normalize_item(x, gain, bias, factors, doubles, y, &shape, &statistics, o)


def reciprocal_std(var, rstd, double eps):
    """rstd = 1 / sqrt(var + eps), both (C,); the first negative variance's index, or -1."""
    cdef const double *var_data = <double *>address(var)
    cdef double *rstd_data = <double *>address(rstd)
    cdef Py_ssize_t channels = dim(var, 0)
    cdef vf64 zero = vf64_set(0)
    cdef vf64 negative = zero
    cdef vf64 v
    cdef Py_ssize_t c = 0
    while c < channels:
        v = load_doubles(var_data + c, channels - c)
        negative = vselect_lt(v, zero, v, negative)
        store_doubles(rstd_data + c, vf64_set(1) / vf64_sqrt(v + vf64_set(eps)), channels - c)
        c += VF64_LANES
    for c in range(VF64_LANES):
        if vget(&negative, c) < 0:
            return next(i for i, value in enumerate(var) if value < 0)
    return -1


def batch_norm_forward(x, mean, rest, rstd, gain, bias, factors, doubles, y, int n_threads):
    """Normalize x (outer, C, inner) by given statistics (C,) into y.

    rest, gain and bias may be None; factors (3, C) of x's type and doubles (C + 1) of intp are
    scratch.
    """
    cdef Shape shape = Shape(dim(x, 0), dim(x, 1), dim(x, 2))
    cdef Statistics statistics = Statistics(
        <double *>address(mean), <double *>address(rest), <double *>address(rstd))
    cdef void *x_data = address(x)
    cdef void *gain_data = address(gain)
    cdef void *bias_data = address(bias)
    cdef void *factors_data = address(factors)
    cdef Py_ssize_t *doubles_data = <Py_ssize_t *>address(doubles)
    cdef void *y_data = address(y)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            normalize_all[vf32](<vf32 *>x_data, <vf32 *>gain_data, <vf32 *>bias_data,
                                <vf32 *>factors_data, doubles_data, <vf32 *>y_data, shape,
                                statistics, n_threads)
        else:
            normalize_all[vf64](<vf64 *>x_data, <vf64 *>gain_data, <vf64 *>bias_data,
                                <vf64 *>factors_data, doubles_data, <vf64 *>y_data, shape,
                                statistics, n_threads)


# ---- backward ------------------------------------------------------------------------------------

# With xhat recomputed, S1 = sum(dy), S2 = sum(dy * xhat), and n the number of values in a channel's
# statistics:
#
#     dx = gain * rstd * (dy - (S1 + xhat * S2) / n)
#
# where a row that the statistics left out has dx = gain * rstd * dy. dbias = S1 and dgain = S2.

cdef enum:
    MEAN = 0                # rows of the factors of the backward pass
    RSTD = 1                # xhat = fma(x - MEAN, RSTD, OFFSET)
    OFFSET = 2
    SCALE = 3               # dx = fma(dy - CENTER, SCALE, fma(x - MEAN, SLOPE, LEVEL)):
    CENTER = 4              # S1 / n, rounded
    SLOPE = 5               # -SCALE * S2 / n * RSTD
    LEVEL = 6               # -SCALE * (what CENTER lacks of S1 / n, + S2 / n * OFFSET)


cdef inline double xhat_double(double x, const Statistics *statistics, Py_ssize_t c) noexcept nogil:
    return ((x - statistics.mean[c]) - rest_of(statistics, c)) * statistics.rstd[c]


cdef inline void sum_double(
    const vreal *dy,        # IN, at the channel's first element
    const vreal *x,         # IN
    double *sum1,           # OUT
    double *sum2,           # OUT
    Py_ssize_t n,
    Py_ssize_t stride,
    const Statistics *statistics,
    Py_ssize_t c,
) noexcept nogil:
    cdef Py_ssize_t i
    sum1[0] = 0
    sum2[0] = 0
    for i in range(n):
        sum1[0] += vget(dy, i * stride)
        sum2[0] += vget(dy, i * stride) * xhat_double(vget(x, i * stride), statistics, c)


cdef inline void sum_columns(
    const vreal *dy,        # IN  (n_rows, stride), at the first column
    const vreal *x,         # IN  (n_rows, stride)
    const vreal *factors,   # IN  (7, stride)
    double *sum1,           # OUT (STRIP,)
    double *sum2,           # OUT (STRIP,)
    Py_ssize_t n_rows,
    Py_ssize_t stride,
    Py_ssize_t n_columns,   # at most one block of the type
    bint full,              # a constant: exactly one
) noexcept nogil:
    cdef vreal acc1[MAX_BLOCK_VECS]
    cdef vreal acc2[MAX_BLOCK_VECS]
    cdef vreal mean[MAX_BLOCK_VECS]
    cdef vreal rstd[MAX_BLOCK_VECS]
    cdef vreal offset[MAX_BLOCK_VECS]
    cdef vreal g, xhat
    cdef int k
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t r = 0
    cdef Py_ssize_t i, stop, left
    for i in range(n_vecs * width):
        sum1[i] = 0
        sum2[i] = 0
    for k in range(n_vecs):
        i = k * width
        left = n_columns - i
        mean[k] = vload(at(factors, MEAN * stride + i), left, full)
        rstd[k] = vload(at(factors, RSTD * stride + i), left, full)
        offset[k] = vload(at(factors, OFFSET * stride + i), left, full)
    while r < n_rows:
        stop = min(r + FOLD, n_rows)
        for k in range(n_vecs):
            acc1[k] = vset(0, x)
            acc2[k] = vset(0, x)
        while r < stop:
            for k in range(n_vecs):
                i = k * width
                left = n_columns - i
                g = vload(at(dy, r * stride + i), left, full)
                xhat = vfma(vload(at(x, r * stride + i), left, full) - mean[k], rstd[k], offset[k])
                acc1[k] = acc1[k] + g
                acc2[k] = vfma(g, xhat, acc2[k])
            r += 1
        for k in range(n_vecs):
            vadd_to(sum1 + k * width, acc1[k])
            vadd_to(sum2 + k * width, acc2[k])


cdef inline void sum_plane(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    double *sum1,           # IN/OUT
    double *sum2,           # IN/OUT
    Py_ssize_t n,
    double mean,
    double rstd,
    double offset,
) noexcept nogil:
    cdef vreal acc1[MAX_BLOCK_VECS]
    cdef vreal acc2[MAX_BLOCK_VECS]
    cdef vf64 wide1[MAX_WIDE_VECS]
    cdef vf64 wide2[MAX_WIDE_VECS]
    cdef vreal m = vset(mean, x)
    cdef vreal s = vset(rstd, x)
    cdef vreal t = vset(offset, x)
    cdef vreal g, xhat
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
        stop = min(i + FOLD * n_vecs * width, n)
        while i + n_vecs * width <= stop:
            for k in range(n_vecs):
                j = i + k * width
                g = at(dy, j)[0]
                acc1[k] = acc1[k] + g
                acc2[k] = vfma(g, vfma(at(x, j)[0] - m, s, t), acc2[k])
            i += n_vecs * width
        if i < stop:
            for k in range(n_vecs):
                j = i + k * width
                left = stop - j
                g = vload_first(at(dy, j), left)
                xhat = vfirst(vfma(vload_first(at(x, j), left) - m, s, t), left)
                acc1[k] = acc1[k] + g
                acc2[k] = vfma(g, xhat, acc2[k])
            i = stop
        vfold(acc1, wide1)
        vfold(acc2, wide2)
    sum1[0] += vsum_wide(x, wide1)
    sum2[0] += vsum_wide(x, wide2)


cdef void sums_item(
    const vreal *dy,        # IN  (outer, channels, inner)
    const vreal *x,         # IN  (outer, channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *factors,   # IN  (7, channels)
    double *scratch,        # OUT (blocks, 3, padded)
    const Shape *shape,
    const Statistics *statistics,
    Py_ssize_t padded,
    Py_ssize_t item,
) noexcept nogil:
    cdef Py_ssize_t size = block_size(shape)
    cdef Py_ssize_t block = item // n_columns(shape)
    cdef Py_ssize_t channel = item % n_columns(shape)
    cdef Py_ssize_t channels = shape.channels
    cdef Py_ssize_t block_columns = block_vecs(x) * lanes(x)
    cdef double *sum1 = scratch + 3 * block * padded
    cdef double *sum2 = scratch + (3 * block + 1) * padded
    cdef double part1, part2
    cdef Py_ssize_t n_rows, first, row, o, i, c
    if shape.inner == 1:
        n_rows = min(size, shape.outer - block * size)
        row = block * size * channels
        first = channel * STRIP
        while first < min((channel + 1) * STRIP, channels):
            if first + block_columns <= channels:
                sum_columns(at(dy, row + first), at(x, row + first), at(factors, first),
                            sum1 + first, sum2 + first, n_rows, channels, block_columns, True)
            else:
                sum_columns(at(dy, row + first), at(x, row + first), at(factors, first),
                            sum1 + first, sum2 + first, n_rows, channels, channels - first, False)
            for c in range(first, min(first + block_columns, channels)):
                if beyond(x, gain, statistics, c):
                    sum_double(at(dy, row + c), at(x, row + c), sum1 + c, sum2 + c, n_rows,
                               channels, statistics, c)
            first += block_columns
        return
    sum1[channel] = 0
    sum2[channel] = 0
    for o in range(block * size, min((block + 1) * size, shape.outer)):
        i = (o * channels + channel) * shape.inner
        if beyond(x, gain, statistics, channel):
            sum_double(at(dy, i), at(x, i), &part1, &part2, shape.inner, 1, statistics, channel)
            sum1[channel] += part1
            sum2[channel] += part2
        else:
            sum_plane(at(dy, i), at(x, i), sum1 + channel, sum2 + channel, shape.inner,
                      vget(factors, MEAN * channels + channel),
                      vget(factors, RSTD * channels + channel),
                      vget(factors, OFFSET * channels + channel))


cdef inline void input_gradient_double(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    vreal *dx,              # OUT (n,)
    Py_ssize_t n,
    bint counted,
    double gain,
    double mean1,
    double mean2,
    const Statistics *statistics,
    Py_ssize_t c,
) noexcept nogil:
    cdef double g
    cdef Py_ssize_t i
    for i in range(n):
        g = vget(dy, i)
        if counted:
            g = g - mean1 - xhat_double(vget(x, i), statistics, c) * mean2
        vput(dx, i, g * statistics.rstd[c] * gain)


cdef inline vreal input_gradient(vreal dy, vreal x, vreal mean, vreal scale, vreal center,
                                 vreal slope, vreal level) noexcept nogil:
    return vfma(dy - center, scale, vfma(x - mean, slope, level))


cdef inline void input_gradient_vector(
    const vreal *dy,        # IN  (n_rows, channels), at the first column
    const vreal *x,         # IN  (n_rows, channels)
    const vreal *factors,   # IN  (7, channels)
    vreal *dx,              # OUT (n_rows, channels)
    const char *counted,    # IN  (n_rows,) or NULL
    Py_ssize_t n_rows,
    Py_ssize_t channels,
    Py_ssize_t n,           # columns, at most one vector
    bint full,              # a constant: exactly one
) noexcept nogil:
    """A vector of columns of some rows, the factors being loaded once."""
    cdef vreal mean = vload(at(factors, MEAN * channels), n, full)
    cdef vreal scale = vload(at(factors, SCALE * channels), n, full)
    cdef vreal center = vload(at(factors, CENTER * channels), n, full)
    cdef vreal slope = vload(at(factors, SLOPE * channels), n, full)
    cdef vreal level = vload(at(factors, LEVEL * channels), n, full)
    cdef vreal g
    cdef Py_ssize_t r, i
    for r in range(n_rows):
        i = r * channels
        g = vload(at(dy, i), n, full)
        if counted == NULL or counted[r]:
            g = input_gradient(g, vload(at(x, i), n, full), mean, scale, center, slope, level)
        else:
            g = g * scale
        if full:
            at_out(dx, i)[0] = g
        else:
            vstore_first(at_out(dx, i), g, n)


cdef inline void input_gradient_columns(
    const vreal *dy,        # IN  (n_rows, channels)
    const vreal *x,         # IN  (n_rows, channels)
    const vreal *factors,   # IN  (7, channels)
    vreal *dx,              # OUT (n_rows, channels)
    const char *counted,    # IN  (n_rows,) or NULL
    Py_ssize_t n_rows,
    Py_ssize_t channels,
    Py_ssize_t first,
    Py_ssize_t stop,
) noexcept nogil:
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t c = first
    while c + width <= stop:
        input_gradient_vector(at(dy, c), at(x, c), at(factors, c), at_out(dx, c), counted, n_rows,
                              channels, width, True)
        c += width
    if c < stop:
        input_gradient_vector(at(dy, c), at(x, c), at(factors, c), at_out(dx, c), counted, n_rows,
                              channels, stop - c, False)


cdef inline void input_gradient_plane(
    const vreal *dy,        # IN  (inner,)
    const vreal *x,         # IN  (inner,)
    const vreal *factors,   # IN  (7, channels)
    vreal *dx,              # OUT (inner,)
    Py_ssize_t inner,
    Py_ssize_t channels,
    Py_ssize_t c,
) noexcept nogil:
    cdef vreal mean = vset(vget(factors, MEAN * channels + c), x)
    cdef vreal scale = vset(vget(factors, SCALE * channels + c), x)
    cdef vreal center = vset(vget(factors, CENTER * channels + c), x)
    cdef vreal slope = vset(vget(factors, SLOPE * channels + c), x)
    cdef vreal level = vset(vget(factors, LEVEL * channels + c), x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t n
    while i + width <= inner:
        at_out(dx, i)[0] = input_gradient(at(dy, i)[0], at(x, i)[0], mean, scale, center, slope,
                                          level)
        i += width
    if i < inner:
        n = inner - i
        vstore_first(at_out(dx, i),
                     input_gradient(vload_first(at(dy, i), n), vload_first(at(x, i), n), mean,
                                    scale, center, slope, level), n)


cdef void input_gradient_item(
    const vreal *dy,        # IN  (outer, channels, inner)
    const vreal *x,         # IN  (outer, channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *factors,   # IN  (7, channels)
    const Py_ssize_t *doubles,  # IN, ended by channels
    const double *means,    # IN  (2, padded)
    vreal *dx,              # OUT (outer, channels, inner)
    const char *counted,    # IN  (outer,) or NULL
    const Shape *shape,
    const Statistics *statistics,
    Py_ssize_t padded,
    Py_ssize_t item,
) noexcept nogil:
    """OUTER rows of columns, or the planes of as many outer indices."""
    cdef Py_ssize_t channels = shape.channels
    cdef Py_ssize_t start = item * OUTER
    cdef Py_ssize_t n_rows = min(OUTER, shape.outer - start)
    cdef Py_ssize_t row = start * channels * shape.inner
    cdef const char *rows_counted = NULL
    cdef Py_ssize_t i, c, o
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t d = 0
    if counted != NULL:
        rows_counted = counted + start
    if shape.inner == 1:
        while first <= channels:
            c = doubles[d]
            input_gradient_columns(at(dy, row), at(x, row), factors, at_out(dx, row),
                                   rows_counted, n_rows, channels, first, c)
            if c < channels:
                for o in range(n_rows):
                    i = row + o * channels + c
                    input_gradient_double(at(dy, i), at(x, i), at_out(dx, i), 1,
                                          rows_counted == NULL or rows_counted[o] != 0,
                                          gain_of(gain, c), means[c], means[padded + c],
                                          statistics, c)
            first = c + 1
            d += 1
        return
    for o in range(n_rows):
        d = 0
        for c in range(channels):
            i = row + (o * channels + c) * shape.inner
            if c == doubles[d]:
                input_gradient_double(at(dy, i), at(x, i), at_out(dx, i), shape.inner, True,
                                      gain_of(gain, c), means[c], means[padded + c], statistics, c)
                d += 1
            else:
                input_gradient_plane(at(dy, i), at(x, i), factors, at_out(dx, i), shape.inner,
                                     channels, c)


cdef inline int load_gains(const vreal *gain, const vreal *tag, vf64 *parts, Py_ssize_t c,
                           Py_ssize_t channels) noexcept nogil:
    """A vector of gains from channel c on, in double, or ones; returns how many parts."""
    if gain == NULL:
        return vwiden(vset(1, tag), parts)
    return vwiden(vload_first(at(gain, c), channels - c), parts)


cdef inline void scale_by_gain(
    const vreal *gain,      # IN  (channels,) or NULL
    vreal *scale,           # OUT (channels,): gain * rstd
    const Statistics *statistics,
    Py_ssize_t channels,
) noexcept nogil:
    cdef vf64 gains[MAX_PARTS]
    cdef Py_ssize_t width = lanes(scale)
    cdef Py_ssize_t c = 0
    cdef Py_ssize_t i
    cdef int p
    while c < channels:
        for p in range(load_gains(gain, scale, gains, c, channels)):
            i = c + p * VF64_LANES
            gains[p] = gains[p] * load_doubles(statistics.rstd + i, channels - i)
        vstore_first(at_out(scale, c), vnarrow(gains, vset(0, scale)), channels - c)
        c += width


cdef void finish_gradients(
    const vreal *gain,      # IN  (channels,) or NULL
    vreal *factors,         # IN/OUT (7, channels)
    double *sums,           # IN/OUT (2, padded): S1 and S2, then S1 / n and S2 / n
    vreal *dgain,           # OUT (channels,) or NULL
    vreal *dbias,           # OUT (channels,)
    const Statistics *statistics,
    Py_ssize_t channels,
    Py_ssize_t padded,
    double count,
) noexcept nogil:
    cdef vf64 scales[MAX_PARTS]
    cdef vf64 sum1[MAX_PARTS]
    cdef vf64 sum2[MAX_PARTS]
    cdef vf64 centers[MAX_PARTS]
    cdef vf64 offsets[MAX_PARTS]
    cdef vf64 rstd
    cdef vf64 inverse = vf64_set(1 / count)
    cdef vf64 zero = vf64_set(0)
    cdef vreal like = vset(0, factors)
    cdef vreal center
    cdef int p, n_parts
    cdef Py_ssize_t width = lanes(factors)
    cdef Py_ssize_t c = 0
    cdef Py_ssize_t n, i
    while c < channels:
        n = channels - c
        n_parts = load_gains(gain, factors, scales, c, channels)
        vwiden(vload_first(at(factors, OFFSET * channels + c), n), offsets)
        for p in range(n_parts):
            i = c + p * VF64_LANES
            sum1[p] = load_doubles(sums + i, channels - i)
            sum2[p] = load_doubles(sums + padded + i, channels - i)
        vstore_first(at_out(dbias, c), vnarrow(sum1, like), n)
        if dgain != NULL:
            vstore_first(at_out(dgain, c), vnarrow(sum2, like), n)
        for p in range(n_parts):
            i = c + p * VF64_LANES
            sum1[p] = sum1[p] * inverse
            sum2[p] = sum2[p] * inverse
            store_doubles(sums + i, sum1[p], channels - i)
            store_doubles(sums + padded + i, sum2[p], channels - i)
        center = vnarrow(sum1, like)
        vwiden(center, centers)
        vstore_first(at_out(factors, CENTER * channels + c), center, n)
        for p in range(n_parts):
            i = c + p * VF64_LANES
            rstd = load_doubles(statistics.rstd + i, channels - i)
            scales[p] = zero - scales[p] * rstd
            sum1[p] = scales[p] * ((sum1[p] - centers[p]) + sum2[p] * offsets[p])
            sum2[p] = scales[p] * sum2[p] * rstd
        vstore_first(at_out(factors, SLOPE * channels + c), vnarrow(sum2, like), n)
        vstore_first(at_out(factors, LEVEL * channels + c), vnarrow(sum1, like), n)
        c += width


cdef void backward_all(const vreal *dy, const vreal *x, const vreal *gain, const char *counted,
                       double n, vreal *factors, Py_ssize_t *doubles, double *scratch, vreal *dx,
                       vreal *dgain, vreal *dbias, Shape shape, Statistics statistics,
                       Py_ssize_t padded, int n_threads) noexcept nogil:
    cdef Py_ssize_t channels = shape.channels
    cdef Py_ssize_t i
    # First the offset of xhat, of which gain is no part; then SCALE, of which it is.
    scale_channels(<const vreal *>NULL, <const vreal *>NULL, at_out(factors, MEAN * channels),
                   at_out(factors, RSTD * channels), at_out(factors, OFFSET * channels),
                   &statistics, channels)
    scale_by_gain(gain, at_out(factors, SCALE * channels), &statistics, channels)
    find_doubles(gain, at(factors, SCALE * channels), doubles, &statistics, channels)
    if n_threads == 1:
        for i in range(n_items(&shape)):
            sums_item(dy, x, gain, factors, scratch, &shape, &statistics, padded, i)
    else:
        for i in prange(n_items(&shape), schedule="static", num_threads=n_threads):
            sums_item(dy, x, gain, factors, scratch, &shape, &statistics, padded, i)
    add_blocks(scratch, &shape, padded)
    finish_gradients(gain, factors, scratch, dgain, dbias, &statistics, channels, padded, n)
    if n_threads == 1:
        for i in range((shape.outer + OUTER - 1) // OUTER):
            input_gradient_item(dy, x, gain, factors, doubles, scratch, dx, counted, &shape,
                                &statistics, padded, i)
    else:
        for i in prange((shape.outer + OUTER - 1) // OUTER, schedule="static",
                        num_threads=n_threads):
            input_gradient_item(dy, x, gain, factors, doubles, scratch, dx, counted, &shape,
                                &statistics, padded, i)


def batch_norm_backward(dy, x, mean, rest, rstd, gain, counted, double n, factors, doubles, scratch,
                        dx, dgain, dbias, int n_threads):
    """Gradients of normalization by the batch's own statistics, x (outer, C, inner).

    rest, gain and dgain may be None. counted, (outer,) of bool or None, tells which rows made the
    statistics, each of n values; it needs inner = 1. factors (7, C) of x's type, doubles (C + 1)
    of intp and scratch are scratch.
    """
    cdef Shape shape = Shape(dim(x, 0), dim(x, 1), dim(x, 2))
    cdef Statistics statistics = Statistics(
        <double *>address(mean), <double *>address(rest), <double *>address(rstd))
    cdef Py_ssize_t padded = dim(scratch, 2)
    cdef void *dy_data = address(dy)
    cdef void *x_data = address(x)
    cdef void *gain_data = address(gain)
    cdef char *counted_data = <char *>address(counted)
    cdef void *factors_data = address(factors)
    cdef Py_ssize_t *doubles_data = <Py_ssize_t *>address(doubles)
    cdef double *scratch_data = <double *>address(scratch)
    cdef void *dx_data = address(dx)
    cdef void *dgain_data = address(dgain)
    cdef void *dbias_data = address(dbias)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            backward_all[vf32](<vf32 *>dy_data, <vf32 *>x_data, <vf32 *>gain_data, counted_data, n,
                               <vf32 *>factors_data, doubles_data, scratch_data, <vf32 *>dx_data,
                               <vf32 *>dgain_data, <vf32 *>dbias_data, shape, statistics, padded,
                               n_threads)
        else:
            backward_all[vf64](<vf64 *>dy_data, <vf64 *>x_data, <vf64 *>gain_data, counted_data, n,
                               <vf64 *>factors_data, doubles_data, scratch_data, <vf64 *>dx_data,
                               <vf64 *>dgain_data, <vf64 *>dbias_data, shape, statistics, padded,
                               n_threads)
