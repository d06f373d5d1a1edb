"""Gradients of group norm by planes: runs of one channel of a sample, inner elements each.

Design
------
Sums over a plane of dy, dy * xhat and xhat serve dx and, added up over the samples, dbias and
dgain. They are taken of TOGETHER planes in one pass, as in row_gradients.pxd, whose formula for dx
this is, too.

Sums of dy are taken about the first value of its row, lest rounding eat up dx where g is nearly
constant; what that shift adds to the sums of dy * xhat vanishes over a row of equal gains, as xhat
sums to zero.
"""
from normlib._kernels.affine cimport at_or_null
from normlib._kernels.groups cimport Layout
from normlib._kernels.row_gradients cimport Row, TOGETHER, finish_row, gradient, prepare_row
from normlib._kernels.rows cimport FOLD, GROUP, GROUP_FLOATS
from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_PARTS, MAX_WIDE_VECS, at, at_out, block_vecs, lanes, vec_fence, vf64,
    vf64_set, vfirst, vfma, vget, vload_first, vput, vreal, vset, vstore, vstore_first, vsum_wide,
    vwiden,
)


cdef struct Sums:
    double d             # of dy - shift
    double dx            # of that times xhat
    double x             # of xhat


cdef inline void plane_sums(
    const vreal *dy,        # IN  (n_planes, n)
    const vreal *x,         # IN  (n_planes, n)
    const Row **rows,       # IN  (n_planes,): those that the planes are of
    Sums *sums,             # OUT (n_planes,)
    Py_ssize_t n,
    int n_planes,           # a constant, at most TOGETHER
    bint want_x,            # a constant: whether to sum xhat, too
) noexcept nogil:
    cdef vreal acc1[TOGETHER * MAX_BLOCK_VECS]
    cdef vreal acc2[TOGETHER * MAX_BLOCK_VECS]
    cdef vreal acc3[TOGETHER * MAX_BLOCK_VECS]
    cdef vf64 wide1[TOGETHER * MAX_WIDE_VECS]
    cdef vf64 wide2[TOGETHER * MAX_WIDE_VECS]
    cdef vf64 wide3[TOGETHER * MAX_WIDE_VECS]
    cdef vf64 parts[MAX_PARTS]
    cdef vreal m[TOGETHER]
    cdef vreal s[TOGETHER]
    cdef vreal t[TOGETHER]
    cdef vreal q[TOGETHER]
    cdef vreal one = vset(1, x)
    cdef vreal d, xhat
    cdef int r, k, p, slot, n_parts
    cdef int n_vecs = block_vecs(x) // 4
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j, left, stop
    for r in range(n_planes):
        m[r] = vset(rows[r].mean_hi, x)
        s[r] = vset(rows[r].rstd, x)
        t[r] = vset(rows[r].offset, x)
        q[r] = vset(-rows[r].first, x)
        for k in range(MAX_WIDE_VECS):
            wide1[r * MAX_WIDE_VECS + k] = vf64_set(0)
            wide2[r * MAX_WIDE_VECS + k] = vf64_set(0)
            wide3[r * MAX_WIDE_VECS + k] = vf64_set(0)
    while i < n:
        for k in range(n_planes * n_vecs):
            acc1[k] = vset(0, x)
            acc2[k] = vset(0, x)
            acc3[k] = vset(0, x)
        stop = min(i + 2 * FOLD * n_vecs * width, n)
        while i + n_vecs * width <= stop:
            for k in range(n_vecs):
                j = i + k * width
                for r in range(n_planes):
                    # Some sums on the ports of the multiplier, as the adder's are in use.
                    d = vfma(at(dy, r * n + j)[0], one, q[r])
                    xhat = vfma(at(x, r * n + j)[0] - m[r], s[r], t[r])
                    slot = r * n_vecs + k
                    acc1[slot] = acc1[slot] + d
                    acc2[slot] = vfma(d, xhat, acc2[slot])
                    if want_x:
                        acc3[slot] = acc3[slot] + xhat
            i += n_vecs * width
        if i < stop:
            for k in range(n_vecs):
                j = i + k * width
                left = stop - j
                for r in range(n_planes):
                    d = vfirst(vload_first(at(dy, r * n + j), left) + q[r], left)
                    xhat = vfma(vload_first(at(x, r * n + j), left) - m[r], s[r], t[r])
                    xhat = vfirst(xhat, left)
                    slot = r * n_vecs + k
                    acc1[slot] = acc1[slot] + d
                    acc2[slot] = vfma(d, xhat, acc2[slot])
                    if want_x:
                        acc3[slot] = acc3[slot] + xhat
            i = stop
        for r in range(n_planes):
            for k in range(n_vecs):
                n_parts = vwiden(acc1[r * n_vecs + k], parts)
                slot = r * MAX_WIDE_VECS + k * n_parts
                for p in range(n_parts):
                    wide1[slot + p] = wide1[slot + p] + parts[p]
                vwiden(acc2[r * n_vecs + k], parts)
                for p in range(n_parts):
                    wide2[slot + p] = wide2[slot + p] + parts[p]
                if want_x:
                    vwiden(acc3[r * n_vecs + k], parts)
                    for p in range(n_parts):
                        wide3[slot + p] = wide3[slot + p] + parts[p]
    for r in range(n_planes):
        sums[r].d = vsum_wide(x, wide1 + r * MAX_WIDE_VECS)
        sums[r].dx = vsum_wide(x, wide2 + r * MAX_WIDE_VECS)
        sums[r].x = vsum_wide(x, wide3 + r * MAX_WIDE_VECS) if want_x else 0


cdef inline void plane_gradient(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    vreal *dx,              # OUT (n,)
    Py_ssize_t n,
    double factor,          # the gain of the channel
    const Row *row,         # finished
    bint linear,            # a constant
    bint stream,            # a constant: past the cache
) noexcept nogil:
    cdef vreal m = vset(row.mean_hi, x)
    cdef vreal s = vset(row.rstd, x)
    cdef vreal t = vset(row.offset, x)
    cdef vreal a = vset(-row.center, x)
    cdef vreal b = vset(row.slope if linear else -row.mean_gx, x)
    cdef vreal c = vset(row.level if linear else row.rest, x)
    cdef vreal f = vset(factor, x)
    cdef vreal g
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    while i + width <= n:
        g = vfma(at(dy, i)[0], f, a)
        vstore(at_out(dx, i), gradient(g, at(x, i)[0] - m, s, t, b, c, linear), stream)
        i += width
    if i < n:
        g = vfma(vload_first(at(dy, i), n - i), f, a)
        g = gradient(g, vload_first(at(x, i), n - i) - m, s, t, b, c, linear)
        vstore_first(at_out(dx, i), g, n - i)


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


cdef inline void finish_planes(
    const vreal *x,         # tells the type
    const Sums *sums,       # IN  (channels,)
    const vreal *gain,      # IN  (channels,) or NULL
    double *dgain,          # OUT (channels,)
    double *dbias,          # OUT (channels,)
    Row *row,               # IN/OUT
    Py_ssize_t first,       # of these channels in the row
    Py_ssize_t channels,
    Py_ssize_t inner,
    double *totals,         # IN/OUT of the row: of gains, of d, of dx
) noexcept nogil:
    """Add what some planes of a row bring."""
    cdef double shift = row.first
    cdef double factor
    cdef Py_ssize_t c
    for c in range(channels):
        factor = factor_of(gain, first + c)
        dgain[first + c] = sums[c].dx + shift * sums[c].x
        dbias[first + c] = sums[c].d + shift * inner
        totals[0] += factor
        totals[1] += factor * sums[c].d
        # As xhat sums to zero over the row, the first gain times that is left out.
        totals[2] += factor * sums[c].dx + shift * (factor - factor_of(gain, 0)) * sums[c].x


cdef inline void planes_rows(
    const vreal *dy,        # IN  (n_rows, channels, inner)
    const vreal *x,         # IN  (n_rows, channels, inner)
    const vreal **gains,    # IN  (n_rows,): (channels,) or NULL
    vreal *dx,              # OUT (n_rows, channels, inner)
    double **dgains,        # OUT (n_rows,): (channels,)
    double **dbiases,       # OUT (n_rows,): (channels,)
    Row *rows,              # IN/OUT (n_rows,): prepared
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t channels,
    Py_ssize_t inner,
    bint stream,
) noexcept nogil:
    cdef Sums sums[TOGETHER]
    cdef const Row *of[TOGETHER]
    cdef double totals[3 * GROUP]
    cdef double inverse = 1.0 / (<double>channels * <double>inner)
    cdef Py_ssize_t planes = n_rows * channels
    cdef Py_ssize_t p = 0
    cdef Py_ssize_t r = 0
    cdef Py_ssize_t c = 0
    cdef Py_ssize_t count, k, i
    cdef double factor
    for k in range(n_rows):
        rows[k].first = vget(dy, k * channels * inner)
    for k in range(3 * n_rows):
        totals[k] = 0
    while p < planes:
        # Four planes side by side, of one row or of several.
        count = min(<Py_ssize_t>TOGETHER, planes - p)
        i = p * inner
        for k in range(count):
            of[k] = &rows[r + (c + k) // channels] if channels > 1 else &rows[r + k]
        if count == TOGETHER and channels == 1:
            # The sum of xhat over the row is 0.
            plane_sums(at(dy, i), at(x, i), of, sums, inner, TOGETHER, False)
        elif count == TOGETHER:
            plane_sums(at(dy, i), at(x, i), of, sums, inner, TOGETHER, True)
        else:
            for k in range(count):
                if channels == 1:
                    plane_sums(at(dy, i + k * inner), at(x, i + k * inner), of + k, sums + k,
                               inner, 1, False)
                else:
                    plane_sums(at(dy, i + k * inner), at(x, i + k * inner), of + k, sums + k,
                               inner, 1, True)
        for k in range(count):
            finish_planes(x, sums + k, gains[r], dgains[r], dbiases[r], &rows[r], c, 1, inner,
                          totals + 3 * r)
            c += 1
            if c == channels:
                c = 0
                r += 1
        p += count
    for r in range(n_rows):
        if not rows[r].vector:
            i = r * channels * inner
            plane_row_double(at(dy, i), at(x, i), gains[r], at_out(dx, i), dgains[r], dbiases[r],
                             &rows[r], channels, inner)
            continue
        rows[r].first *= totals[3 * r] / channels
        finish_row(x, &rows[r], totals[3 * r + 1] * inverse, totals[3 * r + 2] * inverse)
    for r in range(n_rows):
        if not rows[r].vector:
            continue
        for c in range(channels):
            i = (r * channels + c) * inner
            factor = factor_of(gains[r], c)
            if not rows[r].linear:
                plane_gradient(at(dy, i), at(x, i), at_out(dx, i), inner, factor, &rows[r], False,
                               False)
            elif stream:
                plane_gradient(at(dy, i), at(x, i), at_out(dx, i), inner, factor, &rows[r], True,
                               True)
            else:
                plane_gradient(at(dy, i), at(x, i), at_out(dx, i), inner, factor, &rows[r], True,
                               False)


cdef inline void planes_part(
    const vreal *dy, const vreal *x, const vreal *gain, const double *mean, const double *rstd,
    vreal *dx, double *partial, const Layout *layout, bint stream, int part, int n_parts,
) noexcept nogil:
    """Some rows: one of n_parts equal parts. partial is (samples, 2, groups, channels)."""
    cdef Row rows[GROUP]
    cdef const vreal *gains[GROUP]
    cdef double *dgains[GROUP]
    cdef double *dbiases[GROUP]
    cdef Py_ssize_t channels = layout.channels
    cdef Py_ssize_t n = channels * layout.inner
    cdef Py_ssize_t total = layout.groups * channels
    cdef Py_ssize_t n_rows = layout.samples * layout.groups
    cdef Py_ssize_t first = n_rows * part // n_parts
    cdef Py_ssize_t stop = n_rows * (part + 1) // n_parts
    # All sums of a few rows before their output: the latency of one hides behind the next.
    cdef Py_ssize_t size = max(1, min(GROUP, GROUP_FLOATS // n))
    cdef Py_ssize_t group = first % layout.groups
    cdef Py_ssize_t count, r, i
    partial = partial + 2 * (first // layout.groups) * total
    while first < stop:
        count = min(size, stop - first)
        for r in range(count):
            gains[r] = at_or_null(gain, group * channels)
            dgains[r] = partial + group * channels
            dbiases[r] = dgains[r] + total
            i = (first + r) * n
            prepare_row(at(x, i), n, mean[first + r], rstd[first + r], &rows[r], True)
            group += 1
            if group == layout.groups:
                group = 0
                partial = partial + 2 * total
        i = first * n
        planes_rows(at(dy, i), at(x, i), gains, at_out(dx, i), dgains, dbiases, rows, count,
                    channels, layout.inner, stream)
        first += count
    if stream:
        vec_fence()
