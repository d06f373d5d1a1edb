"""Moments of rows that are good enough for the output of layer norm: one pass in the row's type.

Design
------
Over d = x - shift, the shift being the mean of the first 16 elements, sums run in the row's type,
folded to double from time to time. Where that is not good enough, which is seen by the moments
themselves, output_moments takes those of rows.pxd.

Of rows below SHORT elements the sums are not folded, and GROUP rows are done together, a row in a
lane, bit for bit as one is alone.
"""
from normlib._kernels.rows cimport GROUP, SHORT, Moments, add_deviations, row_moments, sums_folded
from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_PARTS, MAX_WIDE_VECS, VF64_LANES, at, block_vecs, lanes, vf32, vf64,
    vf64_select_lt, vf64_set, vget, vload_wide, vnarrow, vread, vreal, vround, vset, vstored,
    vsum_wide, vwiden,
)

cdef extern from "transpose.h" nogil:
    vf32 vf32_sum_rows(vf32 *) noexcept
    vf64 vf64_sum_rows(vf64 *) noexcept
    vf32 vf32_sum_row(vf32) noexcept
    vf64 vf64_sum_row(vf64) noexcept

cdef enum:
    QUICK = 16           # elements from which moments good enough for y are tried


cdef inline double first_mean(const vstored *x) noexcept nogil:
    """Mean of the first 16 elements, rounded to the row's type; exact where they are equal."""
    cdef vf64 parts[MAX_WIDE_VECS]
    cdef int k
    cdef int n_parts = vload_wide(x, parts)
    for k in range(1, 16 // lanes(x)):
        vload_wide(at(x, k * lanes(x)), &parts[k * n_parts])
    return vround(vsum_wide(x, parts) * (1.0 / 16), x)


cdef inline bint good_moments(const vstored *x, double var, double c) noexcept nogil:
    """Whether quick ones are: mean(d) = c has not eaten up var, no over- or underflow."""
    if vstored is vf64:
        return 1e-280 < var < 1e280 and c * c <= var
    else:
        return 1e-30 < var < 1e30 and c * c <= var


cdef inline void quick_moments(
    const vstored *x,       # IN  (n_rows, n)
    Moments *out,           # OUT (n_rows,)
    bint *good,             # OUT (n_rows,)
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t n,
    const vreal *like,
) noexcept nogil:
    """Moments good enough for y, of float32 rows; good tells where they are.

    They are not where mean(d)**2 would eat up var, on overflow and underflow (and so for constant
    rows), and with NaN. Step by step over the rows, whose latencies so overlap.
    """
    cdef double shift[GROUP]
    cdef vf64 wide1[GROUP * MAX_WIDE_VECS]
    cdef vf64 wide2[GROUP * MAX_WIDE_VECS]
    cdef double inverse = 1.0 / n
    cdef double c, var
    cdef Py_ssize_t r
    for r in range(n_rows):
        shift[r] = first_mean(at(x, r * n))
    for r in range(n_rows):
        sums_folded(at(x, r * n), wide1 + r * MAX_WIDE_VECS, wide2 + r * MAX_WIDE_VECS, n, shift[r],
                    like)
    for r in range(n_rows):
        c = vsum_wide(x, wide1 + r * MAX_WIDE_VECS) * inverse
        var = vsum_wide(x, wide2 + r * MAX_WIDE_VECS) * inverse - c * c
        out[r].mean_hi = vround(shift[r] + c, x)
        out[r].mean_lo = (shift[r] - out[r].mean_hi) + c
        out[r].var = var
        good[r] = good_moments(x, var, c)


cdef inline vreal sum_rows(vreal *rows, const vreal *like) noexcept nogil:
    """Sums over the lanes of as many vectors as one has lanes (overwrites them)."""
    if vreal is vf32:
        return vf32_sum_rows(rows)
    else:
        return vf64_sum_rows(rows)


cdef inline double sum_row(vreal row, const vreal *like) noexcept nogil:
    """The same sum of one vector."""
    if vreal is vf32:
        row = vf32_sum_row(row)
    else:
        row = vf64_sum_row(row)
    return vget(&row, 0)


cdef inline vreal add_halves(vreal *parts, int n) noexcept nogil:
    """Sum of n vectors, a power of two and a constant, by halves."""
    cdef int i
    while n > 1:
        n = n // 2
        for i in range(n):
            parts[i] = parts[i] + parts[i + n]
    return parts[0]


cdef inline vreal first_lanes(const vstored *x, const vreal *like) noexcept nogil:
    """The first 16 elements, added by halves to one vector."""
    cdef vreal parts[MAX_WIDE_VECS]
    cdef int k
    for k in range(16 // lanes(x)):
        parts[k] = vread(at(x, k * lanes(x)), like)
    return add_halves(parts, 16 // lanes(x))


cdef inline void short_sums(
    const vstored *x,       # IN  (n,)
    vreal *out1,            # OUT
    vreal *out2,            # OUT
    Py_ssize_t n,           # less than SHORT
    double shift,
) noexcept nogil:
    """Sums of d and of d**2, d = x - shift, in the type of out1: what a last vector has to add."""
    cdef vreal acc1[MAX_BLOCK_VECS]
    cdef vreal acc2[MAX_BLOCK_VECS]
    cdef int k
    cdef int quarter = block_vecs(x) // 4
    for k in range(block_vecs(x)):
        acc1[k] = vset(0, out1)
        acc2[k] = vset(0, out1)
    add_deviations(x, n, shift, acc1, acc2)
    for k in range(quarter):
        acc1[k] = (acc1[k] + acc1[k + quarter]) + (acc1[k + 2 * quarter] + acc1[k + 3 * quarter])
        acc2[k] = (acc2[k] + acc2[k + quarter]) + (acc2[k + 2 * quarter] + acc2[k + 3 * quarter])
    out1[0] = add_halves(acc1, quarter)
    out2[0] = add_halves(acc2, quarter)


cdef inline void short_moments(
    const vstored *x,       # IN  (n_rows, n), n from QUICK to SHORT
    Moments *out,           # OUT (n_rows,)
    bint *good,             # OUT (n_rows,)
    Py_ssize_t n_rows,
    Py_ssize_t n,
    const vreal *like,
) noexcept nogil:
    """Quick moments of short rows, one by one."""
    cdef vreal sum1, sum2
    cdef double inverse = 1.0 / n
    cdef double shift, c, var
    cdef Py_ssize_t r
    for r in range(n_rows):
        shift = vround(sum_row(first_lanes(at(x, r * n), like), like) * (1.0 / 16), x)
        short_sums(at(x, r * n), &sum1, &sum2, n, shift)
        c = sum_row(sum1, like) * inverse
        var = sum_row(sum2, like) * inverse - c * c
        out[r].mean_hi = vround(shift + c, x)
        out[r].mean_lo = (shift - out[r].mean_hi) + c
        out[r].var = var
        good[r] = good_moments(x, var, c)


cdef inline bint short_group_moments(
    const vstored *x,       # IN  (GROUP, n), n from QUICK to SHORT
    vf64 *mean_hi,          # OUT (GROUP,) doubles
    vf64 *mean_lo,          # OUT (GROUP,) doubles
    vf64 *var,              # OUT (GROUP,) doubles
    Py_ssize_t n,
    const vreal *like,
) noexcept nogil:
    """short_moments of GROUP rows, bit for bit, a row in a lane; whether all are good."""
    cdef vreal rows[GROUP]
    cdef vreal sums1[GROUP]
    cdef vreal sums2[GROUP]
    cdef vreal shift[MAX_WIDE_VECS]
    cdef vf64 from_[MAX_PARTS]
    cdef vf64 c[MAX_PARTS]
    cdef vf64 d2[MAX_PARTS]
    cdef vf64 mean[MAX_PARTS]
    cdef vf64 inverse = vf64_set(1.0 / n)
    cdef vf64 least = vf64_set(1e-280 if vstored is vf64 else 1e-30)
    cdef vf64 most = vf64_set(1e280 if vstored is vf64 else 1e30)
    cdef vf64 none = vf64_set(0)
    cdef vf64 one = vf64_set(1)
    cdef vf64 bad = vf64_set(0)
    cdef vf64 v
    cdef int g, p, r
    cdef int width = lanes(x)
    cdef int n_parts = lanes(x) // VF64_LANES
    for g in range(GROUP // width):
        for r in range(width):
            rows[r] = first_lanes(at(x, (g * width + r) * n), like)
        shift[g] = sum_rows(rows, like) * vset(1.0 / 16, like)
    for r in range(GROUP):
        short_sums(at(x, r * n), &sums1[r], &sums2[r], n, vget(shift, r))
    for g in range(GROUP // width):
        vwiden(shift[g], from_)
        vwiden(sum_rows(&sums1[g * width], like), c)
        vwiden(sum_rows(&sums2[g * width], like), d2)
        for p in range(n_parts):
            c[p] = c[p] * inverse
            mean[p] = from_[p] + c[p]
        vwiden(vnarrow(mean, shift[g]), mean)
        for p in range(n_parts):
            r = g * n_parts + p
            v = d2[p] * inverse - c[p] * c[p]
            mean_hi[r] = mean[p]
            mean_lo[r] = (from_[p] - mean[p]) + c[p]
            var[r] = v
            bad = bad + vf64_select_lt(least, v, none, one)
            bad = bad + vf64_select_lt(v, most, none, one)
            bad = bad + vf64_select_lt(v, c[p] * c[p], one, none)
    return sum_row(bad, &bad) == 0


cdef inline void output_moments(
    const vstored *x,       # IN  (n_rows, n)
    Moments *out,           # OUT (n_rows,)
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t n,
) noexcept nogil:
    """Moments of rows that are good enough for y: quick ones, or else those of row_moments."""
    cdef bint good[GROUP]
    cdef Py_ssize_t r
    if n >= SHORT:
        if vstored is vf64:
            quick_moments(x, out, good, n_rows, n, x)
        else:
            quick_moments(x, out, good, n_rows, n, <const vf32 *>NULL)
    elif n >= QUICK:
        if vstored is vf64:
            short_moments(x, out, good, n_rows, n, x)
        else:
            short_moments(x, out, good, n_rows, n, <const vf32 *>NULL)
    for r in range(n_rows):
        if n < QUICK or not good[r]:
            row_moments(at(x, r * n), n, &out[r])
