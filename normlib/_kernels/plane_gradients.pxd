"""Gradients of group norm by planes: runs of one channel of a sample, inner elements each.

Design
------
A channel's sums over its plane of dy, dy * xhat and, where a row has several planes, xhat serve dx
and, added up over the samples, dbias and dgain.

Sums of dy are taken about the first value of its row, lest rounding eat up dx where g is nearly
constant; what that shift adds to the sums of dy * xhat vanishes over a row of equal gains, as xhat
sums to zero.

Where a plane is a row of its own, VF64_LANES of them are taken together: their last additions, and
all that is done once a plane, in one vector of doubles; and the output of PLANES of them follows
all their sums, lest each wait for the latency of its own. Which planes are together changes no bit:
those that this way does not take go row by row, by the same operations.
"""
from normlib._kernels.affine cimport at_or_null
from normlib._kernels.groups cimport Layout
from normlib._kernels.row_gradients cimport Row, finish_row, gradient, prepare_row
from normlib._kernels.rows cimport FOLD, GROUP, GROUP_FLOATS
from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_PARTS, MAX_VF64_LANES, MAX_WIDE_VECS, VF64_LANES, at, at_out, block_vecs,
    lanes, vabs, vec_fence, vec_sum_wide, vf32, vf64, vf64_set, vfirst, vfma, vfold, vget,
    vhalve_wide, vload_first, vnarrow, vput, vreal, vselect_lt, vset, vstore, vstore_first, vwiden,
)

cdef extern from "transpose.h" nogil:
    vf64 vf64_sum_rows(vf64 *) noexcept

cdef enum:
    PLANES = 32          # that are rows of their own, in flight
    NEAR = 1 << 18       # elements, at most, of arrays that the cache next to a core holds
    FAR_GROUP = 1024     # elements in flight of others


cdef inline void plane_sums(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    vf64 *sum_d,            # OUT one vector, whose lanes are to be added up
    vf64 *sum_dx,           # OUT
    vf64 *sum_x,            # OUT
    Py_ssize_t n,
    vreal m,                # of every lane: xhat = fma(x - m, s, t)
    vreal s,
    vreal t,
    vreal q,                # of every lane: what dy is taken about
    bint want_x,            # a constant: whether to sum xhat, too
) noexcept nogil:
    cdef vreal acc1[MAX_BLOCK_VECS]
    cdef vreal acc2[MAX_BLOCK_VECS]
    cdef vreal acc3[MAX_BLOCK_VECS]
    cdef vf64 wide1[MAX_WIDE_VECS]
    cdef vf64 wide2[MAX_WIDE_VECS]
    cdef vf64 wide3[MAX_WIDE_VECS]
    cdef vreal d, xhat
    cdef int k
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j, left, stop
    for k in range(MAX_WIDE_VECS):
        wide1[k] = vf64_set(0)
        wide2[k] = vf64_set(0)
        wide3[k] = vf64_set(0)
    while i < n:
        for k in range(n_vecs):
            acc1[k] = vset(0, x)
            acc2[k] = vset(0, x)
            acc3[k] = vset(0, x)
        stop = min(i + FOLD * n_vecs * width, n)
        while i + n_vecs * width <= stop:
            for k in range(n_vecs):
                j = i + k * width
                d = at(dy, j)[0] - q
                xhat = vfma(at(x, j)[0] - m, s, t)
                acc1[k] = acc1[k] + d
                acc2[k] = vfma(d, xhat, acc2[k])
                if want_x:
                    acc3[k] = acc3[k] + xhat
            i += n_vecs * width
        if i < stop:
            # Vectors past the end would add zeros, and masks take a while.
            for k in range(n_vecs):
                j = i + k * width
                left = stop - j
                if left >= width:
                    d = at(dy, j)[0] - q
                    xhat = vfma(at(x, j)[0] - m, s, t)
                elif left > 0:
                    d = vload_first(at(dy, j), left) - q
                    d = vfirst(d, left)
                    xhat = vfirst(vfma(vload_first(at(x, j), left) - m, s, t), left)
                else:
                    break
                acc1[k] = acc1[k] + d
                acc2[k] = vfma(d, xhat, acc2[k])
                if want_x:
                    acc3[k] = acc3[k] + xhat
            i = stop
        vfold(acc1, wide1)
        vfold(acc2, wide2)
        if want_x:
            vfold(acc3, wide3)
    sum_d[0] = vhalve_wide(x, wide1)
    sum_dx[0] = vhalve_wide(x, wide2)
    if want_x:
        sum_x[0] = vhalve_wide(x, wide3)


cdef inline void plane_gradient(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    vreal *dx,              # OUT (n,)
    Py_ssize_t n,
    vreal m,                # of every lane, as gradient() takes them
    vreal s,
    vreal t,
    vreal f,                # of every lane: the gain of the channel
    vreal a,                # of every lane: the center of g = dy * f
    vreal b,
    vreal c,
    bint linear,            # a constant
    bint stream,            # a constant: past the cache
) noexcept nogil:
    cdef vreal g
    cdef int k
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j, left
    while i + 4 * width <= n:
        for k in range(4):
            j = i + k * width
            g = vfma(at(dy, j)[0], f, -a)
            vstore(at_out(dx, j), gradient(g, at(x, j)[0] - m, s, t, b, c, linear), stream)
        i += 4 * width
    while i + width <= n:
        g = vfma(at(dy, i)[0], f, -a)
        vstore(at_out(dx, i), gradient(g, at(x, i)[0] - m, s, t, b, c, linear), stream)
        i += width
    if i < n:
        left = n - i
        g = vfma(vload_first(at(dy, i), left), f, -a)
        vstore_first(at_out(dx, i),
                     gradient(g, vload_first(at(x, i), left) - m, s, t, b, c, linear), left)


cdef inline double factor_of(const vreal *gain, Py_ssize_t c) noexcept nogil:
    return 1 if gain == NULL else vget(gain, c)


cdef inline void plane_row_double(
    const vreal *dy,        # IN  (channels, inner)
    const vreal *x,         # IN  (channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    vreal *dx,              # OUT (channels, inner)
    double *dgain,          # OUT (channels,)
    double *dbias,          # OUT (channels,)
    const Row *row,
    Py_ssize_t channels,
    Py_ssize_t inner,
) noexcept nogil:
    """A row beyond the range of its type's rstd, in double."""
    cdef double n = <double>channels * <double>inner
    cdef double factor, g, xhat
    cdef double mean_g = 0
    cdef double mean_gx = 0
    cdef Py_ssize_t c, i
    for c in range(channels):
        factor = factor_of(gain, c)
        dgain[c] = 0
        dbias[c] = 0
        for i in range(c * inner, (c + 1) * inner):
            xhat = ((vget(x, i) - row.mean_hi) - row.mean_lo) * row.rstd
            g = vget(dy, i)
            dgain[c] += g * xhat
            dbias[c] += g
            mean_g += g * factor / n
            mean_gx += g * factor * xhat / n
    for c in range(channels):
        factor = factor_of(gain, c)
        for i in range(c * inner, (c + 1) * inner):
            xhat = ((vget(x, i) - row.mean_hi) - row.mean_lo) * row.rstd
            vput(dx, i, (vget(dy, i) * factor - mean_g - xhat * mean_gx) * row.rstd)


cdef inline void add_lanes(vf64 *sums, Py_ssize_t n) noexcept nogil:
    """Of the first n, at most VF64_LANES: the sum of sums[i]'s lanes in lane i of sums[0]."""
    cdef Py_ssize_t i
    for i in range(n, VF64_LANES):
        sums[i] = vf64_set(0)
    sums[0] = vf64_sum_rows(sums)


cdef inline void row_planes_sums(
    const vreal *dy,        # IN  (channels, inner)
    const vreal *x,         # IN  (channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    double *dgain,          # OUT (channels,): of this row alone
    double *dbias,          # OUT (channels,)
    Row *row,               # IN/OUT
    Py_ssize_t channels,
    Py_ssize_t inner,
) noexcept nogil:
    cdef vf64 sums_d[MAX_VF64_LANES]
    cdef vf64 sums_dx[MAX_VF64_LANES]
    cdef vf64 sums_x[MAX_VF64_LANES]
    cdef vreal m = vset(row.mean_hi, x)
    cdef vreal s = vset(row.rstd, x)
    cdef vreal t = vset(row.offset, x)
    cdef double n = <double>channels * <double>inner
    cdef double shift = vget(dy, 0)
    cdef double first = factor_of(gain, 0)
    cdef double factor, plane_d, plane_dx, plane_x
    cdef double factors = 0
    cdef double d = 0
    cdef double dx = 0
    cdef Py_ssize_t c = 0
    cdef Py_ssize_t count, p, i
    while c < channels:
        count = min(<Py_ssize_t>VF64_LANES, channels - c)
        for p in range(count):
            i = (c + p) * inner
            if channels == 1:
                # The sum of xhat over the row is 0.
                plane_sums(at(dy, i), at(x, i), sums_d + p, sums_dx + p, sums_x + p, inner, m, s, t,
                           vset(shift, x), False)
                sums_x[p] = vf64_set(0)
            else:
                plane_sums(at(dy, i), at(x, i), sums_d + p, sums_dx + p, sums_x + p, inner, m, s, t,
                           vset(shift, x), True)
        add_lanes(sums_d, count)
        add_lanes(sums_dx, count)
        add_lanes(sums_x, count)
        for p in range(count):
            factor = factor_of(gain, c + p)
            plane_d = vget(sums_d, p)
            plane_dx = vget(sums_dx, p)
            plane_x = vget(sums_x, p)
            dgain[c + p] = plane_dx + shift * plane_x
            dbias[c + p] = plane_d + shift * inner
            factors += factor
            d += factor * plane_d
            # For the same reason, that of first * xhat is left out.
            dx += factor * plane_dx + shift * (factor - first) * plane_x
        c += count
    row.first = shift * (factors / channels)
    finish_row(x, row, d / n, dx / n)


cdef inline void row_planes_write(
    const vreal *dy,        # IN  (channels, inner)
    const vreal *x,         # IN  (channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    vreal *dx,              # OUT (channels, inner)
    const Row *row,
    Py_ssize_t channels,
    Py_ssize_t inner,
    bint stream,            # a constant: past the cache
) noexcept nogil:
    cdef vreal m = vset(row.mean_hi, x)
    cdef vreal s = vset(row.rstd, x)
    cdef vreal t = vset(row.offset, x)
    cdef vreal a = vset(row.center, x)
    cdef vreal b = vset(row.slope if row.linear else -row.mean_gx, x)
    cdef vreal k = vset(row.level if row.linear else row.rest, x)
    cdef vreal f
    cdef Py_ssize_t c, i
    for c in range(channels):
        i = c * inner
        f = vset(factor_of(gain, c), x)
        if row.linear:
            plane_gradient(at(dy, i), at(x, i), at_out(dx, i), inner, m, s, t, f, a, b, k, True,
                           stream)
        else:
            plane_gradient(at(dy, i), at(x, i), at_out(dx, i), inner, m, s, t, f, a, b, k, False,
                           False)


cdef enum:              # terms of planes, each a vector of one value a plane
    MEAN
    SCALE
    OFFSET
    FACTOR
    CENTER
    SLOPE
    LEVEL
    TERMS


cdef inline vreal of_lane(const vreal *term, Py_ssize_t p) noexcept nogil:
    """Lane p in every lane."""
    return vset(vget(term, p), term)


cdef inline vf64 outside(vf64 v, double low, double high) noexcept nogil:
    """1 where abs(v) is not between the two, which is where v is NaN, too; else 0."""
    v = vabs(v)
    return vselect_lt(v, vf64_set(high), vselect_lt(vf64_set(low), v, vf64_set(0), vf64_set(1)),
                      vf64_set(1))


cdef inline vf64 more_than_none(vf64 v) noexcept nogil:
    return vselect_lt(vf64_set(0), vabs(v), vf64_set(1), vf64_set(0))


cdef inline bint planes_sums(
    const vreal *dy,        # IN  (n_planes, inner)
    const vreal *x,         # IN  (n_planes, inner)
    const vreal *gain,      # IN  (n_planes,) or NULL
    const double *mean,     # IN  (n_planes,)
    const double *rstd,     # IN  (n_planes,)
    double *dgain,          # OUT (n_planes,)
    double *dbias,          # OUT (n_planes,)
    vreal *terms,           # OUT (TERMS,): for planes_write
    Py_ssize_t n_planes,    # at most VF64_LANES
    Py_ssize_t inner,
) noexcept nogil:
    """Planes that are a row each: prepare_row, the sums, and finish_row for all of them at once.

    False where one of them is too extreme for it.
    """
    cdef vf64 sums_d[MAX_VF64_LANES]
    cdef vf64 sums_dx[MAX_VF64_LANES]
    cdef vf64 none[1]
    cdef vf64 parts[MAX_PARTS]
    cdef vf64 of_plane, d, dx, factor, base, rest, offset, slope, level, bad
    cdef vf64 scale = vload_first(<const vf64 *>rstd, n_planes)
    cdef vf64 n = vf64_set(<double>inner)
    cdef vreal first = vset(0, x)
    cdef Py_ssize_t p, i
    for p in range(1, MAX_PARTS):
        parts[p] = vf64_set(0)
    of_plane = vload_first(<const vf64 *>mean, n_planes)
    parts[0] = of_plane
    terms[MEAN] = vnarrow(parts, first)
    vwiden(terms[MEAN], parts)
    offset = (parts[0] - of_plane) * scale
    parts[0] = scale
    terms[SCALE] = vnarrow(parts, first)
    parts[0] = offset
    terms[OFFSET] = vnarrow(parts, first)
    terms[FACTOR] = vset(1, x) if gain == NULL else vload_first(gain, n_planes)
    for p in range(n_planes):
        vput(&first, p, vget(dy, p * inner))
    for p in range(n_planes):
        i = p * inner
        plane_sums(at(dy, i), at(x, i), sums_d + p, sums_dx + p, none, inner,
                   of_lane(terms + MEAN, p), of_lane(terms + SCALE, p), of_lane(terms + OFFSET, p),
                   of_lane(&first, p), False)
    add_lanes(sums_d, n_planes)
    add_lanes(sums_dx, n_planes)
    d = sums_d[0]
    dx = sums_dx[0]
    vwiden(first, parts)
    base = parts[0]
    vstore_first(<vf64 *>dgain, dx, n_planes)
    vstore_first(<vf64 *>dbias, d + base * n, n_planes)
    vwiden(terms[FACTOR], parts)
    factor = parts[0]
    base = base * factor
    rest = factor * d / n
    dx = factor * dx / n
    parts[0] = base + rest
    terms[CENTER] = vnarrow(parts, first)
    vwiden(terms[CENTER], parts)
    rest = (base - parts[0]) + rest
    slope = -dx * scale * scale
    level = -(dx * offset + rest) * scale
    parts[0] = slope
    terms[SLOPE] = vnarrow(parts, first)
    parts[0] = level
    terms[LEVEL] = vnarrow(parts, first)
    # Of vector range, and linear.
    bad = outside(scale, 1e-30, 1e30) * more_than_none(scale)
    bad = bad + outside(slope, 1e-30, 1e30) * more_than_none(dx)
    bad = bad + outside(level, -1, 1e30)
    return vec_sum_wide(&bad, 1) == 0


cdef inline void planes_write(
    const vreal *dy,        # IN  (n_planes, inner)
    const vreal *x,         # IN  (n_planes, inner)
    const vreal *terms,     # IN  (TERMS,)
    vreal *dx,              # OUT (n_planes, inner)
    Py_ssize_t n_planes,    # at most VF64_LANES
    Py_ssize_t inner,
    bint stream,            # a constant: past the cache
) noexcept nogil:
    cdef Py_ssize_t p, i
    for p in range(n_planes):
        i = p * inner
        plane_gradient(at(dy, i), at(x, i), at_out(dx, i), inner, of_lane(terms + MEAN, p),
                       of_lane(terms + SCALE, p), of_lane(terms + OFFSET, p),
                       of_lane(terms + FACTOR, p), of_lane(terms + CENTER, p),
                       of_lane(terms + SLOPE, p), of_lane(terms + LEVEL, p), True, stream)


cdef inline bint some_planes(
    const vreal *dy, const vreal *x, const vreal *gain, const double *mean, const double *rstd,
    vreal *dx, double *dgain, double *dbias, Py_ssize_t n_planes, Py_ssize_t inner, bint stream,
) noexcept nogil:
    """At most PLANES planes that are a row each: all sums, and then all of dx, unless False.

    Not of doubles, whose means have a rest.
    """
    cdef vreal terms[TERMS * PLANES]
    cdef bint good = vreal is vf32
    cdef Py_ssize_t p = 0
    cdef Py_ssize_t count, i
    while good and p < n_planes:
        count = min(<Py_ssize_t>VF64_LANES, n_planes - p)
        i = p * inner
        good = planes_sums(at(dy, i), at(x, i), at_or_null(gain, p), mean + p, rstd + p, dgain + p,
                           dbias + p, terms + p // VF64_LANES * TERMS, count, inner)
        p += count
    if not good:
        return False
    p = 0
    while p < n_planes:
        count = min(<Py_ssize_t>VF64_LANES, n_planes - p)
        i = p * inner
        if stream:
            planes_write(at(dy, i), at(x, i), terms + p // VF64_LANES * TERMS, at_out(dx, i), count,
                         inner, True)
        else:
            planes_write(at(dy, i), at(x, i), terms + p // VF64_LANES * TERMS, at_out(dx, i), count,
                         inner, False)
        p += count
    return True


cdef inline void some_rows(
    const vreal *dy, const vreal *x, const vreal *gain, const double *mean, const double *rstd,
    vreal *dx, double *dgain, double *dbias, Py_ssize_t n_rows, Py_ssize_t channels,
    Py_ssize_t inner, bint stream,
) noexcept nogil:
    """At most PLANES rows, whatever their statistics."""
    cdef Row rows[PLANES]
    cdef Py_ssize_t r, i, c
    for r in range(n_rows):
        i = r * channels * inner
        c = r * channels
        prepare_row(at(x, i), channels * inner, mean[r], rstd[r], &rows[r], True)
        if rows[r].vector:
            row_planes_sums(at(dy, i), at(x, i), at_or_null(gain, c), dgain + c, dbias + c,
                            &rows[r], channels, inner)
        else:
            plane_row_double(at(dy, i), at(x, i), at_or_null(gain, c), at_out(dx, i), dgain + c,
                             dbias + c, &rows[r], channels, inner)
    for r in range(n_rows):
        i = r * channels * inner
        c = r * channels
        if rows[r].vector and stream:
            row_planes_write(at(dy, i), at(x, i), at_or_null(gain, c), at_out(dx, i), &rows[r],
                             channels, inner, True)
        elif rows[r].vector:
            row_planes_write(at(dy, i), at(x, i), at_or_null(gain, c), at_out(dx, i), &rows[r],
                             channels, inner, False)


cdef inline void planes_part(
    const vreal *dy, const vreal *x, const vreal *gain, const double *mean, const double *rstd,
    vreal *dx, double *partial, const Layout *layout, bint stream, int part, int n_parts,
) noexcept nogil:
    """Some rows: one of n_parts equal parts. partial is (samples, 2, groups, channels)."""
    cdef const vreal *row_gain
    cdef Py_ssize_t channels = layout.channels
    cdef Py_ssize_t inner = layout.inner
    cdef Py_ssize_t n = channels * inner
    cdef Py_ssize_t total = layout.groups * channels
    cdef Py_ssize_t n_rows = layout.samples * layout.groups
    cdef Py_ssize_t first = n_rows * part // n_parts
    cdef Py_ssize_t stop = n_rows * (part + 1) // n_parts
    # All sums of a few rows before their output: the latency of one hides behind the next.
    # Where one core's data comes from further away, fewer: its way goes on beside the output.
    cdef bint far = channels == 1 and n_parts == 1 and n_rows * n > NEAR
    cdef Py_ssize_t in_flight = FAR_GROUP if far else GROUP_FLOATS
    cdef Py_ssize_t size = max(1, min(GROUP if channels > 1 else PLANES, in_flight // n))
    cdef Py_ssize_t group = first % layout.groups
    cdef Py_ssize_t count, i
    cdef double *dgain
    partial = partial + 2 * (first // layout.groups) * total
    while first < stop:
        count = min(min(size, layout.groups - group), stop - first)
        row_gain = at_or_null(gain, group * channels)
        dgain = partial + group * channels
        i = first * n
        if channels > 1 or not some_planes(at(dy, i), at(x, i), row_gain, mean + first,
                                           rstd + first, at_out(dx, i), dgain, dgain + total,
                                           count, inner, stream):
            some_rows(at(dy, i), at(x, i), row_gain, mean + first, rstd + first, at_out(dx, i),
                      dgain, dgain + total, count, channels, inner, stream)
        first += count
        group += count
        if group == layout.groups:
            group = 0
            partial = partial + 2 * total
    if stream:
        vec_fence()
