"""Batch normalization of some columns of a few rows, forward and backward.

Design
------
For a loop in which each thread has columns of its own, of every row: columns share nothing, so that
threads need not meet. It takes a strip of columns at a time, whose sums and factors are in the
first-level cache, and calls what the kernels of whole arrays call, in the same order: the bits are
theirs (batch_moments.pyx, batch_norm.pyx, batch_norm_backward.pyx), whoever has which columns.

A single row has no statistics of its own: it takes given ones, as constants.
"""
from libc.math cimport sqrt

from normlib._kernels.channel_gradients cimport (
    MEAN, OFFSET, RSTD, SCALE, input_gradient_columns, input_gradient_double, sum_double, sum_rows,
)
from normlib._kernels.channel_moments cimport finish_channels, finish_merged, moments_columns
from normlib._kernels.channel_outputs cimport normalize_columns, normalize_double
from normlib._kernels.channels cimport (
    PAIR, STRIP, Shape, Statistics, block_size, clear_sums, find_doubles, gain_of, rows_together,
    scale_channels,
)
from normlib._kernels.gradient_factors cimport add_steep, finish_gradients, scale_by_gain
from normlib._kernels.rows cimport Merged, merge, merge_none
from normlib._kernels.vec cimport at, at_out, vf32, vget, vput, vreal, vround

cdef enum:
    FACTORS = 7          # rows of factors that a thread has room for


cdef inline void reciprocal_stds(const double *var, double *rstd, double eps,
                                 Py_ssize_t width) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(width):
        rstd[c] = 1 / sqrt(var[c] + eps)


cdef inline void strip_moments(
    const vreal *x,         # IN  (n_rows, features), at the first column
    double *mean,           # OUT (width,)
    double *rest,           # OUT (width,): what mean lacks for being a double
    double *var,            # OUT (width,)
    double *rstd,           # OUT (width,)
    Py_ssize_t n_rows,
    Py_ssize_t features,
    Py_ssize_t width,       # at most STRIP
    double eps,
) noexcept nogil:
    cdef double sums[3 * STRIP]
    cdef double part[3 * STRIP]
    cdef Merged all[STRIP]
    cdef Shape shape = Shape(n_rows, features, 1)
    cdef Shape strip = Shape(n_rows, width, 1)
    cdef Py_ssize_t size = block_size(&shape)
    cdef Py_ssize_t row = 0
    cdef Py_ssize_t n, c
    if vreal is vf32:
        clear_sums(sums, sums + STRIP, 0, STRIP)
        moments_columns(x, x, sums, min(size, n_rows), features, STRIP, 0, width)
        row = size
        while row < n_rows:
            clear_sums(part, part + STRIP, 0, STRIP)
            moments_columns(at(x, row * features), x, part, min(size, n_rows - row), features,
                            STRIP, 0, width)
            for c in range(2 * STRIP):
                sums[c] += part[c]
            row += size
        finish_channels(x, sums, mean, rest, var, rstd, &strip, STRIP, eps)
    else:
        for c in range(width):
            merge_none(&all[c])
        while row < n_rows:
            n = min(size, n_rows - row)
            moments_columns(at(x, row * features), x, part, n, features, STRIP, 0, width)
            for c in range(width):
                merge(&all[c], <double>n, part[c], part[STRIP + c], part[2 * STRIP + c])
            row += size
        for c in range(width):
            finish_merged(x, &all[c], mean, rest, var, rstd, &shape, eps, c)


cdef inline void normalize_strip(
    const vreal *x,         # IN  (n_rows, features), at the first column, as is what follows
    const vreal *gain,      # IN  (width,) or NULL
    const vreal *bias,      # IN  (width,) or NULL
    vreal *y,               # OUT (n_rows, features)
    vreal *factors,         # OUT (3, features)
    const Statistics *statistics,
    Py_ssize_t n_rows,
    Py_ssize_t features,
    Py_ssize_t width,       # at most STRIP
) noexcept nogil:
    cdef Py_ssize_t doubles[STRIP + 1]
    cdef Shape shape = Shape(n_rows, features, 1)
    cdef Py_ssize_t together = rows_together(&shape, False)
    cdef Py_ssize_t row = 0
    cdef Py_ssize_t n, r, i
    cdef Py_ssize_t d = 0
    find_doubles(gain, x, doubles, statistics, width,
                 scale_channels(gain, bias, factors, at_out(factors, features),
                                at_out(factors, 2 * features), statistics, width))
    while row < n_rows:
        n = min(together, n_rows - row)
        i = row * features
        if n == PAIR:
            normalize_columns(at(x, i), factors, at_out(y, i), PAIR, features, features, 0, width,
                              False)
        else:
            normalize_columns(at(x, i), factors, at_out(y, i), n, features, features, 0, width,
                              False)
        row += n
    while doubles[d] < width:
        for r in range(n_rows):
            i = r * features + doubles[d]
            normalize_double(at(x, i), gain, bias, at_out(y, i), 1, statistics, doubles[d])
        d += 1


cdef inline void normalize_batch(
    const vreal *x,         # IN  (n_rows, features)
    const vreal *gain,      # IN  (features,) or NULL
    const vreal *bias,      # IN  (features,) or NULL
    vreal *y,               # OUT (n_rows, features)
    double *mean,           # OUT (features,); IN for one row, as is var
    double *rest,           # OUT (features,), or NULL
    double *var,            # OUT (features,)
    vreal *factors,         # OUT (3, features)
    Py_ssize_t n_rows,
    Py_ssize_t features,
    double eps,
    Py_ssize_t first,       # of the columns
    Py_ssize_t stop,
) noexcept nogil:
    cdef double rests[STRIP]
    cdef double rstd[STRIP]
    cdef double *own_rest
    cdef Statistics statistics
    cdef Py_ssize_t width
    cdef const vreal *gains = NULL
    cdef const vreal *biases = NULL
    while first < stop:
        width = min(<Py_ssize_t>STRIP, stop - first)
        own_rest = &rests[0] if rest == NULL else rest + first
        statistics = Statistics(mean + first, own_rest, &rstd[0])
        if n_rows == 1:
            statistics.rest = NULL
            reciprocal_stds(var + first, rstd, eps, width)
        else:
            strip_moments(at(x, first), mean + first, own_rest, var + first, rstd, n_rows, features,
                          width, eps)
        if gain != NULL:
            gains = at(gain, first)
        if bias != NULL:
            biases = at(bias, first)
        normalize_strip(at(x, first), gains, biases, at_out(y, first), at_out(factors, first),
                        &statistics, n_rows, features, width)
        first += width


cdef inline void denormalize_strip(
    const vreal *dy,        # IN  (n_rows, features), at the first column, as is what follows
    const vreal *x,         # IN  (n_rows, features)
    const vreal *gain,      # IN  (width,) or NULL
    vreal *dx,              # OUT (n_rows, features)
    double *dgain,          # IN/OUT (width,): added to; or NULL
    double *dbias,          # IN/OUT (width,): added to; or NULL
    vreal *factors,         # OUT (7, features)
    const Statistics *statistics,
    Py_ssize_t n_rows,
    Py_ssize_t features,
    Py_ssize_t width,       # at most STRIP
) noexcept nogil:
    cdef double sums[2 * STRIP]
    cdef double part[2 * STRIP]
    cdef double dgains[STRIP]
    cdef double dbiases[STRIP]
    cdef Py_ssize_t doubles[STRIP + 1]
    cdef Shape shape = Shape(n_rows, features, 1)
    cdef Py_ssize_t size = block_size(&shape)
    cdef Py_ssize_t together = rows_together(&shape, False)
    cdef Py_ssize_t row = 0
    cdef Py_ssize_t n, r, i, c, d
    cdef double *out = sums
    cdef bint any_double = scale_channels(
        <const vreal *>NULL, <const vreal *>NULL, at_out(factors, MEAN * features),
        at_out(factors, RSTD * features), at_out(factors, OFFSET * features), statistics, width)
    any_double |= scale_by_gain(gain, at_out(factors, SCALE * features), statistics, width)
    find_doubles(gain, x, doubles, statistics, width, any_double)
    while row < n_rows:
        n = min(size, n_rows - row)
        i = row * features
        clear_sums(out, out + STRIP, 0, STRIP)
        sum_rows(at(dy, i), at(x, i), factors, out, out + STRIP, n, features, 0, width, False)
        d = 0
        while doubles[d] < width:
            c = doubles[d]
            sum_double(at(dy, i + c), at(x, i + c), out + c, out + STRIP + c, n, features,
                       statistics, c)
            d += 1
        if row > 0:
            for c in range(2 * STRIP):
                sums[c] += part[c]
        out = part
        row += size
    finish_gradients(gain, factors, sums, <vreal *>dgains, <vreal *>dbiases, statistics, width,
                     features, STRIP, <double>n_rows)
    if vreal is vf32:
        add_steep(gain, factors, sums + STRIP, doubles, statistics, width, features)
    if dgain != NULL:
        for c in range(width):
            dgain[c] += vget(<vreal *>dgains, c)
    if dbias != NULL:
        for c in range(width):
            dbias[c] += vget(<vreal *>dbiases, c)
    row = 0
    while row < n_rows:
        n = min(together, n_rows - row)
        i = row * features
        if n == PAIR:
            input_gradient_columns(at(dy, i), at(x, i), factors, at_out(dx, i), NULL, PAIR,
                                   features, features, 0, width, False)
        else:
            input_gradient_columns(at(dy, i), at(x, i), factors, at_out(dx, i), NULL, n, features,
                                   features, 0, width, False)
        row += n
    d = 0
    while doubles[d] < width:
        c = doubles[d]
        for r in range(n_rows):
            i = r * features + c
            input_gradient_double(at(dy, i), at(x, i), at_out(dx, i), 1, True, gain_of(gain, c),
                                  sums[c], sums[STRIP + c], statistics, c)
        d += 1


cdef inline void denormalize_frozen(
    const vreal *dy,        # IN  (width,), as is what follows
    const vreal *x,
    const vreal *gain,      # IN  or NULL
    vreal *dx,              # OUT
    double *dgain,          # IN/OUT, added to; or NULL
    double *dbias,          # IN/OUT, added to; or NULL
    const Statistics *statistics,
    Py_ssize_t width,
) noexcept nogil:
    """One row, the statistics being constants."""
    cdef double g, xhat
    cdef Py_ssize_t c
    for c in range(width):
        g = vget(dy, c)
        xhat = (vget(x, c) - statistics.mean[c]) * statistics.rstd[c]
        if dgain != NULL:
            dgain[c] += vround(g * xhat, x)
        if dbias != NULL:
            dbias[c] += g
        vput(dx, c, vround(g * gain_of(gain, c), x) * statistics.rstd[c])


cdef inline void spread_mean(vreal *dx, Py_ssize_t n_rows, Py_ssize_t features,
                             Py_ssize_t width) noexcept nogil:
    """Give each row of some columns the mean over the rows."""
    cdef double mean
    cdef Py_ssize_t r, c
    for c in range(width):
        mean = vget(dx, c)
        for r in range(1, n_rows):
            mean += vget(dx, r * features + c)
        mean /= n_rows
        for r in range(n_rows):
            vput(dx, r * features + c, mean)


cdef inline void denormalize_batch(
    const vreal *dy,        # IN  (n_rows, features)
    const vreal *x,         # IN  (n_rows, features)
    const vreal *gain,      # IN  (features,) or NULL
    vreal *dx,              # OUT (n_rows, features), neither dy nor x
    double *dgain,          # IN/OUT (features,): added to; or NULL
    double *dbias,          # IN/OUT (features,): added to; or NULL
    const double *mean,     # IN  (features,)
    const double *rest,     # IN  (features,), or NULL
    const double *var,      # IN  (features,)
    vreal *factors,         # OUT (7, features)
    Py_ssize_t n_rows,
    Py_ssize_t features,
    double eps,
    bint alike,             # all rows are: each gets the mean of its gradient
    Py_ssize_t first,       # of the columns
    Py_ssize_t stop,
) noexcept nogil:
    cdef double rstd[STRIP]
    cdef Statistics statistics
    cdef Py_ssize_t width
    cdef const vreal *gains = NULL
    cdef double *gain_sums = NULL
    cdef double *bias_sums = NULL
    while first < stop:
        width = min(<Py_ssize_t>STRIP, stop - first)
        reciprocal_stds(var + first, rstd, eps, width)
        statistics = Statistics(mean + first, NULL, &rstd[0])
        if gain != NULL:
            gains = at(gain, first)
        if dgain != NULL:
            gain_sums = dgain + first
        if dbias != NULL:
            bias_sums = dbias + first
        if n_rows == 1:
            denormalize_frozen(at(dy, first), at(x, first), gains, at_out(dx, first), gain_sums,
                               bias_sums, &statistics, width)
        else:
            if rest != NULL:
                statistics.rest = rest + first
            denormalize_strip(at(dy, first), at(x, first), gains, at_out(dx, first), gain_sums,
                              bias_sums, at_out(factors, first), &statistics, n_rows, features,
                              width)
            if alike:
                spread_mean(at_out(dx, first), n_rows, features, width)
        first += width
