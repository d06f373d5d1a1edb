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

The output of layer norm takes less, where that is good enough: quick_moments.pxd.
"""
from libc.math cimport fabs, frexp, isfinite, ldexp, sqrt

from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_PARTS, MAX_WIDE_VECS, VF64_LANES, at, block_vecs, lanes, vf64, vf64_set,
    vfirst, vfma, vfold, vget, vload_first, vload_first_wide, vload_wide, vread, vread_first, vreal,
    vround, vset, vstored, vsum_wide, wide_vecs,
)

cdef enum:
    FOLD = 8             # blocks between two folds to double
    SHORT = 192          # elements below which their sums stay in the row's type
    GROUP = 16           # rows in flight: as many doubles as MAX_WIDE_VECS vectors hold
    GROUP_FLOATS = 3072  # floats, or half as many doubles, in a group (benchmarks.thresholds)


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


cdef inline Py_ssize_t chunk_size(const vstored *x) noexcept nogil:
    if vstored is vf64:
        return 2048
    else:
        return 16384


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


cdef inline void add_deviations(
    const vstored *x,       # IN  (n,)
    Py_ssize_t n,
    double shift,
    vreal *acc1,            # IN/OUT a block
    vreal *acc2,            # IN/OUT a block
) noexcept nogil:
    """Add d and d**2, d = x - shift, in the type of the sums."""
    cdef vreal minus_shift = vset(-shift, acc1)
    cdef vreal one = vset(1, acc1)
    cdef vreal d
    cdef int k
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t left
    cdef const vstored *p
    while i + n_vecs * width <= n:
        p = at(x, i)
        for k in range(n_vecs):
            # A subtraction, on the ports of the multiplier, as the adder's are in use.
            d = vfma(vread(p + k, acc1), one, minus_shift)
            acc1[k] = acc1[k] + d
            acc2[k] = vfma(d, d, acc2[k])
        i += n_vecs * width
    if i < n:
        p = at(x, i)
        for k in range(n_vecs):
            left = n - i - k * width
            if left >= width:
                d = vread(p + k, acc1) + minus_shift
                acc1[k] = acc1[k] + d
                acc2[k] = vfma(d, d, acc2[k])
            elif left > 0:
                d = vfirst(vread_first(p + k, left, acc1) + minus_shift, left)
                acc1[k] = acc1[k] + d
                acc2[k] = vfma(d, d, acc2[k])


cdef inline void sums_folded(
    const vstored *x,       # IN  (n,)
    vf64 *out1,             # OUT (MAX_WIDE_VECS,)
    vf64 *out2,             # OUT (MAX_WIDE_VECS,)
    Py_ssize_t n,
    double shift,
    const vreal *like,
) noexcept nogil:
    """Sums of d and of d**2, d = x - shift, in the type of like, folded to lanes of double."""
    cdef vreal acc1[MAX_BLOCK_VECS]
    cdef vreal acc2[MAX_BLOCK_VECS]
    cdef vf64 wide1[MAX_WIDE_VECS]
    cdef vf64 wide2[MAX_WIDE_VECS]
    cdef int k
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t stop
    for k in range(MAX_WIDE_VECS):
        wide1[k] = vf64_set(0)
        wide2[k] = vf64_set(0)
    while i < n:
        for k in range(n_vecs):
            acc1[k] = vset(0, like)
            acc2[k] = vset(0, like)
        stop = min(i + FOLD * n_vecs * lanes(x), n)
        add_deviations(at(x, i), stop - i, shift, acc1, acc2)
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
    sums_folded(x, wide1, wide2, n, m, x)
    sum_d[0] = vsum_wide(x, wide1)
    sum_d2[0] = vsum_wide(x, wide2)


cdef inline void sums_wide(const vstored *x, Py_ssize_t n, double shift,
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
            n_parts = vload_first_wide(at(x, i + k * width), left, parts)
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


cdef inline void merge_row(Merged *all, const vstored *x, Py_ssize_t n) noexcept nogil:
    """Add a row of any length."""
    cdef Py_ssize_t chunk = chunk_size(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t count
    cdef double m, sum_d, sum_d2
    while i < n:
        count = min(chunk, n - i)
        if vstored is vf64:
            m = coarse_mean(at(x, i), count)
            sums_about(at(x, i), count, m, &sum_d, &sum_d2)
        else:
            m = vget(x, i)
            sums_wide(at(x, i), count, m, &sum_d, &sum_d2)
        merge(all, count, m, sum_d / count, sum_d2 - sum_d * (sum_d / count))
        i += count


cdef inline void merged_moments(const Merged *all, const vstored *x, Moments *out) noexcept nogil:
    """Moments of all that was merged; x tells the type."""
    out.mean_hi = vround(all.origin + all.mean, x)
    out.mean_lo = (all.origin - out.mean_hi) + all.mean
    out.var = all.m2 / all.n
    if out.var < 0:
        out.var = 0


cdef inline void row_moments(const vstored *x, Py_ssize_t n, Moments *out) noexcept nogil:
    """Moments of a row, n > 0."""
    cdef Merged all
    merge_none(&all)
    merge_row(&all, x, n)
    merged_moments(&all, x, out)


cdef inline bint needs_scaling(const vstored *x, double var, double eps) noexcept nogil:
    """Whether var is not finite, or lost to underflow what would show next to eps."""
    cdef double smallest = 1e-290
    if vstored is vf64:
        return not isfinite(var) or (var < smallest and smallest + eps != eps)
    else:
        return False


cdef inline void scaled_moments(const vstored *x, Py_ssize_t outer, Py_ssize_t stride,
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
    if out.var == 0 and out.exponent > 0:   # constant, and eps might underflow if it were scaled
        out.mean_hi = ldexp(out.mean_hi, out.exponent)
        out.mean_lo = ldexp(out.mean_lo, out.exponent)
        out.exponent = 0
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


cdef inline bint vector_range(const vstored *x, double scale) noexcept nogil:
    """Whether scale can be a factor in the row's type: not about to overflow or underflow there.

    True for 0, Inf and NaN, which no other type would hold better.
    """
    cdef double size = fabs(scale)
    if size == 0 or not isfinite(size):
        return True
    if vstored is vf64:
        return 1e-290 < size < 1e290
    else:
        return 1e-30 < size < 1e30
