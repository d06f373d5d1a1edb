"""Root-mean-square normalization of rows.

Arrays come in checked: C-contiguous, of one dtype, gain of that in which it is computed, statistics
in float64, at least one row and one feature.

Design
------
y = x * rstd * gain, with rstd = 1 / sqrt(mean(x**2) + eps). Rows go by groups
(row_groups.pxd), all their sums of squares first and then their output. A float32 row's sum
for y is taken in float32, folded to double every FOLD blocks, and again in double if it is extreme
or the statistics are asked for; squares of floats neither overflow nor underflow there. float64
rows whose squares do are done again, scaled by a power of two.
"""
cimport numpy as cnp
from libc.math cimport fabs, frexp, isfinite, ldexp, sqrt

from normlib._kernels.affine cimport affine_row
from normlib._kernels.arrays cimport dim
from normlib._kernels.norm_rows cimport NormForward, NormRows, forward_capsule, rows_capsule
from normlib._kernels.row_groups cimport (
    Normalization, NormalizeGroup, normalize, normalize_plain,
)
from normlib._kernels.rows cimport FOLD, GROUP, SHORT, needs_scaling, vector_range
from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_PARTS, MAX_WIDE_VECS, at, at_out, block_vecs, lanes, to_boundary, vbrain,
    vf32, vf64, vf64_set, vfma, vfold, vget, vhalf, vload_first_wide, vload_wide, vput, vread,
    vread_first, vreal, vset, vstored, vsum_wide, vwrite, wide_vecs,
)

cnp.import_array()


cdef struct Scaled:
    int exponent         # of the scale: x * 2**-exponent has squares of a usual size
    double rstd          # of the scaled row


cdef inline void squares_folded(
    const vstored *x,       # IN  (n,)
    vf64 *out,              # OUT (MAX_WIDE_VECS,)
    Py_ssize_t n,
    const vreal *like,
) noexcept nogil:
    """The sum of squares in the row's type, folded to lanes of double."""
    cdef vreal acc[MAX_BLOCK_VECS]
    cdef vf64 wide[MAX_WIDE_VECS]
    cdef vreal v
    cdef int k
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t stop
    cdef const vstored *p
    for k in range(MAX_WIDE_VECS):
        wide[k] = vf64_set(0)
    while i < n:
        for k in range(n_vecs):
            acc[k] = vset(0, like)
        stop = min(i + FOLD * n_vecs * width, n)
        while i + n_vecs * width <= stop:
            p = at(x, i)
            for k in range(n_vecs):
                v = vread(p + k, like)
                acc[k] = vfma(v, v, acc[k])
            i += n_vecs * width
        if i < stop:
            p = at(x, i)
            for k in range(n_vecs):
                v = vread_first(p + k, stop - i - k * width, like)
                acc[k] = vfma(v, v, acc[k])
            i = stop
        vfold(acc, wide)
    for k in range(MAX_WIDE_VECS):
        out[k] = wide[k]


cdef inline double squares_wide(const vstored *x, Py_ssize_t n) noexcept nogil:
    """The sum of squares in double."""
    cdef vf64 acc[MAX_WIDE_VECS]
    cdef vf64 parts[MAX_PARTS]
    cdef int k, p, n_parts, slot
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    for k in range(MAX_WIDE_VECS):
        acc[k] = vf64_set(0)
    while i + n_vecs * width <= n:
        for k in range(n_vecs):
            n_parts = vload_wide(at(x, i + k * width), parts)
            for p in range(n_parts):
                slot = (k * n_parts + p) % wide_vecs(x)
                acc[slot] = vfma(parts[p], parts[p], acc[slot])
        i += n_vecs * width
    if i < n:
        for k in range(n_vecs):
            n_parts = vload_first_wide(at(x, i + k * width), n - i - k * width, parts)
            for p in range(n_parts):
                slot = (k * n_parts + p) % wide_vecs(x)
                acc[slot] = vfma(parts[p], parts[p], acc[slot])
    return vsum_wide(x, acc)


cdef inline void mean_squares(
    const vstored *x,       # IN  (n_rows, n)
    double *out,            # OUT (n_rows,)
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t n,
    const vreal *like,
) noexcept nogil:
    """In the type of like: of float32 rows good enough for y, unless extreme."""
    cdef vf64 wide[GROUP * MAX_WIDE_VECS]
    cdef Py_ssize_t r
    for r in range(n_rows):
        squares_folded(at(x, r * n), wide + r * MAX_WIDE_VECS, n, like)
    for r in range(n_rows):
        out[r] = vsum_wide(x, wide + r * MAX_WIDE_VECS) / n


cdef void scale_row(const vstored *x, Py_ssize_t n, double eps, Scaled *out) noexcept nogil:
    """rstd in double and free of overflow."""
    cdef double largest = 0
    cdef double total = 0
    cdef double part, v
    cdef Py_ssize_t i, j
    for i in range(n):
        v = fabs(vget(x, i))
        if v > largest:
            largest = v
    out.exponent = 0
    if largest > 0 and isfinite(largest):
        frexp(largest, &out.exponent)
        # eps is scaled too, and must stay finite.
        if eps > 0 and out.exponent < -400:
            out.exponent = -400
    i = 0
    while i < n:
        part = 0
        for j in range(i, min(i + 256, n)):
            v = ldexp(vget(x, j), -out.exponent)
            part += v * v
        total += part
        i += 256
    out.rstd = 1 / sqrt(total / n + ldexp(eps, -2 * out.exponent))


cdef void normalize_scaled(
    const vstored *x,       # IN
    const vreal *gain,      # IN  or NULL
    vstored *y,             # OUT, may be x
    Py_ssize_t n,
    const Scaled *scaled,
) noexcept nogil:
    cdef double v
    cdef Py_ssize_t i
    for i in range(n):
        v = ldexp(vget(x, i), -scaled.exponent) * scaled.rstd
        if gain != NULL:
            v = v * vget(gain, i)
        vput(y, i, v)


cdef inline void normalize_pair(
    const vstored *x,       # IN  (2, n)
    const vreal *gain,      # IN
    vstored *y,             # OUT (2, n), may be x
    Py_ssize_t n,
    const double *scale,    # IN  (2,)
    bint stream,
) noexcept nogil:
    """Two rows, for which the gain is loaded once; n is a multiple of four vectors."""
    cdef vreal s0 = vset(scale[0], gain)
    cdef vreal s1 = vset(scale[1], gain)
    cdef vreal g
    cdef int k
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j
    while i < n:
        for k in range(2):
            j = i + k * width
            g = at(gain, j)[0]
            vwrite(at_out(y, j), vread(at(x, j), gain) * s0 * g, stream)
            vwrite(at_out(y, n + j), vread(at(x, n + j), gain) * s1 * g, stream)
        i += 2 * width


cdef inline void normalize_rows(
    const vstored *x,       # IN  (n_rows, n)
    const vreal *gain,      # IN  (n,) or NULL
    vstored *y,             # OUT (n_rows, n), may be x
    Py_ssize_t n_rows,
    Py_ssize_t n,
    const double *scale,    # IN  (n_rows,)
    const bint *skip,       # IN  (n_rows,)
    bint stream,            # a constant; y's rows start cache lines: past the cache with them
) noexcept nogil:
    cdef Py_ssize_t r = 0
    cdef bint pairs = gain != NULL and n % (4 * lanes(x)) == 0 and to_boundary(y) == 0
    while r < n_rows:
        if pairs and r + 1 < n_rows and not skip[r] and not skip[r + 1]:
            normalize_pair(at(x, r * n), gain, at_out(y, r * n), n, scale + r, stream)
            r += 2
            continue
        if not skip[r] and gain != NULL:
            affine_row(at(x, r * n), gain, <const vreal *>NULL, at_out(y, r * n), n, 0, scale[r], 0,
                       False, True, False, stream)
        elif not skip[r]:
            affine_row(at(x, r * n), <const vreal *>NULL, <const vreal *>NULL, at_out(y, r * n), n,
                       0, scale[r], 0, False, False, False, stream)
        r += 1


cdef void forward_group(
    const vstored *x,       # IN  (n_rows, n)
    const vreal *gain,      # IN  (n,) or NULL
    const vreal *bias,      # NULL
    vstored *y,             # OUT (n_rows, n), may be x
    double *mean,           # NULL
    double *rstd,           # OUT (n_rows,) or NULL
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t n,
    double eps,
    bint stream,
) noexcept nogil:
    cdef Scaled scaled
    cdef double mean_square[GROUP]
    cdef double scale[GROUP]
    cdef bint done[GROUP]
    cdef double exact
    cdef Py_ssize_t r
    cdef bint single = vreal is vf32
    cdef bint quick = not single or n >= SHORT
    if quick:
        mean_squares(x, mean_square, n_rows, n, gain)
    for r in range(n_rows):
        if single and not (quick and 1e-30 < mean_square[r] < 1e30):
            mean_square[r] = squares_wide(at(x, r * n), n) / n
    for r in range(n_rows):
        scale[r] = 1 / sqrt(mean_square[r] + eps)
        done[r] = False
    for r in range(n_rows):
        if rstd != NULL:
            exact = squares_wide(at(x, r * n), n) / n if single else mean_square[r]
            rstd[r] = 1 / sqrt(exact + eps)
        if needs_scaling(x, mean_square[r], eps) or not vector_range(x, scale[r]):
            scale_row(at(x, r * n), n, eps, &scaled)
            normalize_scaled(at(x, r * n), gain, at_out(y, r * n), n, &scaled)
            if rstd != NULL:
                rstd[r] = ldexp(scaled.rstd, -scaled.exponent)
            done[r] = True
    if stream:
        normalize_rows(x, gain, y, n_rows, n, scale, done, True)
    else:
        normalize_rows(x, gain, y, n_rows, n, scale, done, False)


# ---- arrays --------------------------------------------------------------------------------------


cdef Normalization RMS_NORM = Normalization(
    <NormalizeGroup>forward_group[vf32, vf32], <NormalizeGroup>forward_group[vf64, vf64],
    <NormalizeGroup>forward_group[vhalf, vf32], <NormalizeGroup>forward_group[vbrain, vf32], False)


def rms_norm_forward(x, residual, gain, double eps, y, total, rstd, int n_threads):
    """Normalize the rows of x (rows, n), or of total = x + residual, into y.

    residual and total, gain and rstd may be None.
    """
    normalize(&RMS_NORM, x, residual, gain, None, eps, y, total, None, rstd, dim(x, 0), dim(x, 1),
              n_threads)


def rms_norm_plain(x, gain, eps, out, bint statistics, threads_for):
    """rms_norm over the last axis, or (y, rstd); None unless every argument is plain."""
    return normalize_plain(&RMS_NORM, x, None, False, gain, None, eps, out, statistics, threads_for)


def add_rms_norm_plain(x, residual, gain, eps, out, bint statistics, threads_for):
    """(y, x + residual) over the last axis, and rstd; None unless every argument is plain."""
    return normalize_plain(&RMS_NORM, x, residual, True, gain, None, eps, out, statistics,
                           threads_for)


# ---- one row, for a loop of others ---------------------------------------------------------------


cdef void forward_row(
    const vreal *x,         # IN  (n,)
    vreal *y,               # OUT (n,)
    Py_ssize_t n,
    const vreal **parameters,   # IN  gain
    double eps,
    double *cache,          # OUT rstd; or NULL
) noexcept nogil:
    forward_group(x, parameters[0], <vreal *>NULL, y, NULL, cache, 1, n, eps, False)


def row_function(bint single):
    """A capsule of the function for a row of float, or else of double; norm_rows.pxd describes it.

    Its parameter is the gain, which may be NULL.
    """
    return forward_capsule(<NormForward>forward_row[vf32], <NormForward>forward_row[vf64], single)


cdef void forward_rows(
    const vreal *x,         # IN  (n_rows, n)
    vreal *y,               # OUT (n_rows, n), may be x
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t n,
    const vreal **parameters,   # IN  gain
    double eps,
) noexcept nogil:
    forward_group(x, parameters[0], <vreal *>NULL, y, NULL, NULL, n_rows, n, eps, False)


def rows_function(bint single):
    """A capsule of the function for a few rows, each with the bits of ``row_function``."""
    return rows_capsule(<NormRows>forward_rows[vf32], <NormRows>forward_rows[vf64], single)
