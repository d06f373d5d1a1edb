"""Gradients of normalized rows: what layer, RMS and group norm share.

Design
------
With g = dy * gain, and xhat recomputed as fma(x - mean_hi, rstd, offset):

    dx = rstd * (g - mean(g) - xhat * mean(g * xhat))

or without mean(g), and with mean_hi = offset = 0, where rows are not centered. One pass takes the
sums of the rows, TOGETHER or, where dx stays in the cache, two of them; a second one writes dx,
while they are in L1, as what is linear in g and x:

    dx = rstd * (g - center) + (x - mean_hi) * slope + level

or, where slope or level leaves the range of its type, as above. To dx may be added the gradient
that came around the normalization.

A row's own sums run in 16 lanes (float64: 8), whatever rows are beside it. Sums of columns are
taken in the first pass over TOGETHER rows, which reads more streams of memory at a time, and in the
second over two, where L1 has room for them. They are narrow, in the row's type, for NARROW_ROWS
rows, and in double beyond; group norm has none, and goes on in double from TOGETHER rows.
"""
from libc.math cimport fabs, isfinite

from normlib._kernels.affine cimport at_or_null, scaled
from normlib._kernels.rows cimport FOLD, sums_about, vector_range
from normlib._kernels.vec cimport (
    MAX_BLOCK_VECS, MAX_PARTS, MAX_WIDE_VECS, at, at_out, block_vecs, lanes, vadd_to, vec_prefetch,
    vf64, vf64_set, vfirst, vfma, vget, vload, vput, vread, vread_first, vreal, vround, vset,
    vstored, vsum_wide, vwiden, vwrite, vwrite_first,
)

cdef enum:
    TOGETHER = 4         # rows that are done together
    NARROW_ROWS = 16     # rows whose columns are summed in their own type, at most
    AHEAD = 256          # elements of a row from which the next ones are prefetched


cdef struct Row:
    bint vector          # not so extreme that double is needed
    double mean_hi       # xhat = fma(x - mean_hi, rstd, offset)
    double mean_lo
    double offset
    double rstd
    double first         # g[0]
    double center        # mean(g), in the row's type
    double rest          # mean(g) - center
    double mean_gx       # mean(g * xhat)
    double slope         # dx = fma(g - center, rstd, fma(x - mean_hi, slope, level))
    double level
    bint linear          # both in range


cdef inline void prepare_row(const vstored *x, Py_ssize_t n, double mean, double rstd, Row *row,
                             bint centered) noexcept nogil:
    """What xhat takes; mean is 0 where rows are not centered, a constant."""
    cdef double sum_d, sum_d2, rest
    row.mean_hi = vround(mean, x)
    row.mean_lo = mean - row.mean_hi
    if vstored is vf64:
        if centered:
            # What a double has no room for: the mean of the deviations from it.
            sums_about(x, n, mean, &sum_d, &sum_d2)
            rest = sum_d / n
            if fabs(rest) <= 4e-16 * fabs(mean):
                row.mean_lo = rest
    row.rstd = rstd
    row.offset = -row.mean_lo * rstd
    row.vector = vector_range(x, rstd)


cdef inline vreal times_minus(vreal v, const vreal *gain, vreal w, Py_ssize_t n, bint has_gain,
                              bint full) noexcept nogil:
    """v * gain - w, rounded once; n elements of gain, full where that is a vector."""
    if not has_gain:
        return v - w
    return vfma(v, vload(gain, n, full), -w)


cdef inline void finish_row(const vstored *x, Row *row, double mean_shifted,
                            double mean_gx) noexcept nogil:
    """What dx takes, from the means of g - g[0] and of its product with xhat."""
    # mean(g) in two parts: where g is nearly constant, g - mean(g) must not lose it.
    row.center = vround(row.first + mean_shifted, x)
    row.rest = (row.first - row.center) + mean_shifted
    row.mean_gx = mean_gx
    row.slope = -mean_gx * row.rstd * row.rstd
    row.level = -(mean_gx * row.offset + row.rest) * row.rstd
    row.linear = isfinite(row.slope) and fabs(row.level) < 1e30 and (
        mean_gx == 0 or row.slope != 0 and vector_range(x, row.slope))


cdef inline void add_column(double *wide, vreal *narrow, Py_ssize_t i, vreal v) noexcept nogil:
    """Add to elements from i on of narrow, or in double where that is NULL, a constant."""
    if narrow == NULL:
        vadd_to(wide + i, v)
    else:
        at_out(narrow, i)[0] = at_out(narrow, i)[0] + v


cdef inline void row_sums(
    const vstored *dy,      # IN  (n_rows, n), its rows stride apart
    const vstored *x,       # IN  the same
    const vreal *gain,      # IN  (n,)
    Row *rows,              # IN/OUT (n_rows,)
    double *dgain,          # IN/OUT (n rounded up to blocks,)
    double *dbias,          # IN/OUT (n rounded up to blocks,), if centered
    vreal *narrow_gain,     # IN/OUT the same, instead, or NULL
    vreal *narrow_bias,     # IN/OUT the same, instead, or NULL
    Py_ssize_t n,
    Py_ssize_t stride,
    int n_rows,             # a constant, at most TOGETHER
    bint centered,          # a constant
    bint has_gain,          # a constant
    bint columns,           # a constant: add to dgain and dbias
) noexcept nogil:
    """Each row's sums, for its dx, and the sums of the columns, from one reading of dy and x."""
    # Sums of g - g[0], if centered: xhat sums to zero, so the shift changes nothing but the
    # rounding, which would eat up dx where g is nearly constant.
    cdef vreal acc1[TOGETHER * MAX_BLOCK_VECS]
    cdef vreal acc2[TOGETHER * MAX_BLOCK_VECS]
    cdef vf64 wide1[TOGETHER * MAX_WIDE_VECS]
    cdef vf64 wide2[TOGETHER * MAX_WIDE_VECS]
    cdef vf64 parts[MAX_PARTS]
    cdef vreal m[TOGETHER]
    cdef vreal s[TOGETHER]
    cdef vreal t[TOGETHER]
    cdef vreal shift[TOGETHER]
    cdef vreal v, g, xhat, column1, column2
    cdef int r, k, p, n_parts
    cdef int n_vecs = block_vecs(x) // 4
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j, left, stop
    for r in range(n_rows):
        rows[r].first = 0
        if centered:
            rows[r].first = vround(vget(dy, r * stride) * (vget(gain, 0) if has_gain else 1), x)
        m[r] = vset(rows[r].mean_hi, gain)
        s[r] = vset(rows[r].rstd, gain)
        t[r] = vset(rows[r].offset, gain)
        shift[r] = vset(rows[r].first, gain)
        for k in range(MAX_WIDE_VECS):
            wide1[r * MAX_WIDE_VECS + k] = vf64_set(0)
            wide2[r * MAX_WIDE_VECS + k] = vf64_set(0)
    while i < n:
        for k in range(n_rows * n_vecs):
            acc1[k] = vset(0, gain)
            acc2[k] = vset(0, gain)
        stop = min(i + 2 * FOLD * n_vecs * width, n)
        while i + n_vecs * width <= stop:
            for k in range(n_vecs):
                j = i + k * width
                column1 = vset(0, gain)
                column2 = vset(0, gain)
                for r in range(n_rows):
                    v = vread(at(dy, r * stride + j), gain)
                    xhat = scaled(vread(at(x, r * stride + j), gain), m[r], s[r], t[r], centered)
                    g = times_minus(v, at(gain, j), shift[r], width, has_gain, True)
                    if centered:
                        acc1[r * n_vecs + k] = acc1[r * n_vecs + k] + g
                    acc2[r * n_vecs + k] = vfma(g, xhat, acc2[r * n_vecs + k])
                    if centered:
                        column1 = column1 + v
                    column2 = vfma(v, xhat, column2)
                if columns and centered:
                    add_column(dbias, narrow_bias, j, column1)
                if columns:
                    add_column(dgain, narrow_gain, j, column2)
            i += n_vecs * width
        if i < stop:
            for k in range(n_vecs):
                j = i + k * width
                left = stop - j
                column1 = vset(0, gain)
                column2 = vset(0, gain)
                for r in range(n_rows):
                    v = vread_first(at(dy, r * stride + j), left, gain)
                    xhat = scaled(vread_first(at(x, r * stride + j), left, gain), m[r], s[r], t[r],
                                  centered)
                    xhat = vfirst(xhat, left)
                    g = times_minus(v, at(gain, j), shift[r], left, has_gain, False)
                    g = vfirst(g, left)
                    if centered:
                        acc1[r * n_vecs + k] = acc1[r * n_vecs + k] + g
                    acc2[r * n_vecs + k] = vfma(g, xhat, acc2[r * n_vecs + k])
                    if centered:
                        column1 = column1 + v
                    column2 = vfma(v, xhat, column2)
                if columns and centered:
                    add_column(dbias, narrow_bias, j, column1)
                if columns:
                    add_column(dgain, narrow_gain, j, column2)
            i = stop
        for r in range(n_rows):
            for k in range(n_vecs):
                n_parts = vwiden(acc2[r * n_vecs + k], parts)
                for p in range(n_parts):
                    j = r * MAX_WIDE_VECS + k * n_parts + p
                    wide2[j] = wide2[j] + parts[p]
                if centered:
                    vwiden(acc1[r * n_vecs + k], parts)
                    for p in range(n_parts):
                        j = r * MAX_WIDE_VECS + k * n_parts + p
                        wide1[j] = wide1[j] + parts[p]
    for r in range(n_rows):
        finish_row(x, rows + r,
                   vsum_wide(x, wide1 + r * MAX_WIDE_VECS) / n if centered else 0.0,
                   vsum_wide(x, wide2 + r * MAX_WIDE_VECS) / n)


cdef inline vreal gradient(vreal g, vreal d, vreal s, vreal t, vreal b, vreal c,
                           bint linear) noexcept nogil:
    """dx of g - center and d = x - mean_hi."""
    if linear:
        return vfma(g, s, vfma(d, b, c))
    return vfma(vfma(d, s, t), b, g - c) * s


cdef inline void row_gradient(
    const vstored *dy,      # IN
    const vstored *x,       # IN
    const vreal *gain,      # IN
    const vstored *around,  # IN
    vstored *dx,            # OUT
    Py_ssize_t n,
    Py_ssize_t stride,      # to the next row
    const Row *row,
    bint has_gain,          # a constant
    bint has_around,        # a constant
    bint linear,            # a constant
    bint stream,            # a constant: past the cache
) noexcept nogil:
    cdef vreal m = vset(row.mean_hi, gain)
    cdef vreal s = vset(row.rstd, gain)
    cdef vreal t = vset(row.offset, gain)
    cdef vreal a = vset(row.center, gain)
    cdef vreal b = vset(row.slope if linear else -row.mean_gx, gain)
    cdef vreal c = vset(row.level if linear else row.rest, gain)
    cdef vreal g, v
    cdef bint ahead = stream and n >= AHEAD
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t left
    while i + width <= n:
        if ahead:
            # The next rows, whose sums read many short runs at a time.
            vec_prefetch(at(dy, TOGETHER * stride + i))
            vec_prefetch(at(x, TOGETHER * stride + i))
        g = times_minus(vread(at(dy, i), gain), at(gain, i), a, width, has_gain, True)
        v = gradient(g, vread(at(x, i), gain) - m, s, t, b, c, linear)
        if has_around:
            v = v + vread(at(around, i), gain)
        vwrite(at_out(dx, i), v, stream)
        i += width
    if i < n:
        left = n - i
        g = times_minus(vread_first(at(dy, i), left, gain), at(gain, i), a, left, has_gain, False)
        v = gradient(g, vread_first(at(x, i), left, gain) - m, s, t, b, c, linear)
        if has_around:
            v = v + vread_first(at(around, i), left, gain)
        vwrite_first(at_out(dx, i), v, left)


cdef inline void row_gradient_any(
    const vstored *dy, const vstored *x, const vreal *gain, const vstored *around, vstored *dx,
    Py_ssize_t n, Py_ssize_t stride, const Row *row, bint has_gain, bint has_around, bint stream,
) noexcept nogil:
    """row_gradient, compiled for each case of row and stream."""
    if not row.linear:
        row_gradient(dy, x, gain, around, dx, n, stride, row, has_gain, has_around, False, False)
    elif stream:
        row_gradient(dy, x, gain, around, dx, n, stride, row, has_gain, has_around, True, True)
    else:
        row_gradient(dy, x, gain, around, dx, n, stride, row, has_gain, has_around, True, False)


cdef inline void row_double(
    const vstored *dy,      # IN
    const vstored *x,       # IN
    const vreal *gain,      # IN  or NULL
    const vstored *around,  # IN  or NULL
    vstored *dx,            # OUT
    Py_ssize_t n,
    const Row *row,
    double *dgain,          # IN/OUT, or NULL
    double *dbias,          # IN/OUT, or NULL
    bint centered,
) noexcept nogil:
    """The same in double, dgain and dbias too, for a row beyond the range of its type's rstd."""
    cdef double g, xhat
    cdef double mean_g = 0
    cdef double mean_gx = 0
    cdef Py_ssize_t i
    for i in range(n):
        xhat = ((vget(x, i) - row.mean_hi) - row.mean_lo) * row.rstd
        g = vget(dy, i)
        if dgain != NULL:
            dgain[i] += g * xhat
        if dbias != NULL:
            dbias[i] += g
        if gain != NULL:
            g = g * vget(gain, i)
        if centered:
            mean_g += g / n
        mean_gx += g * xhat / n
    for i in range(n):
        xhat = ((vget(x, i) - row.mean_hi) - row.mean_lo) * row.rstd
        g = vget(dy, i)
        if gain != NULL:
            g = g * vget(gain, i)
        vput(dx, i, (g - mean_g - xhat * mean_gx) * row.rstd)
        if around != NULL:
            vput(dx, i, vget(dx, i) + vget(around, i))


cdef inline void pair_gradients(
    const vstored *dy,      # IN  (2, n)
    const vstored *x,       # IN  (2, n)
    const vreal *gain,      # IN
    const vstored *around,  # IN
    vstored *dx,            # OUT (2, n)
    Py_ssize_t n,
    Py_ssize_t stride,
    const Row *rows,        # IN  (2,)
    vreal *dgain,           # IN/OUT (n rounded up to blocks,)
    vreal *dbias,           # IN/OUT (n rounded up to blocks,), if centered
    bint centered,          # a constant
    bint has_gain,          # a constant
    bint has_around,        # a constant
    bint has_dx,            # a constant: or the sums of columns alone
) noexcept nogil:
    """row_gradient of two linear rows, and the sums of their columns."""
    cdef vreal m[2]
    cdef vreal s[2]
    cdef vreal t[2]
    cdef vreal a[2]
    cdef vreal b[2]
    cdef vreal c[2]
    cdef vreal v, d, w, g, column1, column2
    cdef bint ahead = n >= AHEAD
    cdef int r
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t left
    for r in range(2):
        m[r] = vset(rows[r].mean_hi, gain)
        s[r] = vset(rows[r].rstd, gain)
        t[r] = vset(rows[r].offset, gain)
        a[r] = vset(rows[r].center, gain)
        b[r] = vset(rows[r].slope, gain)
        c[r] = vset(rows[r].level, gain)
    while i + width <= n:
        column1 = vset(0, gain)
        column2 = vset(0, gain)
        for r in range(2):
            if ahead and has_dx:
                vec_prefetch(at(dy, (r + 2) * stride + i))
                vec_prefetch(at(x, (r + 2) * stride + i))
            v = vread(at(dy, r * stride + i), gain)
            w = vread(at(x, r * stride + i), gain)
            if centered:
                column1 = column1 + v
            column2 = vfma(v, scaled(w, m[r], s[r], t[r], centered), column2)
            if has_dx:
                g = times_minus(v, at(gain, i), a[r], width, has_gain, True)
                v = gradient(g, w - m[r], s[r], t[r], b[r], c[r], True)
                if has_around:
                    v = v + vread(at(around, r * stride + i), gain)
                vwrite(at_out(dx, r * stride + i), v, False)
        if centered:
            add_column(NULL, dbias, i, column1)
        add_column(NULL, dgain, i, column2)
        i += width
    if i < n:
        left = n - i
        column1 = vset(0, gain)
        column2 = vset(0, gain)
        for r in range(2):
            v = vread_first(at(dy, r * stride + i), left, gain)
            w = vread_first(at(x, r * stride + i), left, gain)
            if centered:
                column1 = column1 + v
            d = vfirst(scaled(w, m[r], s[r], t[r], centered), left)
            column2 = vfma(v, d, column2)
            if has_dx:
                g = times_minus(v, at(gain, i), a[r], left, has_gain, False)
                v = gradient(g, w - m[r], s[r], t[r], b[r], c[r], True)
                if has_around:
                    v = v + vread_first(at(around, r * stride + i), left, gain)
                vwrite_first(at_out(dx, r * stride + i), v, left)
        if centered:
            add_column(NULL, dbias, i, column1)
        add_column(NULL, dgain, i, column2)


cdef inline void rows_gradients(
    const vstored *dy, const vstored *x, const vreal *gain, const vstored *around, vstored *dx,
    Row *rows, double *dgain, double *dbias, vreal *narrow_gain, vreal *narrow_bias, Py_ssize_t n,
    Py_ssize_t stride, int n_rows, bint centered, bint has_gain, bint columns, bint stream,
) noexcept nogil:
    """Both passes over n_rows, a constant, of vector range.

    Two rows with narrow columns: their second pass takes these, which L1 holds beside two rows.
    """
    cdef Py_ssize_t r, i
    cdef bint pair = n_rows == 2 and columns and narrow_gain != NULL
    row_sums(dy, x, gain, rows, dgain, dbias, narrow_gain, narrow_bias, n, stride, n_rows, centered,
             has_gain, columns and not pair)
    if pair and rows[0].linear and rows[1].linear:
        if around != NULL:
            pair_gradients(dy, x, gain, around, dx, n, stride, rows, narrow_gain, narrow_bias,
                           centered, has_gain, True, True)
        else:
            pair_gradients(dy, x, gain, around, dx, n, stride, rows, narrow_gain, narrow_bias,
                           centered, has_gain, False, True)
        return
    if pair:
        pair_gradients(dy, x, gain, around, dx, n, stride, rows, narrow_gain, narrow_bias,
                       centered, has_gain, False, False)
    for r in range(n_rows):
        i = r * stride
        if around != NULL:
            row_gradient_any(at(dy, i), at(x, i), gain, at(around, i), at_out(dx, i), n, stride,
                             rows + r, has_gain, True, stream)
        else:
            row_gradient_any(at(dy, i), at(x, i), gain, around, at_out(dx, i), n, stride, rows + r,
                             has_gain, False, stream)


cdef inline void together_gradients(
    const vstored *dy, const vstored *x, const vreal *gain, const vstored *around, vstored *dx,
    Row *rows, double *dgain, double *dbias, vreal *narrow_gain, vreal *narrow_bias, Py_ssize_t n,
    Py_ssize_t stride, bint centered, bint has_gain, bint columns, bint stream,
) noexcept nogil:
    """rows_gradients of TOGETHER rows: at once, or two by two where columns are narrow and dx stays
    in the cache. Sums of columns so depend on stream, which only the shape decides.
    """
    cdef Py_ssize_t r, i
    if stream or not columns or narrow_gain == NULL:
        rows_gradients(dy, x, gain, around, dx, rows, dgain, dbias, narrow_gain, narrow_bias, n,
                       stride, TOGETHER, centered, has_gain, columns, stream)
        return
    for r in range(0, TOGETHER, 2):
        i = r * stride
        rows_gradients(at(dy, i), at(x, i), gain, at_or_null(around, i), at_out(dx, i), rows + r,
                       dgain, dbias, narrow_gain, narrow_bias, n, stride, 2, centered, has_gain,
                       columns, False)


cdef inline void some_gradients(
    const vstored *dy,      # IN  (n_rows, n), its rows stride apart
    const vstored *x,       # IN  the same
    const vreal *gain,      # IN  (n,) or NULL
    const vstored *around,  # IN  as x, or NULL: added to dx
    vstored *dx,            # OUT as x
    Row *rows,              # IN/OUT (n_rows,): prepared
    double *dgain,          # IN/OUT (n rounded up to blocks,), or NULL: added to
    double *dbias,          # IN/OUT (n rounded up to blocks,): added to, if centered
    vreal *narrow_gain,     # IN/OUT the same, for TOGETHER rows; or NULL, a constant
    vreal *narrow_bias,     # IN/OUT the same, for TOGETHER rows; or NULL, a constant
    Py_ssize_t n,
    Py_ssize_t stride,
    Py_ssize_t n_rows,      # at most TOGETHER
    bint centered,          # a constant
    bint stream,
) noexcept nogil:
    """Of a few rows; not centered, there are sums of columns where there is a gain."""
    cdef bint together = n_rows == TOGETHER
    cdef Py_ssize_t r, i
    for r in range(n_rows):
        together = together and rows[r].vector
    if together and gain != NULL:
        together_gradients(dy, x, gain, around, dx, rows, dgain, dbias, narrow_gain, narrow_bias, n,
                           stride, centered, True, True, stream)
    elif together:
        together_gradients(dy, x, gain, around, dx, rows, dgain, dbias, narrow_gain, narrow_bias, n,
                           stride, centered, False, centered, stream)
    else:
        for r in range(n_rows):
            i = r * stride
            if not rows[r].vector:
                row_double(at(dy, i), at(x, i), gain, at_or_null(around, i), at_out(dx, i), n,
                           rows + r, dgain, dbias, centered)
            elif gain != NULL:
                rows_gradients(at(dy, i), at(x, i), gain, at_or_null(around, i), at_out(dx, i),
                               rows + r, dgain, dbias, <vreal *>NULL, <vreal *>NULL, n, stride, 1,
                               centered, True, True, stream)
            else:
                rows_gradients(at(dy, i), at(x, i), gain, at_or_null(around, i), at_out(dx, i),
                               rows + r, dgain, dbias, <vreal *>NULL, <vreal *>NULL, n, stride, 1,
                               centered, False, centered, stream)


cdef inline void one_gradient(
    const vreal *dy, const vreal *x, const vreal *gain, vreal *dx, Row *row, Py_ssize_t n,
    bint centered,
) noexcept nogil:
    """dx of a row of vector range, alone."""
    if gain != NULL:
        rows_gradients(dy, x, gain, <const vreal *>NULL, dx, row, NULL, NULL, <vreal *>NULL,
                       <vreal *>NULL, n, n, 1, centered, True, False, False)
    else:
        rows_gradients(dy, x, gain, <const vreal *>NULL, dx, row, NULL, NULL, <vreal *>NULL,
                       <vreal *>NULL, n, n, 1, centered, False, False, False)
