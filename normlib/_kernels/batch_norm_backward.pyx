"""Gradients of batch normalization by the statistics of the batch itself.

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), no axis empty; statistics
in float64. channels.pxd tells how the loops go over memory.

With xhat recomputed, S1 = sum(dy), S2 = sum(dy * xhat), and n the number of values in a channel's
statistics:

    dx = gain * rstd * (dy - (S1 + xhat * S2) / n)

where a row that the statistics left out has dx = gain * rstd * dy. dbias = S1 and dgain = S2.
"""
cimport numpy as cnp
from cython.parallel cimport prange

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.buffers cimport aligned_like
from normlib._kernels.channel_gradients cimport (
    MEAN, OFFSET, RSTD, SCALE, input_gradient_columns, input_gradient_double, input_gradient_plane,
    sum_double, sum_planes, sum_rows,
)
from normlib._kernels.channels cimport (
    PAIR, PANEL, Shape, Statistics, add_blocks, beyond, block_size, clear_sums, find_doubles,
    gain_of, items_per_block, n_items, padded_channels, rows_together, scale_channels, scratch_size,
    sweep_start,
)
from normlib._kernels.gradient_factors cimport add_steep, finish_gradients, scale_by_gain
from normlib._kernels.plain cimport (
    as_doubles, find_channels, is_eps, is_input, is_like, is_parameter, new_vector,
)
from normlib._kernels.rows cimport FOLD
from normlib._kernels.vec cimport (
    STREAM_FLOATS, at, at_out, lanes, to_boundary, vec_fence, vf32, vf64, vget, vreal,
)

cnp.import_array()

cdef enum:
    CHUNK = 16384           # elements of rows that are summed together, at least FOLD rows


cdef void sums_item(
    const vreal *dy,        # IN  (outer, channels, inner)
    const vreal *x,         # IN  (outer, channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *factors,   # IN  (7, channels)
    const Py_ssize_t *doubles,  # IN, ended by channels
    double *scratch,        # OUT (blocks, 3, padded)
    const Shape *shape,
    const Statistics *statistics,
    Py_ssize_t padded,
    Py_ssize_t item,
) noexcept nogil:
    cdef Py_ssize_t size = block_size(shape)
    cdef Py_ssize_t block = item // items_per_block(shape)
    cdef Py_ssize_t channel = item % items_per_block(shape)
    cdef Py_ssize_t channels = shape.channels
    cdef double *sum1 = scratch + 3 * block * padded
    cdef double *sum2 = scratch + (3 * block + 1) * padded
    cdef double part1, part2
    cdef bint large = shape.outer * channels * shape.inner >= STREAM_FLOATS
    cdef Py_ssize_t n_rows, rows, first, stop, row, r, o, i, c
    if shape.inner == 1:
        first = channel * PANEL
        stop = min(first + PANEL, channels)
        n_rows = min(size, shape.outer - block * size)
        row = block * size * channels
        clear_sums(sum1, sum2, first, min(first + PANEL, padded))
        rows = max(1, CHUNK // channels // FOLD) * FOLD
        r = 0
        while r < n_rows:
            sum_rows(at(dy, row + r * channels), at(x, row + r * channels), factors, sum1, sum2,
                     min(rows, n_rows - r), channels, first, stop, large)
            r += rows
        while doubles[0] < stop:
            c = doubles[0]
            if c >= first:
                sum_double(at(dy, row + c), at(x, row + c), sum1 + c, sum2 + c, n_rows, channels,
                           statistics, c)
            doubles += 1
        return
    first = block * size
    n_rows = min(size, shape.outer - first)
    i = (first * channels + channel) * shape.inner
    if doubles[0] == channels or not beyond(x, gain, statistics, channel):
        sum_planes(at(dy, i), at(x, i), sum1 + channel, sum2 + channel, n_rows,
                   channels * shape.inner, shape.inner, vget(factors, MEAN * channels + channel),
                   vget(factors, RSTD * channels + channel),
                   vget(factors, OFFSET * channels + channel))
        return
    sum1[channel] = 0
    sum2[channel] = 0
    for o in range(first, first + n_rows):
        i = (o * channels + channel) * shape.inner
        sum_double(at(dy, i), at(x, i), &part1, &part2, shape.inner, 1, statistics, channel)
        sum1[channel] += part1
        sum2[channel] += part2


cdef void input_gradient_rows(
    const vreal *dy,        # IN  (outer, channels, inner)
    const vreal *x,         # IN  (outer, channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *factors,   # IN  (7, channels)
    const Py_ssize_t *doubles,  # IN, ended by channels
    const double *means,    # IN  (2, padded)
    vreal *dx,              # OUT (outer, channels, inner)
    const char *counted,    # IN  (outer,) or NULL
    const Shape *shape,
    const Statistics *statistics,
    Py_ssize_t padded,
    bint stream,
    Py_ssize_t start,
    Py_ssize_t n_rows,
) noexcept nogil:
    """Some rows of columns, or the planes of as many outer indices."""
    cdef Py_ssize_t channels = shape.channels
    cdef Py_ssize_t row = start * channels * shape.inner
    cdef const char *rows_counted = NULL
    cdef Py_ssize_t i, c, o
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t d = 0
    if counted != NULL:
        rows_counted = counted + start
    if shape.inner == 1:
        while first <= channels:
            c = doubles[d]
            if stream and n_rows == PAIR:
                input_gradient_columns(at(dy, row), at(x, row), factors, at_out(dx, row),
                                       rows_counted, PAIR, channels, channels, first, c,
                                       True)
            elif stream:
                input_gradient_columns(at(dy, row), at(x, row), factors, at_out(dx, row),
                                       rows_counted, n_rows, channels, channels, first, c,
                                       True)
            elif n_rows == PAIR:
                input_gradient_columns(at(dy, row), at(x, row), factors, at_out(dx, row),
                                       rows_counted, PAIR, channels, channels, first, c,
                                       False)
            else:
                input_gradient_columns(at(dy, row), at(x, row), factors, at_out(dx, row),
                                       rows_counted, n_rows, channels, channels, first, c,
                                       False)
            if c < channels:
                for o in range(n_rows):
                    i = row + o * channels + c
                    input_gradient_double(at(dy, i), at(x, i), at_out(dx, i), 1,
                                          rows_counted == NULL or rows_counted[o] != 0,
                                          gain_of(gain, c), means[c], means[padded + c],
                                          statistics, c)
            first = c + 1
            d += 1
        return
    for o in range(n_rows):
        d = 0
        for c in range(channels):
            i = row + (o * channels + c) * shape.inner
            if c == doubles[d]:
                input_gradient_double(at(dy, i), at(x, i), at_out(dx, i), shape.inner, True,
                                      gain_of(gain, c), means[c], means[padded + c], statistics, c)
                d += 1
            elif stream:
                input_gradient_plane(at(dy, i), at(x, i), factors, at_out(dx, i), shape.inner,
                                     channels, c, True)
            else:
                input_gradient_plane(at(dy, i), at(x, i), factors, at_out(dx, i), shape.inner,
                                     channels, c, False)


cdef void input_gradient_part(
    const vreal *dy, const vreal *x, const vreal *gain, const vreal *factors,
    const Py_ssize_t *doubles, const double *means, vreal *dx, const char *counted,
    const Shape *shape, const Statistics *statistics, Py_ssize_t padded, bint stream, int part,
    int n_parts,
) noexcept nogil:
    """One of n_parts equal parts."""
    cdef Py_ssize_t first = shape.outer * part // n_parts
    cdef Py_ssize_t stop = shape.outer * (part + 1) // n_parts
    cdef Py_ssize_t start, row, n_rows
    while stop > first:
        start = sweep_start(first, stop, shape.channels * shape.inner, stream)
        row = start
        while row < stop:
            n_rows = min(rows_together(shape, stream), stop - row)
            input_gradient_rows(dy, x, gain, factors, doubles, means, dx, counted, shape,
                                statistics, padded, stream, row, n_rows)
            row += n_rows
        stop = start
    if stream:
        vec_fence()


cdef void backward_all(const vreal *dy, const vreal *x, const vreal *gain, const char *counted,
                       double n, vreal *factors, Py_ssize_t *doubles, double *scratch, vreal *dx,
                       vreal *dgain, vreal *dbias, Shape shape, Statistics statistics,
                       Py_ssize_t padded, int n_threads) noexcept nogil:
    cdef Py_ssize_t channels = shape.channels
    cdef Py_ssize_t run = channels if shape.inner == 1 else shape.inner
    cdef bint stream, any_double
    cdef Py_ssize_t i
    cdef int part
    # First the offset of xhat, of which gain is no part; then SCALE, of which it is.
    any_double = scale_channels(
        <const vreal *>NULL, <const vreal *>NULL, at_out(factors, MEAN * channels),
        at_out(factors, RSTD * channels), at_out(factors, OFFSET * channels), &statistics, channels)
    any_double |= scale_by_gain(gain, at_out(factors, SCALE * channels), &statistics, channels)
    find_doubles(gain, factors, doubles, &statistics, channels, any_double)
    if n_threads == 1:
        for i in range(n_items(&shape)):
            sums_item(dy, x, gain, factors, doubles, scratch, &shape, &statistics, padded, i)
    else:
        for i in prange(n_items(&shape), schedule="static", num_threads=n_threads):
            sums_item(dy, x, gain, factors, doubles, scratch, &shape, &statistics, padded, i)
    add_blocks(scratch, &shape, padded)
    finish_gradients(gain, factors, scratch, dgain, dbias, &statistics, channels,
                     channels, padded, n)
    if vreal is vf32:
        add_steep(gain, factors, scratch + padded, doubles, &statistics, channels, channels)
    # Channels in double break rows into runs that start anywhere.
    stream = (shape.outer * channels * shape.inner >= STREAM_FLOATS
              and run % lanes(x) == 0 and to_boundary(dx) == 0
              and not (shape.inner == 1 and doubles[0] < channels))
    if n_threads == 1:
        input_gradient_part(dy, x, gain, factors, doubles, scratch, dx, counted, &shape,
                            &statistics, padded, stream, 0, 1)
    else:
        for part in prange(n_threads, schedule="static", num_threads=n_threads):
            input_gradient_part(dy, x, gain, factors, doubles, scratch, dx, counted, &shape,
                                &statistics, padded, stream, part, n_threads)


cdef int backward(object dy, object x, object mean, object rest, object rstd, object gain,
                  object counted, double n, object dx, object dgain, object dbias, Shape shape,
                  int n_threads) except -1:
    cdef Statistics statistics = Statistics(
        <double *>address(mean), <double *>address(rest), <double *>address(rstd))
    cdef Py_ssize_t padded = padded_channels(&shape)
    factors = new_vector(7 * shape.channels, cnp.PyArray_TYPE(x))
    doubles = new_vector(shape.channels + 1, cnp.NPY_INTP)
    scratch = new_vector(scratch_size(&shape), cnp.NPY_FLOAT64)
    cdef void *dy_data = address(dy)
    cdef void *x_data = address(x)
    cdef void *gain_data = address(gain)
    cdef char *counted_data = <char *>address(counted)
    cdef void *factors_data = address(factors)
    cdef Py_ssize_t *doubles_data = <Py_ssize_t *>address(doubles)
    cdef double *scratch_data = <double *>address(scratch)
    cdef void *dx_data = address(dx)
    cdef void *dgain_data = address(dgain)
    cdef void *dbias_data = address(dbias)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            backward_all[vf32](<vf32 *>dy_data, <vf32 *>x_data, <vf32 *>gain_data, counted_data, n,
                               <vf32 *>factors_data, doubles_data, scratch_data, <vf32 *>dx_data,
                               <vf32 *>dgain_data, <vf32 *>dbias_data, shape, statistics, padded,
                               n_threads)
        else:
            backward_all[vf64](<vf64 *>dy_data, <vf64 *>x_data, <vf64 *>gain_data, counted_data, n,
                               <vf64 *>factors_data, doubles_data, scratch_data, <vf64 *>dx_data,
                               <vf64 *>dgain_data, <vf64 *>dbias_data, shape, statistics, padded,
                               n_threads)
    return 0


def batch_norm_backward(dy, x, mean, rest, rstd, gain, counted, double n, dx, dgain, dbias,
                        int n_threads):
    """Gradients of normalization by the batch's own statistics, x (outer, C, inner).

    rest, gain and dgain may be None. counted, (outer,) of bool or None, tells which rows made the
    statistics, each of n values; it needs inner = 1.
    """
    cdef Shape shape = Shape(dim(x, 0), dim(x, 1), dim(x, 2))
    backward(dy, x, mean, rest, rstd, gain, counted, n, dx, dgain, dbias, shape, n_threads)


def batch_norm_backward_plain(dy, x, mean, var, gain, channel_axis, eps, reciprocal_std,
                              threads_for):
    """(dx, dgain, dbias) of float32 without a mask; None unless every argument is plain.

    reciprocal_std is batch_norm's; threads_for(elements) tells how many threads to use. float64
    needs the mean's rest, and takes the checked path.
    """
    cdef Shape shape
    if not (is_input(x) and is_single(x) and is_like(dy, x) and is_eps(eps)
            and find_channels(x, channel_axis, &shape)):
        return None
    cdef Py_ssize_t channels = shape.channels
    cdef Py_ssize_t n = shape.outer * shape.inner
    mean = as_doubles(mean, channels)
    var = as_doubles(var, channels)
    if n < 2 or mean is None or var is None or not is_parameter(gain, x, channels):
        return None
    rstd = new_vector(channels, cnp.NPY_FLOAT64)
    if reciprocal_std(var, rstd, eps) >= 0:
        return None
    dx = aligned_like(x)
    dgain = None if gain is None else new_vector(channels, cnp.NPY_FLOAT32)
    dbias = new_vector(channels, cnp.NPY_FLOAT32)
    backward(dy, x, mean, None, rstd, gain, None, n, dx, dgain, dbias, shape,
             threads_for(cnp.PyArray_SIZE(x)))
    return dx, dgain, dbias
