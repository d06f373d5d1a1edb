"""Moments of one row, in a fixed order, exact where the mean dwarfs the spread.

Design
------
float32: one pass in double over d = x - x[0], in 16 lanes::

    mean = x[0] + mean(d),  var = mean(d**2) - mean(d)**2

The shift keeps mean(d)**2 below n times var, so what cancels is lost from 53 bits and does not
reach the 24 of the row; squares of floats neither overflow nor underflow in double. One pass in
double beats two in float32 (docs/design/moments.md).

float64 has no wider type, so two passes, by the corrected formula::

    m = round(x[0] + mean(x - x[0]))      # near the mean; any error of it is undone by c
    d = x - m,  c = mean(d)
    mean = m + c,  var = mean(d**2) - c**2

Longer rows go by chunks, which bounds the shift's n for float32 and keeps the second pass of
float64 in L1; chunks are merged in their order (Chan, Golub, LeVeque 1979).

A float64 row whose squares overflow or underflow is done again, scaled by a power of two.
A constant row has d = 0, and so exactly var = 0.
"""
from libc.math cimport fabs, frexp, isfinite, ldexp, sqrt

from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_PARTS, MAX_WIDE_VECS, VF64_LANES, vf32, vf64, vf64_set, vreal,
    at, block_vecs, lanes, vfirst, vfma, vfold, vget, vload_first, vload_wide, vround, vset,
    vsum_wide, vwiden, wide_vecs,
)

cdef enum:
    FOLD = 8             # blocks between two folds to double
    QUICK = 192          # shorter float32 rows gain nothing from quick moments
    GROUP = 8            # rows in flight
    GROUP_FLOATS = 3072  # elements in a group of rows (benchmarks.thresholds)


cdef struct Moments:
    double mean_hi       # in the row's type
    double mean_lo       # mean = mean_hi + mean_lo
    double var


cdef struct Merged:
    double n
    double origin        # the first group's coarse mean, about which the rest is summed
    double mean          # mean of all, minus origin
    double m2            # sum of squared deviations from that mean


cdef struct ScaledMoments:
    int exponent         # of the scale: moments of x * 2**-exponent
    double mean_hi
    double mean_lo
    double var
    double rstd


cdef inline Py_ssize_t chunk_size(const vreal *x) noexcept nogil:
    if vreal is vf32:
        return 16384
    else:
        return 2048


cdef inline double coarse_mean(const vreal *x, Py_ssize_t n) noexcept nogil:
    """The mean, rounded to the row's type, to within a little of the spread."""
    cdef vreal acc[MAX_BLOCK_VECS]
    cdef vf64 wide[MAX_WIDE_VECS]
    cdef double first = vget(x, 0)
    cdef vreal shift = vset(first, x)
    cdef int k
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t left
    cdef const vreal *p
    for k in range(n_vecs):
        acc[k] = vset(0, x)
    for k in range(MAX_WIDE_VECS):
        wide[k] = vf64_set(0)
    while i + n_vecs * width <= n:
        p = at(x, i)
        for k in range(n_vecs):
            acc[k] = acc[k] + (p[k] - shift)
        i += n_vecs * width
    if i < n:
        p = at(x, i)
        for k in range(n_vecs):
            left = n - i - k * width
            acc[k] = acc[k] + vfirst(vload_first(p + k, left) - shift, left)
    vfold(acc, wide)
    return vround(first + vsum_wide(x, wide) / n, x)


cdef inline double first_mean(const vreal *x) noexcept nogil:
    """Mean of the first 16 elements, rounded to the row's type; exact where they are equal."""
    cdef vf64 parts[MAX_WIDE_VECS]
    cdef int k
    cdef int n_parts = vload_wide(x, parts)
    for k in range(1, 16 // lanes(x)):
        vload_wide(at(x, k * lanes(x)), &parts[k * n_parts])
    return vround(vsum_wide(x, parts) * (1.0 / 16), x)


cdef inline void sums_folded(
    const vreal *x,         # IN  (n,)
    vf64 *out1,             # OUT (MAX_WIDE_VECS,)
    vf64 *out2,             # OUT (MAX_WIDE_VECS,)
    Py_ssize_t n,
    double shift,
) noexcept nogil:
    """Sums of d and of d**2, d = x - shift, in the row's type, folded to lanes of double."""
    cdef vreal acc1[MAX_BLOCK_VECS]
    cdef vreal acc2[MAX_BLOCK_VECS]
    cdef vf64 wide1[MAX_WIDE_VECS]
    cdef vf64 wide2[MAX_WIDE_VECS]
    cdef vreal minus_shift = vset(-shift, x)
    cdef vreal one = vset(1, x)
    cdef vreal d
    cdef int k
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t stop, left
    cdef const vreal *p
    for k in range(MAX_WIDE_VECS):
        wide1[k] = vf64_set(0)
        wide2[k] = vf64_set(0)
    while i < n:
        for k in range(n_vecs):
            acc1[k] = vset(0, x)
            acc2[k] = vset(0, x)
        stop = min(i + FOLD * n_vecs * width, n)
        while i + n_vecs * width <= stop:
            p = at(x, i)
            for k in range(n_vecs):
                # A subtraction, on the ports of the multiplier, as the adder's are in use.
                d = vfma(p[k], one, minus_shift)
                acc1[k] = acc1[k] + d
                acc2[k] = vfma(d, d, acc2[k])
            i += n_vecs * width
        if i < stop:
            p = at(x, i)
            for k in range(n_vecs):
                left = stop - i - k * width
                d = vfirst(vload_first(p + k, left) + minus_shift, left)
                acc1[k] = acc1[k] + d
                acc2[k] = vfma(d, d, acc2[k])
            i = stop
        vfold(acc1, wide1)
        vfold(acc2, wide2)
    for k in range(MAX_WIDE_VECS):
        out1[k] = wide1[k]
        out2[k] = wide2[k]


cdef inline void sums_about(const vreal *x, Py_ssize_t n, double m,
                            double *sum_d, double *sum_d2) noexcept nogil:
    """Sums of d and of d**2, d = x - m, for m in the row's type."""
    cdef vf64 wide1[MAX_WIDE_VECS]
    cdef vf64 wide2[MAX_WIDE_VECS]
    sums_folded(x, wide1, wide2, n, m)
    sum_d[0] = vsum_wide(x, wide1)
    sum_d2[0] = vsum_wide(x, wide2)


cdef inline void quick_moments(
    const vreal *x,         # IN  (n_rows, n)
    Moments *out,           # OUT (n_rows,)
    bint *good,             # OUT (n_rows,)
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t n,
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
        sums_folded(at(x, r * n), wide1 + r * MAX_WIDE_VECS, wide2 + r * MAX_WIDE_VECS, n, shift[r])
    for r in range(n_rows):
        c = vsum_wide(x, wide1 + r * MAX_WIDE_VECS) * inverse
        var = vsum_wide(x, wide2 + r * MAX_WIDE_VECS) * inverse - c * c
        out[r].mean_hi = vround(shift[r] + c, x)
        out[r].mean_lo = (shift[r] - out[r].mean_hi) + c
        out[r].var = var
        good[r] = 1e-30 < var < 1e30 and c * c <= var


cdef inline void sums_wide(const vreal *x, Py_ssize_t n, double shift,
                           double *sum_d, double *sum_d2) noexcept nogil:
    """Sums of d and of d**2, d = x - shift, in double."""
    cdef vf64 acc1[MAX_WIDE_VECS]
    cdef vf64 acc2[MAX_WIDE_VECS]
    cdef vf64 parts[MAX_PARTS]
    cdef vf64 minus_shift = vf64_set(-shift)
    cdef vf64 one = vf64_set(1)
    cdef vf64 d
    cdef int k, p, n_parts, slot
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t left
    for k in range(MAX_WIDE_VECS):
        acc1[k] = vf64_set(0)
        acc2[k] = vf64_set(0)
    while i + n_vecs * width <= n:
        for k in range(n_vecs):
            n_parts = vload_wide(at(x, i + k * width), parts)
            for p in range(n_parts):
                # A subtraction, on the ports of the multiplier: those of the adder are full.
                d = vfma(parts[p], one, minus_shift)
                slot = (k * n_parts + p) % wide_vecs(x)
                acc1[slot] = acc1[slot] + d
                acc2[slot] = vfma(d, d, acc2[slot])
        i += n_vecs * width
    if i < n:
        for k in range(n_vecs):
            left = n - i - k * width
            n_parts = vwiden(vload_first(at(x, i + k * width), left), parts)
            for p in range(n_parts):
                d = vfirst(parts[p] + minus_shift, left - p * VF64_LANES)
                slot = (k * n_parts + p) % wide_vecs(x)
                acc1[slot] = acc1[slot] + d
                acc2[slot] = vfma(d, d, acc2[slot])
    sum_d[0] = vsum_wide(x, acc1)
    sum_d2[0] = vsum_wide(x, acc2)


cdef inline void merge_none(Merged *all) noexcept nogil:
    all.n = 0
    all.origin = 0
    all.mean = 0
    all.m2 = 0


cdef inline void merge(Merged *all, double n, double m, double c, double m2) noexcept nogil:
    """Add n values of mean m + c, and m2 the sum of their squared deviations from it."""
    cdef double delta
    if all.n == 0:
        all.n = n
        all.origin = m
        all.mean = c
        all.m2 = m2
        return
    delta = (m - all.origin) + c - all.mean
    all.mean += delta * (n / (all.n + n))
    all.m2 += m2 + delta * delta * (all.n * n / (all.n + n))
    all.n += n


cdef inline void merge_row(Merged *all, const vreal *x, Py_ssize_t n) noexcept nogil:
    """Add a row of any length."""
    cdef Py_ssize_t chunk = chunk_size(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t count
    cdef double m, sum_d, sum_d2
    while i < n:
        count = min(chunk, n - i)
        if vreal is vf32:
            m = vget(x, i)
            sums_wide(at(x, i), count, m, &sum_d, &sum_d2)
        else:
            m = coarse_mean(at(x, i), count)
            sums_about(at(x, i), count, m, &sum_d, &sum_d2)
        merge(all, count, m, sum_d / count, sum_d2 - sum_d * (sum_d / count))
        i += count


cdef inline void merged_moments(const Merged *all, const vreal *x, Moments *out) noexcept nogil:
    """Moments of all that was merged; x tells the type."""
    out.mean_hi = vround(all.origin + all.mean, x)
    out.mean_lo = (all.origin - out.mean_hi) + all.mean
    out.var = all.m2 / all.n
    if out.var < 0:
        out.var = 0


cdef inline void row_moments(const vreal *x, Py_ssize_t n, Moments *out) noexcept nogil:
    """Moments of a row, n > 0."""
    cdef Merged all
    merge_none(&all)
    merge_row(&all, x, n)
    merged_moments(&all, x, out)


cdef inline bint needs_scaling(const vreal *x, double var, double eps) noexcept nogil:
    """Whether var is not finite, or lost to underflow what would show next to eps."""
    cdef double smallest = 1e-290
    if vreal is vf32:
        return False
    else:
        return not isfinite(var) or (var < smallest and smallest + eps != eps)


cdef inline void scaled_moments(const vreal *x, Py_ssize_t outer, Py_ssize_t stride,
                                Py_ssize_t inner, double eps, ScaledMoments *out) noexcept nogil:
    """Moments of outer runs of inner elements, stride apart, in double and free of overflow."""
    cdef double largest = 0
    cdef double total, d, sum_d, sum_d2, first
    cdef double n = <double>outer * <double>inner
    cdef Py_ssize_t i, j
    for i in range(outer):
        for j in range(inner):
            d = fabs(vget(x, i * stride + j))
            if d > largest:
                largest = d
    out.exponent = 0
    if largest > 0 and isfinite(largest):
        frexp(largest, &out.exponent)
        # eps is scaled too, and must stay finite.
        if eps > 0 and out.exponent < -400:
            out.exponent = -400
    first = ldexp(vget(x, 0), -out.exponent)
    total = 0
    for i in range(outer):
        for j in range(inner):
            total += ldexp(vget(x, i * stride + j), -out.exponent) - first
    out.mean_hi = first + total / n
    sum_d = 0
    sum_d2 = 0
    for i in range(outer):
        for j in range(inner):
            d = ldexp(vget(x, i * stride + j), -out.exponent) - out.mean_hi
            sum_d += d
            sum_d2 += d * d
    out.mean_lo = sum_d / n
    out.var = sum_d2 / n - out.mean_lo * out.mean_lo
    if out.var < 0:
        out.var = 0
    out.rstd = 1 / sqrt(out.var + ldexp(eps, -2 * out.exponent))


cdef inline double scaled_xhat(double x, const ScaledMoments *moments) noexcept nogil:
    """(x - mean) * rstd."""
    return (ldexp(x, -moments.exponent) - moments.mean_hi - moments.mean_lo) * moments.rstd


cdef inline double unscaled_mean(const ScaledMoments *moments) noexcept nogil:
    return ldexp(moments.mean_hi + moments.mean_lo, moments.exponent)


cdef inline double unscaled_var(const ScaledMoments *moments) noexcept nogil:
    return ldexp(moments.var, 2 * moments.exponent)


cdef inline double unscaled_rstd(const ScaledMoments *moments) noexcept nogil:
    return ldexp(moments.rstd, -moments.exponent)


cdef inline bint vector_range(const vreal *x, double scale) noexcept nogil:
    """Whether scale can be a factor in the row's type: not about to overflow or underflow there.

    True for 0, Inf and NaN, which no other type would hold better.
    """
    cdef double size = fabs(scale)
    if size == 0 or not isfinite(size):
        return True
    if vreal is vf32:
        return 1e-30 < size < 1e30
    else:
        return 1e-290 < size < 1e290
