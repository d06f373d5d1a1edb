"""Gradients of group norm by planes: runs of one channel of a sample, inner elements each.

Design
------
A channel's sums over its plane of dy, dy * xhat and, where a row has several planes, xhat serve dx
and, added up over the samples, dbias and dgain.

Sums of dy are taken about the first value of its row, lest rounding eat up dx where g is nearly
constant; what that shift adds to the sums of dy * xhat vanishes over a row of equal gains, as xhat
sums to zero.
"""
from normlib._kernels.affine cimport at_or_null
from normlib._kernels.groups cimport Layout
from normlib._kernels.row_gradients cimport Row, prepare_row
from normlib._kernels.rows cimport FOLD, GROUP, GROUP_FLOATS
from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_WIDE_VECS, at, at_out, block_vecs, lanes, vec_fence, vf64, vf64_set, vfirst,
    vfma, vfold, vget, vload_first, vput, vreal, vround, vset, vstore, vstore_first, vsum_wide,
)


cdef struct Sums:
    double d             # of dy - shift
    double dx            # of that times xhat
    double x             # of xhat


cdef inline void plane_sums(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    Sums *sums,             # OUT
    Py_ssize_t n,
    double shift,           # in the row's type
    const Row *row,
    bint want_x,            # a constant: whether to sum xhat, too
) noexcept nogil:
    cdef vreal acc1[MAX_BLOCK_VECS]
    cdef vreal acc2[MAX_BLOCK_VECS]
    cdef vreal acc3[MAX_BLOCK_VECS]
    cdef vf64 wide1[MAX_WIDE_VECS]
    cdef vf64 wide2[MAX_WIDE_VECS]
    cdef vf64 wide3[MAX_WIDE_VECS]
    cdef vreal m = vset(row.mean_hi, x)
    cdef vreal s = vset(row.rstd, x)
    cdef vreal t = vset(row.offset, x)
    cdef vreal q = vset(shift, x)
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
    sums.d = vsum_wide(x, wide1)
    sums.dx = vsum_wide(x, wide2)
    sums.x = vsum_wide(x, wide3) if want_x else 0


cdef inline void plane_gradient(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    vreal *dx,              # OUT (n,)
    Py_ssize_t n,
    double factor,          # the gain of the channel
    double base,            # mean(g) = base + rest
    double rest,
    double mean_gx,
    const Row *row,
    bint stream,            # a constant: past the cache
) noexcept nogil:
    cdef vreal m = vset(row.mean_hi, x)
    cdef vreal s = vset(row.rstd, x)
    cdef vreal t = vset(row.offset, x)
    # mean(g) in two parts: where g is nearly constant, g - mean(g) must not lose it.
    cdef double mean_g = vround(base + rest, x)
    cdef vreal a_hi = vset(mean_g, x)
    cdef vreal a_lo = vset((base - mean_g) + rest, x)
    cdef vreal b = vset(-mean_gx, x)
    cdef vreal f = vset(factor, x)
    cdef vreal g, xhat
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t left
    while i + width <= n:
        g = at(dy, i)[0] * f
        xhat = vfma(at(x, i)[0] - m, s, t)
        vstore(at_out(dx, i), vfma(xhat, b, (g - a_hi) - a_lo) * s, stream)
        i += width
    if i < n:
        left = n - i
        g = vload_first(at(dy, i), left) * f
        xhat = vfma(vload_first(at(x, i), left) - m, s, t)
        vstore_first(at_out(dx, i), vfma(xhat, b, (g - a_hi) - a_lo) * s, left)


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


cdef struct Means:
    double base          # mean(g) = base + rest
    double rest
    double gx            # mean(g * xhat)


cdef inline void row_planes_sums(
    const vreal *dy,        # IN  (channels, inner)
    const vreal *x,         # IN  (channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    double *dgain,          # OUT (channels,): of this row alone
    double *dbias,          # OUT (channels,)
    const Row *row,
    Means *means,           # OUT
    Py_ssize_t channels,
    Py_ssize_t inner,
) noexcept nogil:
    cdef Sums sums
    cdef double n = <double>channels * <double>inner
    cdef double shift = vget(dy, 0)
    cdef double first = factor_of(gain, 0)
    cdef double factor
    cdef double factors = 0
    cdef double d = 0
    cdef double dx = 0
    cdef Py_ssize_t c, i
    for c in range(channels):
        i = c * inner
        factor = factor_of(gain, c)
        if channels == 1:
            # The sum of xhat over the row is 0.
            plane_sums(at(dy, i), at(x, i), &sums, inner, shift, row, False)
        else:
            plane_sums(at(dy, i), at(x, i), &sums, inner, shift, row, True)
        dgain[c] = sums.dx + shift * sums.x
        dbias[c] = sums.d + shift * inner
        factors += factor
        d += factor * sums.d
        # For the same reason, that of first * xhat is left out.
        dx += factor * sums.dx + shift * (factor - first) * sums.x
    means.base = shift * (factors / channels)
    means.rest = d / n
    means.gx = dx / n


cdef inline void row_planes_write(
    const vreal *dy,        # IN  (channels, inner)
    const vreal *x,         # IN  (channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    vreal *dx,              # OUT (channels, inner)
    const Row *row,
    const Means *means,
    Py_ssize_t channels,
    Py_ssize_t inner,
    bint stream,            # a constant: past the cache
) noexcept nogil:
    cdef double factor
    cdef Py_ssize_t c, i
    for c in range(channels):
        i = c * inner
        factor = factor_of(gain, c)
        plane_gradient(at(dy, i), at(x, i), at_out(dx, i), inner, factor, means.base, means.rest,
                       means.gx, row, stream)


cdef inline void planes_part(
    const vreal *dy, const vreal *x, const vreal *gain, const double *mean, const double *rstd,
    vreal *dx, double *partial, const Layout *layout, bint stream, int part, int n_parts,
) noexcept nogil:
    """Some rows: one of n_parts equal parts. partial is (samples, 2, groups, channels)."""
    cdef Row rows[GROUP]
    cdef Means means[GROUP]
    cdef const vreal *gains[GROUP]
    cdef Py_ssize_t channels = layout.channels
    cdef Py_ssize_t inner = layout.inner
    cdef Py_ssize_t n = channels * inner
    cdef Py_ssize_t total = layout.groups * channels
    cdef Py_ssize_t n_rows = layout.samples * layout.groups
    cdef Py_ssize_t first = n_rows * part // n_parts
    cdef Py_ssize_t stop = n_rows * (part + 1) // n_parts
    # All sums of a few rows before their output: the latency of one hides behind the next.
    cdef Py_ssize_t size = max(1, min(GROUP, GROUP_FLOATS // n))
    cdef Py_ssize_t group = first % layout.groups
    cdef Py_ssize_t count, r, i
    cdef double *dgain
    partial = partial + 2 * (first // layout.groups) * total
    while first < stop:
        count = min(size, stop - first)
        for r in range(count):
            gains[r] = at_or_null(gain, group * channels)
            dgain = partial + group * channels
            i = (first + r) * n
            prepare_row(at(x, i), n, mean[first + r], rstd[first + r], &rows[r], True)
            if rows[r].vector:
                row_planes_sums(at(dy, i), at(x, i), gains[r], dgain, dgain + total, &rows[r],
                                &means[r], channels, inner)
            else:
                plane_row_double(at(dy, i), at(x, i), gains[r], at_out(dx, i), dgain, dgain + total,
                                 &rows[r], channels, inner)
            group += 1
            if group == layout.groups:
                group = 0
                partial = partial + 2 * total
        for r in range(count):
            i = (first + r) * n
            if rows[r].vector and stream:
                row_planes_write(at(dy, i), at(x, i), gains[r], at_out(dx, i), &rows[r], &means[r],
                                 channels, inner, True)
            elif rows[r].vector:
                row_planes_write(at(dy, i), at(x, i), gains[r], at_out(dx, i), &rows[r], &means[r],
                                 channels, inner, False)
        first += count
    if stream:
        vec_fence()
