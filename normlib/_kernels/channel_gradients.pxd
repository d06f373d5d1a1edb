"""Gradients of batch normalization over some rows of columns, or planes: sums, and dx.

With S1 = sum(dy), S2 = sum(dy * xhat), and n the number of values in a channel's statistics,

    dx = gain * rstd * (dy - (S1 + xhat * S2) / n)

is linear in dy and x, by the factors of a channel below. Channels for which these would leave the
range of floats are done by themselves, in double.
"""
from normlib._kernels.channels cimport Statistics, rest_of
from normlib._kernels.rows cimport FOLD
from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_PARTS, MAX_WIDE_VECS, VF64_LANES, at, at_out, block_vecs, lanes,
    vec_prefetch, vf64, vf64_set, vfirst, vfma, vfold, vget, vload, vload_first, vput, vreal, vset,
    vstore, vstore_first, vsum_wide, vwiden,
)

cdef enum:
    COLUMN_VECS = 2         # vectors of columns side by side: all sums stay in registers
    MAX_COLUMN_VECS = 4     # in large arrays: longer runs of memory
    AHEAD = 2048            # elements that are prefetched while rows are streamed

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
    double *sum1,           # IN/OUT (columns,)
    double *sum2,           # IN/OUT (columns,)
    Py_ssize_t n_rows,
    Py_ssize_t stride,
    Py_ssize_t n_columns,   # at most n_vecs vectors
    int n_vecs,             # a constant
    bint full,              # a constant: exactly so many
    bint ahead,             # a constant: whether to prefetch as many rows to come
) noexcept nogil:
    """Add some rows to the sums of some columns, in registers where there are enough."""
    cdef vf64 wide1[MAX_COLUMN_VECS * MAX_PARTS]
    cdef vf64 wide2[MAX_COLUMN_VECS * MAX_PARTS]
    cdef vf64 parts[MAX_PARTS]
    cdef vreal acc1[MAX_COLUMN_VECS]
    cdef vreal acc2[MAX_COLUMN_VECS]
    cdef vreal mean[MAX_COLUMN_VECS]
    cdef vreal rstd[MAX_COLUMN_VECS]
    cdef vreal offset[MAX_COLUMN_VECS]
    cdef vreal g, xhat
    cdef int k, p
    cdef int n_parts = lanes(x) // VF64_LANES
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t r, i, left, stop
    for k in range(n_vecs):
        i = k * width
        left = n_columns - i
        mean[k] = vload(at(factors, MEAN * stride + i), left, full)
        rstd[k] = vload(at(factors, RSTD * stride + i), left, full)
        offset[k] = vload(at(factors, OFFSET * stride + i), left, full)
        for p in range(n_parts):
            wide1[k * n_parts + p] = (<vf64 *>sum1)[k * n_parts + p]
            wide2[k * n_parts + p] = (<vf64 *>sum2)[k * n_parts + p]
    r = 0
    while r < n_rows:
        stop = min(r + FOLD, n_rows)
        for k in range(n_vecs):
            acc1[k] = vset(0, x)
            acc2[k] = vset(0, x)
        while r < stop:
            for k in range(n_vecs):
                i = k * width
                left = n_columns - i
                if ahead:
                    vec_prefetch(at(dy, (r + n_rows) * stride + i))
                    vec_prefetch(at(x, (r + n_rows) * stride + i))
                g = vload(at(dy, r * stride + i), left, full)
                xhat = vfma(vload(at(x, r * stride + i), left, full) - mean[k], rstd[k], offset[k])
                acc1[k] = acc1[k] + g
                acc2[k] = vfma(g, xhat, acc2[k])
            r += 1
        for k in range(n_vecs):
            vwiden(acc1[k], parts)
            for p in range(n_parts):
                wide1[k * n_parts + p] = wide1[k * n_parts + p] + parts[p]
            vwiden(acc2[k], parts)
            for p in range(n_parts):
                wide2[k * n_parts + p] = wide2[k * n_parts + p] + parts[p]
    for i in range(n_vecs * n_parts):
        (<vf64 *>sum1)[i] = wide1[i]
        (<vf64 *>sum2)[i] = wide2[i]


cdef inline void sum_planes(
    const vreal *dy,        # IN  (n_planes, stride), of which n
    const vreal *x,         # IN  (n_planes, stride)
    double *sum1,           # OUT
    double *sum2,           # OUT
    Py_ssize_t n_planes,
    Py_ssize_t stride,
    Py_ssize_t n,
    double mean,
    double rstd,
    double offset,
) noexcept nogil:
    """Sums of one channel's planes; accumulators run on from one plane to the next."""
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
    cdef int steps = 0      # since the last fold
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t o, i, j, left
    for k in range(MAX_WIDE_VECS):
        wide1[k] = vf64_set(0)
        wide2[k] = vf64_set(0)
    for k in range(n_vecs):
        acc1[k] = vset(0, x)
        acc2[k] = vset(0, x)
    for o in range(n_planes):
        i = 0
        while i < n:
            left = n - i
            if left >= n_vecs * width:
                for k in range(n_vecs):
                    j = o * stride + i + k * width
                    g = at(dy, j)[0]
                    acc1[k] = acc1[k] + g
                    acc2[k] = vfma(g, vfma(at(x, j)[0] - m, s, t), acc2[k])
            else:
                for k in range(n_vecs):
                    j = o * stride + i + k * width
                    g = vload_first(at(dy, j), left)
                    xhat = vfirst(vfma(vload_first(at(x, j), left) - m, s, t), left)
                    acc1[k] = acc1[k] + g
                    acc2[k] = vfma(g, xhat, acc2[k])
                    left -= width
            i += n_vecs * width
            steps += 1
            if steps == FOLD:
                vfold(acc1, wide1)
                vfold(acc2, wide2)
                for k in range(n_vecs):
                    acc1[k] = vset(0, x)
                    acc2[k] = vset(0, x)
                steps = 0
    vfold(acc1, wide1)
    vfold(acc2, wide2)
    sum1[0] = vsum_wide(x, wide1)
    sum2[0] = vsum_wide(x, wide2)


cdef inline void sum_rows(
    const vreal *dy,        # IN  (n_rows, channels)
    const vreal *x,         # IN  (n_rows, channels)
    const vreal *factors,   # IN  (7, channels)
    double *sum1,           # IN/OUT (padded,)
    double *sum2,           # IN/OUT (padded,)
    Py_ssize_t n_rows,
    Py_ssize_t channels,
    Py_ssize_t first,
    Py_ssize_t stop,
    bint large,
) noexcept nogil:
    """Add some rows to the sums of the columns from first to stop."""
    cdef Py_ssize_t size = COLUMN_VECS * lanes(x)
    cdef Py_ssize_t c = first
    if large:
        size = MAX_COLUMN_VECS * lanes(x)
    while c + size <= stop:
        if large:
            sum_columns(at(dy, c), at(x, c), at(factors, c), sum1 + c, sum2 + c, n_rows, channels,
                        size, MAX_COLUMN_VECS, True, True)
        else:
            sum_columns(at(dy, c), at(x, c), at(factors, c), sum1 + c, sum2 + c, n_rows, channels,
                        size, COLUMN_VECS, True, False)
        c += size
    if c < stop and large:
        sum_columns(at(dy, c), at(x, c), at(factors, c), sum1 + c, sum2 + c, n_rows, channels,
                    stop - c, MAX_COLUMN_VECS, False, True)
    elif c < stop:
        sum_columns(at(dy, c), at(x, c), at(factors, c), sum1 + c, sum2 + c, n_rows, channels,
                    stop - c, COLUMN_VECS, False, False)


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
    const vreal *factors,   # IN  (7, padded)
    vreal *dx,              # OUT (n_rows, channels)
    const char *counted,    # IN  (n_rows,) or NULL
    Py_ssize_t n_rows,
    Py_ssize_t channels,
    Py_ssize_t padded,
    Py_ssize_t n,           # columns, at most one vector
    bint full,              # a constant: exactly one
    bint stream,            # a constant: past the cache
) noexcept nogil:
    """A vector of columns of some rows, the factors being loaded once."""
    cdef vreal mean = vload(at(factors, MEAN * padded), n, full)
    cdef vreal scale = vload(at(factors, SCALE * padded), n, full)
    cdef vreal center = vload(at(factors, CENTER * padded), n, full)
    cdef vreal slope = vload(at(factors, SLOPE * padded), n, full)
    cdef vreal level = vload(at(factors, LEVEL * padded), n, full)
    cdef vreal g
    cdef Py_ssize_t r, i
    for r in range(n_rows):
        i = r * channels
        if stream:
            vec_prefetch(at(dy, i + AHEAD))
            vec_prefetch(at(x, i + AHEAD))
        g = vload(at(dy, i), n, full)
        if counted == NULL or counted[r]:
            g = input_gradient(g, vload(at(x, i), n, full), mean, scale, center, slope, level)
        else:
            g = g * scale
        if full:
            vstore(at_out(dx, i), g, stream)
        else:
            vstore_first(at_out(dx, i), g, n)


cdef inline void input_gradient_columns(
    const vreal *dy,        # IN  (n_rows, channels)
    const vreal *x,         # IN  (n_rows, channels)
    const vreal *factors,   # IN  (7, padded)
    vreal *dx,              # OUT (n_rows, channels)
    const char *counted,    # IN  (n_rows,) or NULL
    Py_ssize_t n_rows,
    Py_ssize_t channels,
    Py_ssize_t padded,
    Py_ssize_t first,
    Py_ssize_t stop,
    bint stream,            # a constant
) noexcept nogil:
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t c = first
    while c + width <= stop:
        input_gradient_vector(at(dy, c), at(x, c), at(factors, c), at_out(dx, c), counted, n_rows,
                              channels, padded, width, True, stream)
        c += width
    if c < stop:
        input_gradient_vector(at(dy, c), at(x, c), at(factors, c), at_out(dx, c), counted, n_rows,
                              channels, padded, stop - c, False, False)


cdef inline void input_gradient_plane(
    const vreal *dy,        # IN  (inner,)
    const vreal *x,         # IN  (inner,)
    const vreal *factors,   # IN  (7, channels)
    vreal *dx,              # OUT (inner,)
    Py_ssize_t inner,
    Py_ssize_t channels,
    Py_ssize_t c,
    bint stream,            # a constant: past the cache
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
        vstore(at_out(dx, i), input_gradient(at(dy, i)[0], at(x, i)[0], mean, scale, center, slope,
                                             level), stream)
        i += width
    if i < inner:
        n = inner - i
        vstore_first(at_out(dx, i),
                     input_gradient(vload_first(at(dy, i), n), vload_first(at(x, i), n), mean,
                                    scale, center, slope, level), n)
