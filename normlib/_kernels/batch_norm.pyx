"""Batch normalization by given statistics.

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), no axis empty; statistics
in float64. channels.pxd tells how the loops go over memory.

With scale = gain * rstd and offset = bias - mean_lo * scale, the output is
fma(x - mean_hi, scale, offset).
"""
cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport isinf

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.buffers cimport aligned_like
from normlib._kernels.channel_outputs cimport (
    REGISTERS, normalize_columns, normalize_double, normalize_narrow, normalize_plane,
)
from normlib._kernels.channels cimport (
    NARROW, PAIR, Shape, Statistics, beyond, find_doubles, load_doubles, rows_together,
    scale_channels, store_doubles, sweep_start,
)
from normlib._kernels.lines cimport MAX_HELD, Lines, close_lines, open_lines, pass_lines
from normlib._kernels.norm_rows cimport NormForward, forward_capsule
from normlib._kernels.plain cimport (
    apart, as_doubles, find_channels, is_eps, is_input, is_output, is_parameter, new_vector,
)
from normlib._kernels.vec cimport (
    STREAM_FLOATS, VF64_LANES, at, at_out, lanes, to_boundary, vec_fence, vf32, vf64, vf64_set,
    vf64_sqrt, vfma, vget, vload_first, vreal, vselect_lt, vstore_first,
)

cnp.import_array()

cdef enum:
    PIECE = 16384        # elements of a plane that are one work item
    FAR = 1 << 23        # elements of arrays out of every cache, where long rows go one by one
    BUFFER = 4096        # elements that are put together before they are streamed


cdef void normalize_rows(
    const vreal *x,         # IN  (outer, channels)
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    const vreal *factors,   # IN  (3, channels)
    const Py_ssize_t *doubles,  # IN, ended by channels
    vreal *y,               # OUT (rows, channels), may be x's
    const Shape *shape,
    const Statistics *statistics,
    bint stream,
    Py_ssize_t row,
    Py_ssize_t stop,
) noexcept nogil:
    """The rows from row to stop, whose channels lie side by side; y starts with the first."""
    cdef Py_ssize_t channels = shape.channels
    cdef Py_ssize_t start = 0
    cdef Py_ssize_t n_rows, first, d, c, i, r
    cdef Py_ssize_t together = rows_together(shape, stream)
    if stream and channels > NARROW and shape.outer * channels >= FAR:
        together = 1
    x = at(x, row * channels)
    if channels == REGISTERS * lanes(x) and doubles[0] == channels:
        if stream:
            normalize_narrow(x, factors, y, stop - row, channels, True)
        else:
            normalize_narrow(x, factors, y, stop - row, channels, False)
        return
    while row < stop:
        n_rows = min(together, stop - row)
        first = 0
        d = 0
        while first <= channels:
            c = doubles[d]
            if stream and n_rows == PAIR:
                normalize_columns(at(x, start), factors, at_out(y, start), PAIR, channels,
                                  channels, first, c, True)
            elif stream:
                normalize_columns(at(x, start), factors, at_out(y, start), n_rows, channels,
                                  channels, first, c, True)
            elif n_rows == PAIR:
                normalize_columns(at(x, start), factors, at_out(y, start), PAIR, channels,
                                  channels, first, c, False)
            else:
                normalize_columns(at(x, start), factors, at_out(y, start), n_rows, channels,
                                  channels, first, c, False)
            if c < channels:
                for r in range(n_rows):
                    i = start + r * channels + c
                    normalize_double(at(x, i), gain, bias, at_out(y, i), 1, statistics, c)
            first = c + 1
            d += 1
        row += n_rows
        start += n_rows * channels


cdef void normalize_planes(
    const vreal *x,         # IN  (outer, channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    const vreal *factors,   # IN  (3, channels)
    const Py_ssize_t *doubles,  # IN, ended by channels
    vreal *y,               # OUT (items, inner), may be x's
    const Shape *shape,
    const Statistics *statistics,
    bint stream,
    Py_ssize_t item,
    Py_ssize_t stop,
) noexcept nogil:
    """The planes from item to stop, or pieces of long ones; y starts with the first."""
    cdef Py_ssize_t n_pieces = (shape.inner + PIECE - 1) // PIECE
    cdef Py_ssize_t piece = item % n_pieces
    cdef Py_ssize_t c = item // n_pieces % shape.channels
    cdef Py_ssize_t i = item // n_pieces * shape.inner + piece * PIECE
    cdef Py_ssize_t j = 0
    cdef Py_ssize_t n
    cdef double mean, scale, offset
    while item < stop:
        n = min(<Py_ssize_t>PIECE, shape.inner - piece * PIECE)
        mean = vget(factors, c)
        scale = vget(factors, shape.channels + c)
        offset = vget(factors, 2 * shape.channels + c)
        if doubles[0] < shape.channels and beyond(x, gain, statistics, c):
            normalize_double(at(x, i), gain, bias, at_out(y, j), n, statistics, c)
        elif stream:
            normalize_plane(at(x, i), at_out(y, j), n, mean, scale, offset, True)
        else:
            normalize_plane(at(x, i), at_out(y, j), n, mean, scale, offset, False)
        i += n
        j += n
        item += 1
        piece += 1
        if piece == n_pieces:
            piece = 0
            c += 1
            if c == shape.channels:
                c = 0


cdef inline void normalize_items(
    const vreal *x, const vreal *gain, const vreal *bias, const vreal *factors,
    const Py_ssize_t *doubles, vreal *y, const Shape *shape, const Statistics *statistics,
    bint stream, Py_ssize_t start, Py_ssize_t stop,
) noexcept nogil:
    if shape.inner == 1:
        normalize_rows(x, gain, bias, factors, doubles, y, shape, statistics, stream, start, stop)
    else:
        normalize_planes(x, gain, bias, factors, doubles, y, shape, statistics, stream, start, stop)


cdef inline Py_ssize_t first_element(const Shape *shape, Py_ssize_t item) noexcept nogil:
    """Where an item starts: a row, a plane, or a piece of a long one."""
    cdef Py_ssize_t n_pieces
    if shape.inner == 1:
        return item * shape.channels
    n_pieces = (shape.inner + PIECE - 1) // PIECE
    return item // n_pieces * shape.inner + item % n_pieces * PIECE


cdef void normalize_part(
    const vreal *x, const vreal *gain, const vreal *bias, const vreal *factors,
    const Py_ssize_t *doubles, vreal *y, const Shape *shape, const Statistics *statistics,
    bint large, int part, int n_parts,
) noexcept nogil:
    """One of n_parts equal parts."""
    cdef bint rows = shape.inner == 1
    cdef Py_ssize_t run = shape.channels if rows else shape.inner
    cdef Py_ssize_t size = run if rows else min(<Py_ssize_t>PIECE, run)
    cdef Py_ssize_t total = shape.outer
    # Channels in double break rows into runs that start anywhere.
    cdef bint stream = (large and run % lanes(x) == 0 and to_boundary(y) == 0
                        and not (rows and doubles[0] < run))
    cdef bint by_lines = large and not stream and size <= BUFFER
    cdef double memory[BUFFER + 2 * MAX_HELD]
    cdef vreal *buffer = at_out(<vreal *>memory, to_boundary(<vreal *>memory))
    cdef Lines lines
    cdef Py_ssize_t first, start, stop, item, count, i
    if not rows:
        total *= shape.channels * ((shape.inner + PIECE - 1) // PIECE)
    first = total * part // n_parts
    stop = total * (part + 1) // n_parts
    while stop > first:
        start = sweep_start(first, stop, size, large)
        i = first_element(shape, start)
        if by_lines:
            open_lines(&lines, at_out(y, i))
            item = start
            while item < stop:
                count = min(max(1, BUFFER // size), stop - item)
                normalize_items(x, gain, bias, factors, doubles, at_out(buffer, lines.held), shape,
                                statistics, False, item, item + count)
                i += count * size
                pass_lines(&lines, buffer, count * size, at(x, i))
                item += count
            close_lines(&lines, buffer)
        else:
            normalize_items(x, gain, bias, factors, doubles, at_out(y, i), shape, statistics,
                            stream, start, stop)
        stop = start
    if stream:
        vec_fence()


cdef void normalize_all(const vreal *x, const vreal *gain, const vreal *bias, vreal *factors,
                        Py_ssize_t *doubles, vreal *y, Shape shape, Statistics statistics,
                        int n_threads) noexcept nogil:
    cdef bint large = shape.outer * shape.channels * shape.inner >= STREAM_FLOATS
    cdef int part
    find_doubles(gain, factors, doubles, &statistics, shape.channels,
                 scale_channels(gain, bias, factors, at_out(factors, shape.channels),
                                at_out(factors, 2 * shape.channels), &statistics, shape.channels))
    if n_threads == 1:
        normalize_part(x, gain, bias, factors, doubles, y, &shape, &statistics, large, 0, 1)
    else:
        for part in prange(n_threads, schedule="static", num_threads=n_threads):
            normalize_part(x, gain, bias, factors, doubles, y, &shape, &statistics, large, part,
                           n_threads)


cdef inline void reciprocal_vector(
    const double *var,      # IN
    double *rstd,           # OUT
    vf64 *negative,         # IN/OUT: lanes of the last variance below 0
    double eps,
    Py_ssize_t n,           # at most one vector
    bint full,              # a constant: exactly one
) noexcept nogil:
    cdef vf64 v = load_doubles(var, n, full)
    negative[0] = vselect_lt(v, vf64_set(0), v, negative[0])
    store_doubles(rstd, vf64_set(1) / vf64_sqrt(v + vf64_set(eps)), n, full)


cpdef Py_ssize_t reciprocal_std(var, rstd, double eps) except -2:
    """rstd = 1 / sqrt(var + eps), both (C,); the first negative variance's index, or -1."""
    cdef const double *var_data = <double *>address(var)
    cdef double *rstd_data = <double *>address(rstd)
    cdef Py_ssize_t channels = dim(var, 0)
    cdef vf64 negative = vf64_set(0)
    cdef int i
    cdef Py_ssize_t c = 0
    while c + VF64_LANES <= channels:
        reciprocal_vector(var_data + c, rstd_data + c, &negative, eps, VF64_LANES, True)
        c += VF64_LANES
    if c < channels:
        reciprocal_vector(var_data + c, rstd_data + c, &negative, eps, channels - c, False)
    for i in range(VF64_LANES):
        if vget(&negative, i) < 0:
            for c in range(channels):
                if var_data[c] < 0:
                    return c
    return -1


cdef int forward(object x, object mean, object rest, object rstd, object gain, object bias,
                 object y, Shape shape, int n_threads) except -1:
    cdef Statistics statistics = Statistics(
        <double *>address(mean), <double *>address(rest), <double *>address(rstd))
    factors = new_vector(3 * shape.channels, cnp.PyArray_TYPE(x))
    doubles = new_vector(shape.channels + 1, cnp.NPY_INTP)
    cdef void *x_data = address(x)
    cdef void *gain_data = address(gain)
    cdef void *bias_data = address(bias)
    cdef void *factors_data = address(factors)
    cdef Py_ssize_t *doubles_data = <Py_ssize_t *>address(doubles)
    cdef void *y_data = address(y)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            normalize_all[vf32](<vf32 *>x_data, <vf32 *>gain_data, <vf32 *>bias_data,
                                <vf32 *>factors_data, doubles_data, <vf32 *>y_data, shape,
                                statistics, n_threads)
        else:
            normalize_all[vf64](<vf64 *>x_data, <vf64 *>gain_data, <vf64 *>bias_data,
                                <vf64 *>factors_data, doubles_data, <vf64 *>y_data, shape,
                                statistics, n_threads)
    return 0


def batch_norm_forward(x, mean, rest, rstd, gain, bias, y, int n_threads):
    """Normalize x (outer, C, inner) by given statistics (C,) into y.

    rest, gain and bias may be None.
    """
    cdef Shape shape = Shape(dim(x, 0), dim(x, 1), dim(x, 2))
    forward(x, mean, rest, rstd, gain, bias, y, shape, n_threads)


def batch_norm_plain(x, mean, var, gain, bias, channel_axis, eps, out, threads_for):
    """batch_norm; None unless every argument is plain, mean and var of floats or doubles.

    threads_for(elements) tells how many threads to use.
    """
    cdef Shape shape
    if not (is_input(x) and is_eps(eps) and find_channels(x, channel_axis, &shape)):
        return None
    cdef Py_ssize_t channels = shape.channels
    if not (is_parameter(gain, x, channels) and is_parameter(bias, x, channels)
            and is_output(out, x) and apart(out, gain, bias)):
        return None
    mean = as_doubles(mean, channels)
    var = as_doubles(var, channels)
    if mean is None or var is None or not apart(out, mean, var):
        return None
    rstd = new_vector(channels, cnp.NPY_FLOAT64)
    if reciprocal_std(var, rstd, eps) >= 0:
        return None
    y = aligned_like(x) if out is None else out
    forward(x, mean, None, rstd, gain, bias, y, shape, threads_for(cnp.PyArray_SIZE(x)))
    return y


cdef bint overflows(const double *var, Py_ssize_t channels) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(channels):
        if isinf(var[c]):
            return True
    return False


def batch_norm_forward_plain(x, gain, bias, channel_axis, eps, out, moments, threads_for):
    """(y, mean, var) of batch_norm_forward without a mask; None unless every argument is plain.

    None also for doubles without eps, whose 1 / std may overflow, and for those whose var does.
    moments is the kernel batch_moments; threads_for(elements) tells how many threads to use.
    """
    cdef Shape shape
    if not (is_input(x) and is_eps(eps) and find_channels(x, channel_axis, &shape)):
        return None
    cdef Py_ssize_t channels = shape.channels
    if not (shape.outer * shape.inner >= 2 and (eps > 0 or is_single(x))
            and is_parameter(gain, x, channels) and is_parameter(bias, x, channels)
            and is_output(out, x) and apart(out, gain, bias)):
        return None
    n_threads = threads_for(cnp.PyArray_SIZE(x))
    mean, rest, var, rstd = moments(x, shape.outer, channels, shape.inner, eps, n_threads)
    if not is_single(x) and overflows(<const double *>address(var), channels):
        return None
    y = aligned_like(x) if out is None else out
    forward(x, mean, rest, rstd, gain, bias, y, shape, n_threads)
    return y, mean, var


# ---- one row by given factors, for a loop of others ----------------------------------------------


cdef void affine_row(
    const vreal *x,         # IN  (n,)
    vreal *y,               # OUT (n,)
    Py_ssize_t n,
    const vreal **factors,  # IN  mean_hi, scale, offset
    double eps,
    double *cache,
) noexcept nogil:
    cdef const vreal *mean = factors[0]
    cdef const vreal *scale = factors[1]
    cdef const vreal *offset = factors[2]
    cdef Py_ssize_t j = 0
    while j + lanes(x) <= n:
        at_out(y, j)[0] = vfma(at(x, j)[0] - at(mean, j)[0], at(scale, j)[0], at(offset, j)[0])
        j += lanes(x)
    if j < n:
        vstore_first(at_out(y, j),
                     vfma(vload_first(at(x, j), n - j) - vload_first(at(mean, j), n - j),
                          vload_first(at(scale, j), n - j), vload_first(at(offset, j), n - j)),
                     n - j)


def row_function(bint single):
    """A capsule of the function for a row of float, or else of double; norm_rows.pxd describes it.

    Its parameters are the mean, rounded, the scale and the offset of the head of this module.
    """
    return forward_capsule(<NormForward>affine_row[vf32], <NormForward>affine_row[vf64], single)
