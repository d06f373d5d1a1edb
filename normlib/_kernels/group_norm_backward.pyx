"""Gradients of group normalization of x (samples, channels, inner).

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), statistics and dgain and
dbias in float64, no axis empty, groups dividing the channels.

Design
------
With g = dy * gain, and xhat recomputed as fma(x - mean_hi, rstd, offset), in each row (a group of
a sample):

    dx = rstd * (g - mean(g) - xhat * mean(g * xhat))

By planes, a channel's sums over its plane of dy and dy * xhat serve dx and, added up over the
samples, dbias and dgain. Where inner is 1 ("elements"), dgain and dbias are sums of columns, as in
layer_norm_backward.pyx: over blocks of samples, of a size that only the shape decides, then over
the blocks in their order.

Sums of dy are taken about its first value, lest rounding eat up dx where g is nearly constant; what
that shift adds to the sums of dy * xhat vanishes over a row of equal gains, as xhat sums to zero.
"""
from cython.parallel cimport prange
from libc.math cimport fabs

from normlib._kernels.affine cimport at_or_null
from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.norm_rows cimport NormBackward, backward_capsule
from normlib._kernels.row_sums cimport add_row_any
from normlib._kernels.rows cimport FOLD, GROUP, sums_about, vector_range
from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_WIDE_VECS, STREAM_FLOATS, at, at_out, block_vecs, lanes, to_boundary,
    vadd_to, vec_fence, vf32, vf64, vf64_set, vfirst, vfma, vfold, vget, vload, vload_first, vput,
    vreal, vround, vset, vstore, vstore_first, vsum_wide,
)

cdef enum:
    SAMPLES = 64         # samples in a block of columns, at least
    BLOCK_ELEMENTS = 4096
    GROUP_FLOATS = 3072  # elements in a group of rows, as for layer norm


cdef struct Layout:
    Py_ssize_t samples
    Py_ssize_t groups
    Py_ssize_t channels  # of a group
    Py_ssize_t inner


cdef struct Row:
    bint vector          # not so extreme that double is needed
    double mean_hi       # xhat = fma(x - mean_hi, rstd, offset)
    double mean_lo
    double offset
    double rstd


cdef struct Sums:
    double d             # of dy * gain - shift
    double dx            # of that times xhat
    double x             # of xhat


cdef inline void prepare_row(const vreal *x, Py_ssize_t n, double mean, double rstd,
                             Row *row) noexcept nogil:
    cdef double sum_d, sum_d2, rest
    row.mean_hi = vround(mean, x)
    row.mean_lo = mean - row.mean_hi
    if vreal is vf64:
        # What a double has no room for: the mean of the deviations from it.
        sums_about(x, n, mean, &sum_d, &sum_d2)
        rest = sum_d / n
        if fabs(rest) <= 4e-16 * fabs(mean):
            row.mean_lo = rest
    row.rstd = rstd
    row.offset = -row.mean_lo * rstd
    row.vector = vector_range(x, rstd)


cdef inline vreal times(vreal v, const vreal *gain, Py_ssize_t n, bint has_gain) noexcept nogil:
    if not has_gain:
        return v
    return v * vload(gain, n, n == lanes(gain))


cdef inline void sum_run(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    const vreal *gain,      # IN  (n,), if has_gain
    Sums *sums,             # OUT
    Py_ssize_t n,
    double shift,           # in the row's type
    const Row *row,
    bint has_gain,          # a constant
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
                d = times(at(dy, j)[0], at(gain, j), width, has_gain) - q
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
                    d = times(at(dy, j)[0], at(gain, j), width, has_gain) - q
                    xhat = vfma(at(x, j)[0] - m, s, t)
                elif left > 0:
                    d = times(vload_first(at(dy, j), left), at(gain, j), left, has_gain) - q
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


cdef inline void write_run(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    const vreal *gain,      # IN  (n,), if has_gain
    vreal *dx,              # OUT (n,)
    Py_ssize_t n,
    double factor,          # the gain of all, if not has_gain
    double base,            # mean(g) = base + rest
    double rest,
    double mean_gx,
    const Row *row,
    bint has_gain,          # a constant
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
        g = at(dy, i)[0] * at(gain, i)[0] if has_gain else at(dy, i)[0] * f
        xhat = vfma(at(x, i)[0] - m, s, t)
        vstore(at_out(dx, i), vfma(xhat, b, (g - a_hi) - a_lo) * s, stream)
        i += width
    if i < n:
        left = n - i
        g = vload_first(at(dy, i), left) * (vload_first(at(gain, i), left) if has_gain else f)
        xhat = vfma(vload_first(at(x, i), left) - m, s, t)
        vstore_first(at_out(dx, i), vfma(xhat, b, (g - a_hi) - a_lo) * s, left)


cdef void row_double(
    const vreal *dy,        # IN  (channels, inner)
    const vreal *x,         # IN  (channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    vreal *dx,              # OUT (channels, inner)
    double *dgain,          # IN/OUT (channels,): added to; or NULL
    double *dbias,          # IN/OUT (channels,): added to; or NULL
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
        factor = 1 if gain == NULL else vget(gain, c)
        for i in range(c * inner, (c + 1) * inner):
            xhat = ((vget(x, i) - row.mean_hi) - row.mean_lo) * row.rstd
            g = vget(dy, i)
            if dgain != NULL:
                dgain[c] += g * xhat
            if dbias != NULL:
                dbias[c] += g
            mean_g += g * factor / n
            mean_gx += g * factor * xhat / n
    for c in range(channels):
        factor = 1 if gain == NULL else vget(gain, c)
        for i in range(c * inner, (c + 1) * inner):
            xhat = ((vget(x, i) - row.mean_hi) - row.mean_lo) * row.rstd
            vput(dx, i, (vget(dy, i) * factor - mean_g - xhat * mean_gx) * row.rstd)


# ---- planes --------------------------------------------------------------------------------------


cdef struct Means:
    double base          # mean(g) = base + rest
    double rest
    double gx            # mean(g * xhat)


cdef inline void planes_sums(
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
    cdef double first = 1 if gain == NULL else vget(gain, 0)
    cdef double factor
    cdef double factors = 0
    cdef double d = 0
    cdef double dx = 0
    cdef Py_ssize_t c, i
    for c in range(channels):
        i = c * inner
        factor = 1 if gain == NULL else vget(gain, c)
        if channels == 1:
            # The sum of xhat over the row is 0.
            sum_run(at(dy, i), at(x, i), NULL, &sums, inner, shift, row, False, False)
        else:
            sum_run(at(dy, i), at(x, i), NULL, &sums, inner, shift, row, False, True)
        dgain[c] = sums.dx + shift * sums.x
        dbias[c] = sums.d + shift * inner
        factors += factor
        d += factor * sums.d
        # For the same reason, that of first * xhat is left out.
        dx += factor * sums.dx + shift * (factor - first) * sums.x
    means.base = shift * (factors / channels)
    means.rest = d / n
    means.gx = dx / n


cdef inline void planes_write(
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
        factor = 1 if gain == NULL else vget(gain, c)
        write_run(at(dy, i), at(x, i), NULL, at_out(dx, i), inner, factor, means.base, means.rest,
                  means.gx, row, False, stream)


cdef void planes_part(
    const vreal *dy, const vreal *x, const vreal *gain, const double *mean, const double *rstd,
    vreal *dx, double *partial, const Layout *layout, bint stream, int part, int n_parts,
) noexcept nogil:
    """Some rows: one of n_parts equal parts. partial is (samples, 2, groups, channels)."""
    cdef Row rows[GROUP]
    cdef Means means[GROUP]
    cdef const vreal *row_gain
    cdef Py_ssize_t channels = layout.channels
    cdef Py_ssize_t inner = layout.inner
    cdef Py_ssize_t n = channels * inner
    cdef Py_ssize_t total = layout.groups * channels
    cdef Py_ssize_t n_rows = layout.samples * layout.groups
    cdef Py_ssize_t first = n_rows * part // n_parts
    cdef Py_ssize_t stop = n_rows * (part + 1) // n_parts
    # All sums of a few rows before their output: the latency of one hides behind the next.
    cdef Py_ssize_t size = max(1, min(GROUP, GROUP_FLOATS // n))
    cdef Py_ssize_t count, r, i, c
    cdef double *dgain
    while first < stop:
        count = min(size, stop - first)
        for r in range(count):
            i = (first + r) // layout.groups
            c = (first + r) % layout.groups * channels
            dgain = partial + 2 * i * total + c
            row_gain = at_or_null(gain, c)
            i = (first + r) * n
            prepare_row(at(x, i), n, mean[first + r], rstd[first + r], &rows[r])
            if rows[r].vector:
                planes_sums(at(dy, i), at(x, i), row_gain, dgain, dgain + total, &rows[r],
                            &means[r], channels, inner)
            else:
                for c in range(channels):
                    dgain[c] = 0
                    dgain[total + c] = 0
                row_double(at(dy, i), at(x, i), row_gain, at_out(dx, i), dgain, dgain + total,
                           &rows[r], channels, inner)
        for r in range(count):
            if not rows[r].vector:
                continue
            row_gain = at_or_null(gain, (first + r) % layout.groups * channels)
            i = (first + r) * n
            if stream:
                planes_write(at(dy, i), at(x, i), row_gain, at_out(dx, i), &rows[r], &means[r],
                             channels, inner, True)
            else:
                planes_write(at(dy, i), at(x, i), row_gain, at_out(dx, i), &rows[r], &means[r],
                             channels, inner, False)
        first += count
    if stream:
        vec_fence()


# ---- elements ------------------------------------------------------------------------------------


cdef inline void add_columns(
    const vreal *dy,        # IN  (n_rows, stride), at the first column
    const vreal *x,         # IN  (n_rows, stride)
    const Row *rows,        # IN  (n_rows,)
    double *dgain,          # IN/OUT (block,)
    double *dbias,          # IN/OUT (block,)
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t stride,
    Py_ssize_t n_columns,   # at most one block
    bint full,              # a constant: exactly one block
) noexcept nogil:
    """Add the rows' dy * xhat and dy to the sums of the columns."""
    cdef vreal acc1[MAX_BLOCK_VECS]
    cdef vreal acc2[MAX_BLOCK_VECS]
    cdef vreal g, xhat, m, s, t
    cdef int k
    cdef int n_vecs = block_vecs(x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t r, j, left
    for k in range(n_vecs):
        acc1[k] = vset(0, x)
        acc2[k] = vset(0, x)
    for r in range(n_rows):
        if not rows[r].vector:
            continue
        m = vset(rows[r].mean_hi, x)
        s = vset(rows[r].rstd, x)
        t = vset(rows[r].offset, x)
        for k in range(n_vecs):
            left = n_columns - k * width
            j = r * stride + k * width
            g = vload(at(dy, j), left, full)
            xhat = vfma(vload(at(x, j), left, full) - m, s, t)
            if not full:
                # The columns behind belong to the next group.
                xhat = vfirst(xhat, left)
            acc1[k] = acc1[k] + g
            acc2[k] = vfma(g, xhat, acc2[k])
    for k in range(n_vecs):
        vadd_to(dbias + k * width, acc1[k])
        vadd_to(dgain + k * width, acc2[k])


cdef inline void elements_row(
    const vreal *dy, const vreal *x, const vreal *gain, vreal *dx, Py_ssize_t n, const Row *row,
    bint has_gain, bint stream,
) noexcept nogil:
    cdef Sums sums
    cdef double shift = vround(vget(dy, 0) * (vget(gain, 0) if has_gain else 1), x)
    sum_run(dy, x, gain, &sums, n, shift, row, has_gain, False)
    write_run(dy, x, gain, dx, n, 1, shift, sums.d / n, sums.dx / n, row, has_gain, stream)


cdef void elements_block(
    const vreal *dy,        # IN  (samples, groups, channels)
    const vreal *x,         # IN  (samples, groups, channels)
    const vreal *gain,      # IN  (groups, channels) or NULL
    const double *mean,     # IN  (samples, groups)
    const double *rstd,     # IN  (samples, groups)
    vreal *dx,              # OUT (samples, groups, channels)
    double *dgain,          # OUT (groups * channels and a block more,)
    double *dbias,          # OUT (groups * channels and a block more,)
    Py_ssize_t samples,
    Py_ssize_t padded,
    const Layout *layout,
    bint stream,
) noexcept nogil:
    cdef Row rows[GROUP]
    cdef const vreal *g
    cdef Py_ssize_t block = block_vecs(x) * lanes(x)
    cdef Py_ssize_t n = layout.channels
    cdef Py_ssize_t stride = layout.groups * n
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t count, group, r, i, j
    for i in range(padded):
        dgain[i] = 0
        dbias[i] = 0
    while first < samples:
        count = min(GROUP, samples - first)
        for group in range(layout.groups):
            g = at_or_null(gain, group * n)
            for r in range(count):
                i = (first + r) * stride + group * n
                j = (first + r) * layout.groups + group
                prepare_row(at(x, i), n, mean[j], rstd[j], &rows[r])
                if not rows[r].vector:
                    row_double(at(dy, i), at(x, i), g, at_out(dx, i), dgain + group * n,
                               dbias + group * n, &rows[r], n, 1)
                elif gain != NULL and stream:
                    elements_row(at(dy, i), at(x, i), g, at_out(dx, i), n, &rows[r], True, True)
                elif gain != NULL:
                    elements_row(at(dy, i), at(x, i), g, at_out(dx, i), n, &rows[r], True, False)
                elif stream:
                    elements_row(at(dy, i), at(x, i), g, at_out(dx, i), n, &rows[r], False, True)
                else:
                    elements_row(at(dy, i), at(x, i), g, at_out(dx, i), n, &rows[r], False, False)
            i = 0
            j = first * stride + group * n
            while i + block <= n:
                add_columns(at(dy, j + i), at(x, j + i), rows, dgain + group * n + i,
                            dbias + group * n + i, count, stride, block, True)
                i += block
            if i < n:
                add_columns(at(dy, j + i), at(x, j + i), rows, dgain + group * n + i,
                            dbias + group * n + i, count, stride, n - i, False)
        first += GROUP
    if stream:
        vec_fence()


cdef inline Py_ssize_t block_samples(Py_ssize_t channels) noexcept nogil:
    """Samples in a block: more where they are short, lest the scratch outgrow the input."""
    return max(SAMPLES, BLOCK_ELEMENTS // channels)


cdef inline void elements_part(
    const vreal *dy, const vreal *x, const vreal *gain, const double *mean, const double *rstd,
    vreal *dx, double *partial, const Layout *layout, Py_ssize_t padded, bint stream, Py_ssize_t b,
) noexcept nogil:
    """Block b. partial is (blocks, 2, padded)."""
    cdef Py_ssize_t total = layout.groups * layout.channels
    cdef Py_ssize_t size = block_samples(total)
    cdef Py_ssize_t first = b * size
    elements_block(at(dy, first * total), at(x, first * total), gain,
                   mean + first * layout.groups, rstd + first * layout.groups,
                   at_out(dx, first * total), partial + 2 * b * padded,
                   partial + (2 * b + 1) * padded, min(size, layout.samples - first), padded,
                   layout, stream)


# ---- both ----------------------------------------------------------------------------------------


cdef void backward_all(const vreal *dy, const vreal *x, const vreal *gain, const double *mean,
                       const double *rstd, vreal *dx, double *dgain, double *dbias,
                       double *partial, Layout layout, Py_ssize_t n_blocks, Py_ssize_t padded,
                       int n_threads) noexcept nogil:
    cdef Py_ssize_t total = layout.groups * layout.channels
    cdef Py_ssize_t run = layout.channels if layout.inner == 1 else layout.inner
    cdef bint stream = (layout.samples * total * layout.inner >= STREAM_FLOATS
                        and run % lanes(x) == 0 and to_boundary(dx) == 0)
    cdef Py_ssize_t b, c
    cdef int part
    if layout.inner > 1 and n_threads == 1:
        planes_part(dy, x, gain, mean, rstd, dx, partial, &layout, stream, 0, 1)
    elif layout.inner > 1:
        for part in prange(n_threads, schedule="static", num_threads=n_threads):
            planes_part(dy, x, gain, mean, rstd, dx, partial, &layout, stream, part, n_threads)
    elif n_threads == 1:
        for b in range(n_blocks):
            elements_part(dy, x, gain, mean, rstd, dx, partial, &layout, padded, stream, b)
    else:
        for b in prange(n_blocks, schedule="static", num_threads=n_threads):
            elements_part(dy, x, gain, mean, rstd, dx, partial, &layout, padded, stream, b)
    for c in range(total):
        dgain[c] = 0
        dbias[c] = 0
    for b in range(n_blocks):
        for c in range(total):
            dgain[c] += partial[2 * b * padded + c]
            dbias[c] += partial[(2 * b + 1) * padded + c]


def scratch_shape(Py_ssize_t samples, Py_ssize_t channels, Py_ssize_t inner):
    """Shape of the float64 scratch: blocks of samples, dgain and dbias, channels."""
    cdef Py_ssize_t size = block_samples(channels)
    if inner > 1:
        return samples, 2, channels
    return (samples + size - 1) // size, 2, (channels + 63) // 64 * 64 + 64


def group_norm_backward(dy, x, Py_ssize_t groups, gain, mean, rstd, dx, dgain, dbias, partial,
                        int n_threads):
    """Gradients of group_norm_forward; gain may be None. dgain, dbias (channels,) are float64."""
    cdef Layout layout = Layout(dim(x, 0), groups, dim(x, 1) // groups, dim(x, 2))
    cdef Py_ssize_t n_blocks = dim(partial, 0)
    cdef Py_ssize_t padded = dim(partial, 2)
    cdef void *dy_data = address(dy)
    cdef void *x_data = address(x)
    cdef void *gain_data = address(gain)
    cdef double *mean_data = <double *>address(mean)
    cdef double *rstd_data = <double *>address(rstd)
    cdef void *dx_data = address(dx)
    cdef double *dgain_data = <double *>address(dgain)
    cdef double *dbias_data = <double *>address(dbias)
    cdef double *partial_data = <double *>address(partial)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            backward_all[vf32](<vf32 *>dy_data, <vf32 *>x_data, <vf32 *>gain_data, mean_data,
                               rstd_data, <vf32 *>dx_data, dgain_data, dbias_data, partial_data,
                               layout, n_blocks, padded, n_threads)
        else:
            backward_all[vf64](<vf64 *>dy_data, <vf64 *>x_data, <vf64 *>gain_data, mean_data,
                               rstd_data, <vf64 *>dx_data, dgain_data, dbias_data, partial_data,
                               layout, n_blocks, padded, n_threads)


# ---- one row, for a loop of others ---------------------------------------------------------------


cdef void backward_one(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    vreal *dx,              # OUT (n,)
    Py_ssize_t n,
    const vreal **parameters,   # IN  gain, bias, the number of groups
    double eps,
    const double *cache,    # IN  mean (groups,), rstd (groups,)
    double **gradients,     # IN/OUT of gain, of bias
) noexcept nogil:
    cdef Py_ssize_t groups = <Py_ssize_t>vget(parameters[2], 0)
    cdef Py_ssize_t channels = n // groups
    cdef Py_ssize_t group, i
    cdef const vreal *gain
    cdef double *dgain
    cdef double *dbias
    cdef Row row
    for group in range(groups):
        i = group * channels
        gain = at_or_null(parameters[0], i)
        dgain = NULL if gradients[0] == NULL else gradients[0] + i
        dbias = NULL if gradients[1] == NULL else gradients[1] + i
        prepare_row(at(x, i), channels, cache[group], cache[groups + group], &row)
        if not row.vector:
            row_double(at(dy, i), at(x, i), gain, at_out(dx, i), dgain, dbias, &row, channels, 1)
            continue
        if gain != NULL:
            elements_row(at(dy, i), at(x, i), gain, at_out(dx, i), channels, &row, True, False)
        else:
            elements_row(at(dy, i), at(x, i), gain, at_out(dx, i), channels, &row, False, False)
        add_row_any(at(dy, i), at(x, i), channels, row.mean_hi, row.rstd, row.offset, dgain, dbias,
                    True)


def row_function(bint single):
    """A capsule of the function for a row, the gradient of that in group_norm.pyx."""
    return backward_capsule(<NormBackward>backward_one[vf32], <NormBackward>backward_one[vf64],
                            single)


cdef void affine_only_backward(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    vreal *dx,              # OUT (n,)
    Py_ssize_t n,
    const vreal **parameters,   # IN  gain, bias
    double eps,
    const double *cache,    # not used
    double **gradients,     # IN/OUT of gain, of bias
) noexcept nogil:
    cdef const vreal *gain = parameters[0]
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t count
    while i < n:
        count = min(lanes(x), n - i)
        vstore_first(at_out(dx, i), times(vload_first(at(dy, i), count), at_or_null(gain, i), count,
                                          gain != NULL), count)
        i += count
    add_row_any(dy, x, n, 0, 1, 0, gradients[0], gradients[1], False)


def affine_function(bint single):
    """A capsule of the gradient of that in group_norm.pyx."""
    return backward_capsule(<NormBackward>affine_only_backward[vf32],
                            <NormBackward>affine_only_backward[vf64], single)
