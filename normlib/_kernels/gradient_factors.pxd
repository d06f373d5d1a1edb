"""The factors of channels by which the gradient of batch normalization is linear.

channel_gradients.pxd names them, and says what they are.
"""
from libc.float cimport FLT_MAX, FLT_MIN
from libc.math cimport fabs

from normlib._kernels.channel_gradients cimport CENTER, LEVEL, OFFSET, SLOPE
from normlib._kernels.channels cimport (
    Range, Statistics, beyond, exceeds_range, load_doubles, open_range, store, store_doubles,
    widen_range,
)
from normlib._kernels.vec cimport (
    MAX_PARTS, VF64_LANES, at, at_out, lanes, vf64, vf64_set, vget, vload, vnarrow, vreal, vset,
    vwiden,
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
    vreal *factors,         # IN/OUT (7, stride)
    double *sums,           # IN/OUT (2, padded): S1 and S2, then S1 / n and S2 / n
    vreal *dgain,           # OUT (channels,) or NULL
    vreal *dbias,           # OUT (channels,)
    const Statistics *statistics,
    Py_ssize_t stride,
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
    vwiden(vload(at(factors, OFFSET * stride + c), n, full), offsets)
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
    store(at_out(factors, CENTER * stride + c), center, n, full)
    for p in range(n_parts):
        i = c + p * VF64_LANES
        rstd = load_doubles(statistics.rstd + i, n - p * VF64_LANES, full)
        scales[p] = zero - scales[p] * rstd
        sum1[p] = scales[p] * ((sum1[p] - centers[p]) + sum2[p] * offsets[p])
        sum2[p] = scales[p] * sum2[p] * rstd
    store(at_out(factors, SLOPE * stride + c), vnarrow(sum2, like), n, full)
    store(at_out(factors, LEVEL * stride + c), vnarrow(sum1, like), n, full)


cdef inline void finish_gradients(
    const vreal *gain,      # IN  (channels,) or NULL
    vreal *factors,         # IN/OUT (7, stride)
    double *sums,           # IN/OUT (2, padded): S1 and S2, then S1 / n and S2 / n
    vreal *dgain,           # OUT (channels,) or NULL
    vreal *dbias,           # OUT (channels,)
    const Statistics *statistics,
    Py_ssize_t channels,
    Py_ssize_t stride,
    Py_ssize_t padded,
    double count,
) noexcept nogil:
    cdef vf64 inverse = vf64_set(1 / count)
    cdef Py_ssize_t width = lanes(factors)
    cdef Py_ssize_t c = 0
    while c + width <= channels:
        finish_vector(gain, factors, sums, dgain, dbias, statistics, stride, padded, inverse, c,
                      width, True)
        c += width
    if c < channels:
        finish_vector(gain, factors, sums, dgain, dbias, statistics, stride, padded, inverse, c,
                      channels - c, False)


cdef inline bint is_steep(const vreal *factors, const double *slopes, Py_ssize_t stride,
                          Py_ssize_t c) noexcept nogil:
    """Whether channel c's SLOPE, with the square of rstd in it, has left the range of floats."""
    cdef double slope = fabs(vget(factors, SLOPE * stride + c))
    return (slopes[c] != 0) & ((slope < FLT_MIN) | (slope > FLT_MAX))


cdef inline void add_steep(
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *factors,   # IN  (7, stride)
    const double *slopes,   # IN  (channels,): S2 / n
    Py_ssize_t *doubles,    # IN/OUT (channels + 1,), ended by channels
    const Statistics *statistics,
    Py_ssize_t channels,
    Py_ssize_t stride,
) noexcept nogil:
    """Take the channels that are steep into those done in double."""
    cdef bint some = False
    cdef Py_ssize_t n = 0
    cdef Py_ssize_t c
    for c in range(channels):
        some |= is_steep(factors, slopes, stride, c)
    if not some:
        return
    for c in range(channels):
        if is_steep(factors, slopes, stride, c) or beyond(factors, gain, statistics, c):
            doubles[n] = c
            n += 1
    doubles[n] = channels
