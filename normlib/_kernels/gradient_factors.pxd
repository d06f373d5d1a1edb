"""The factors of channels by which the gradient of batch normalization is linear.

channel_gradients.pxd names them, and says what they are.
"""
from normlib._kernels.channel_gradients cimport CENTER, LEVEL, OFFSET, SLOPE
from normlib._kernels.channels cimport (
    Range, Statistics, exceeds_range, load_doubles, open_range, store, store_doubles, widen_range,
)
from normlib._kernels.vec cimport (
    MAX_PARTS, VF64_LANES, at, at_out, lanes, vf64, vf64_set, vload, vnarrow, vreal, vset, vwiden,
)


cdef inline int load_gains(const vreal *gain, const vreal *like, vf64 *parts, Py_ssize_t c,
                           Py_ssize_t n, bint full) noexcept nogil:
    """A vector of gains from channel c on, in double, or ones; returns how many parts."""
    if gain == NULL:
        return vwiden(vset(1, like), parts)
    return vwiden(vload(at(gain, c), n, full), parts)


cdef inline void scale_by_gain_vector(
    const vreal *gain,      # IN  (channels,) or NULL
    vreal *scale,           # OUT (channels,): gain * rstd
    const Statistics *statistics,
    Range *extent,          # IN/OUT
    Py_ssize_t c,
    Py_ssize_t n,           # channels from c on, at most one vector
    bint full,              # a constant: exactly one
) noexcept nogil:
    cdef vf64 gains[MAX_PARTS]
    cdef Py_ssize_t i, left
    cdef int p
    for p in range(load_gains(gain, scale, gains, c, n, full)):
        i = c + p * VF64_LANES
        left = n - p * VF64_LANES
        gains[p] = gains[p] * load_doubles(statistics.rstd + i, left, full)
        widen_range(extent, gains[p], left, full)
    store(at_out(scale, c), vnarrow(gains, vset(0, scale)), n, full)


cdef inline bint scale_by_gain(
    const vreal *gain,      # IN  (channels,) or NULL
    vreal *scale,           # OUT (channels,): gain * rstd
    const Statistics *statistics,
    Py_ssize_t channels,
) noexcept nogil:
    """False where certainly no channel is beyond vector range for its scale."""
    cdef Range extent
    cdef Py_ssize_t width = lanes(scale)
    cdef Py_ssize_t c = 0
    open_range(&extent)
    while c + width <= channels:
        scale_by_gain_vector(gain, scale, statistics, &extent, c, width, True)
        c += width
    if c < channels:
        scale_by_gain_vector(gain, scale, statistics, &extent, c, channels - c, False)
    return exceeds_range(&extent)


cdef inline void finish_vector(
    const vreal *gain,      # IN  (channels,) or NULL
    vreal *factors,         # IN/OUT (7, channels)
    double *sums,           # IN/OUT (2, padded): S1 and S2, then S1 / n and S2 / n
    vreal *dgain,           # OUT (channels,) or NULL
    vreal *dbias,           # OUT (channels,)
    const Statistics *statistics,
    Py_ssize_t channels,
    Py_ssize_t padded,
    vf64 inverse,           # 1 / the count of values
    Py_ssize_t c,
    Py_ssize_t n,           # channels from c on, at most one vector
    bint full,              # a constant: exactly one
) noexcept nogil:
    cdef vf64 scales[MAX_PARTS]
    cdef vf64 sum1[MAX_PARTS]
    cdef vf64 sum2[MAX_PARTS]
    cdef vf64 centers[MAX_PARTS]
    cdef vf64 offsets[MAX_PARTS]
    cdef vf64 rstd
    cdef vf64 zero = vf64_set(0)
    cdef vreal like = vset(0, factors)
    cdef vreal center
    cdef int p
    cdef int n_parts = load_gains(gain, factors, scales, c, n, full)
    cdef Py_ssize_t i, left
    vwiden(vload(at(factors, OFFSET * channels + c), n, full), offsets)
    for p in range(n_parts):
        i = c + p * VF64_LANES
        left = n - p * VF64_LANES
        sum1[p] = load_doubles(sums + i, left, full)
        sum2[p] = load_doubles(sums + padded + i, left, full)
    store(at_out(dbias, c), vnarrow(sum1, like), n, full)
    if dgain != NULL:
        store(at_out(dgain, c), vnarrow(sum2, like), n, full)
    for p in range(n_parts):
        i = c + p * VF64_LANES
        left = n - p * VF64_LANES
        sum1[p] = sum1[p] * inverse
        sum2[p] = sum2[p] * inverse
        store_doubles(sums + i, sum1[p], left, full)
        store_doubles(sums + padded + i, sum2[p], left, full)
    center = vnarrow(sum1, like)
    vwiden(center, centers)
    store(at_out(factors, CENTER * channels + c), center, n, full)
    for p in range(n_parts):
        i = c + p * VF64_LANES
        rstd = load_doubles(statistics.rstd + i, n - p * VF64_LANES, full)
        scales[p] = zero - scales[p] * rstd
        sum1[p] = scales[p] * ((sum1[p] - centers[p]) + sum2[p] * offsets[p])
        sum2[p] = scales[p] * sum2[p] * rstd
    store(at_out(factors, SLOPE * channels + c), vnarrow(sum2, like), n, full)
    store(at_out(factors, LEVEL * channels + c), vnarrow(sum1, like), n, full)


cdef inline void finish_gradients(
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
    cdef vf64 inverse = vf64_set(1 / count)
    cdef Py_ssize_t width = lanes(factors)
    cdef Py_ssize_t c = 0
    while c + width <= channels:
        finish_vector(gain, factors, sums, dgain, dbias, statistics, channels, padded, inverse, c,
                      width, True)
        c += width
    if c < channels:
        finish_vector(gain, factors, sums, dgain, dbias, statistics, channels, padded, inverse, c,
                      channels - c, False)
