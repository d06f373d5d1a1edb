"""Gradients of group normalization of x (samples, positions, channels): channels last.

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), statistics and dgain and
dbias in float64, no axis empty, groups dividing the channels.

Design
------
With d = x - mean_hi, and of each channel f, its first dy of the sample, and g = dy - f, one pass
takes the sums of g, of g * d and of d (group_columns.pxd tells in what order), and

    sum(dy) = sum(g) + positions * f
    sum(dy * xhat) = rstd * sum(g * d) + offset * sum(g) + f * sum(xhat)

In a group's sum(gain * dy * xhat) the mean of gain * f over its channels is left out of the last
summand, as sum(xhat) over the group is zero, and mean(gain * dy) is the sum of that mean and of a
rest: so a gradient that is nearly constant keeps its digits. A second pass writes dx, by batch
norm's columns:

    dx = rstd * gain * (dy - center) + (x - mean_hi) * slope + level

Groups beyond what these sums and factors can hold are done in double, by themselves. dgain and
dbias are sums over blocks of samples, of a size that only the shape decides, merged in their order.

Threads share the blocks of samples. What is left of large samples they do together.
"""
cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport fabs, fma, isfinite

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.channel_gradients cimport (
    CENTER, LEVEL, MEAN, SCALE, SLOPE, input_gradient_columns,
)
from normlib._kernels.channels cimport PAIR, Shape, gain_of, rows_together, sweep_start
from normlib._kernels.group_columns cimport (
    Columns, WIDE_SUMS, add_sums, elements, find_columns, group_sum, repeat_channels, sample_sums,
    sums_by_channel, together_from,
)
from normlib._kernels.plain cimport new_vector
from normlib._kernels.rows cimport FOLD, vector_range
from normlib._kernels.vec cimport (
    STREAM_FLOATS, at, at_out, lanes, to_boundary, vadd_to, vec_fence, vec_prefetch, vf32, vf64,
    vfirst, vfma, vget, vload, vput, vreal, vround, vset,
)

cnp.import_array()

cdef enum:
    POSITIONS = 256      # of a block of samples, at least


cdef struct Group:
    double mean_hi       # in the type of x
    double mean_lo
    double rstd
    double offset        # xhat = fma(x - mean_hi, rstd, offset)
    bint beyond          # the range of these: in double


cdef struct Scratch:     # of a thread
    double *total        # (3, padded): sums of g, of g * d, of d
    double *sums         # (3, padded); with threads (blocks, 3, padded)
    void *first          # (padded,) of T
    void *factors        # (7, padded) of T
    Group *groups        # (groups,)


cdef inline Py_ssize_t scratch_size(const Columns *columns, Py_ssize_t blocks) noexcept nogil:
    """In doubles, by whole cache lines."""
    cdef Py_ssize_t size = (11 + 3 * blocks) * columns.padded
    size += (columns.groups * <Py_ssize_t>sizeof(Group) + 7) // 8
    return (size + 7) // 8 * 8


cdef inline Scratch divide_scratch(double *memory, const Columns *columns,
                                   Py_ssize_t blocks) noexcept nogil:
    cdef Scratch scratch
    cdef Py_ssize_t n = columns.padded
    scratch.total = memory
    scratch.first = memory + 3 * n
    scratch.factors = memory + 4 * n
    scratch.sums = memory + 11 * n
    scratch.groups = <Group *>(memory + (11 + 3 * blocks) * n)
    return scratch


# ---- sums ----------------------------------------------------------------------------------------


cdef inline void vector_sums(
    const vreal *dy,        # IN  (n_rows, width), at the first column
    const vreal *x,         # IN  (n_rows, width)
    const vreal *first,     # IN  one vector
    const vreal *mean,      # IN  one vector
    double *sum_g,          # IN/OUT one vector
    double *sum_gd,         # IN/OUT one vector
    double *sum_d,          # IN/OUT one vector
    int n_rows,             # at most FOLD; a constant
    Py_ssize_t width,
    Py_ssize_t n,           # columns, at most a vector
    bint full,              # a constant: exactly one
) noexcept nogil:
    cdef vreal f = first[0]
    cdef vreal m = mean[0]
    cdef vreal acc1 = vset(0, x)
    cdef vreal acc2 = vset(0, x)
    cdef vreal acc3 = vset(0, x)
    cdef vreal g, d
    cdef Py_ssize_t r
    for r in range(n_rows):
        if n_rows == FOLD:
            vec_prefetch(at(dy, (r + FOLD) * width))
            vec_prefetch(at(x, (r + FOLD) * width))
        g = vload(at(dy, r * width), n, full) - f
        d = vload(at(x, r * width), n, full) - m
        if not full:
            g = vfirst(g, n)
            d = vfirst(d, n)
        acc1 = acc1 + g
        acc2 = vfma(g, d, acc2)
        acc3 = acc3 + d
    vadd_to(sum_g, acc1)
    vadd_to(sum_gd, acc2)
    vadd_to(sum_d, acc3)


cdef inline void few_sums(
    const vreal *dy,        # IN  (n_rows, width)
    const vreal *x,         # IN  (n_rows, width)
    const Scratch *scratch,
    double *sums,           # IN/OUT (3, padded)
    const Columns *columns,
    int n_rows,             # at most FOLD; a constant
    Py_ssize_t n,           # columns
) noexcept nogil:
    cdef const vreal *first = <vreal *>scratch.first
    cdef const vreal *mean = at(<vreal *>scratch.factors, MEAN * columns.padded)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t stride = columns.width
    cdef double *sum_gd = sums + columns.padded
    cdef double *sum_d = sums + 2 * columns.padded
    cdef Py_ssize_t c = 0
    while c + width <= n:
        vector_sums(at(dy, c), at(x, c), at(first, c), at(mean, c), sums + c, sum_gd + c,
                    sum_d + c, n_rows, stride, width, True)
        c += width
    if c < n:
        vector_sums(at(dy, c), at(x, c), at(first, c), at(mean, c), sums + c, sum_gd + c,
                    sum_d + c, n_rows, stride, n - c, False)


cdef inline void block_sums(
    const vreal *dy,        # IN  (positions, channels)
    const vreal *x,         # IN  (positions, channels)
    const Scratch *scratch,
    double *sums,           # OUT (3, padded)
    const Columns *columns,
    Py_ssize_t b,
) noexcept nogil:
    cdef Py_ssize_t first = b * columns.block
    cdef Py_ssize_t stop = min(first + columns.block, columns.rows)
    cdef Py_ssize_t i
    for i in range(3 * columns.padded):
        sums[i] = 0
    while first < stop:
        i = first * columns.width
        if first + FOLD <= stop:
            few_sums(at(dy, i), at(x, i), scratch, sums, columns, FOLD, columns.width)
            first += FOLD
        else:
            few_sums(at(dy, i), at(x, i), scratch, sums, columns, 1, columns.width)
            first += 1
    if columns.cut > 0 and b == columns.blocks - 1:
        i = columns.rows * columns.width
        few_sums(at(dy, i), at(x, i), scratch, sums, columns, 1, columns.cut)


cdef inline void gradient_sums(
    const vreal *dy,        # IN  (positions, channels)
    const vreal *x,         # IN  (positions, channels)
    const Scratch *scratch,
    const Columns *columns,
    int n_threads,
) noexcept nogil:
    """The three sums of each channel."""
    cdef Py_ssize_t n = 3 * columns.padded
    cdef Py_ssize_t b, i
    for i in range(n):
        scratch.total[i] = 0
    if n_threads == 1:
        for b in range(columns.blocks):
            block_sums(dy, x, scratch, scratch.sums, columns, b)
            add_sums(scratch.total, scratch.sums, n)
    else:
        for b in prange(columns.blocks, schedule="static", num_threads=n_threads):
            block_sums(dy, x, scratch, scratch.sums + b * n, columns, b)
        for b in range(columns.blocks):
            add_sums(scratch.total, scratch.sums + b * n, n)
    for i in range(3):
        sums_by_channel(scratch.total + i * columns.padded, columns)


# ---- factors -------------------------------------------------------------------------------------


cdef inline void prepare_groups(
    const vreal *dy,        # IN  (positions, channels)
    const vreal *x,         # IN  (positions, channels)
    const double *mean,     # IN  (groups,)
    const double *rstd,     # IN  (groups,)
    const Scratch *scratch,
    const Columns *columns,
    int n_threads,
) noexcept nogil:
    """What xhat takes, and the first dy."""
    cdef vreal *first = <vreal *>scratch.first
    cdef vreal *means = at_out(<vreal *>scratch.factors, MEAN * columns.padded)
    cdef Group *groups = scratch.groups
    cdef Py_ssize_t n = columns.channels // columns.groups
    cdef Py_ssize_t g, c
    cdef double rest
    for g in range(columns.groups):
        groups[g].rstd = rstd[g]
        groups[g].mean_hi = vround(mean[g], x)
        groups[g].mean_lo = mean[g] - groups[g].mean_hi
        # Products of g and d, too, must stay in range.
        groups[g].beyond = not (vector_range(x, rstd[g]) and vector_range(x, rstd[g] * rstd[g]))
        for c in range(g * n, (g + 1) * n):
            vput(means, c, groups[g].mean_hi)
            vput(first, c, vget(dy, c) if isfinite(vget(dy, c)) else 0.0)
    repeat_channels(means, columns)
    repeat_channels(first, columns)
    if vreal is vf64:
        # What a double has no room for: the mean of the deviations from it.
        sample_sums(WIDE_SUMS, x, means, scratch.total, scratch.sums, columns, n_threads)
        for g in range(columns.groups):
            rest = group_sum(scratch.total + g * n, n) / <double>(columns.positions * n)
            if fabs(rest) <= 4e-16 * fabs(mean[g]):
                groups[g].mean_lo = rest
    for g in range(columns.groups):
        groups[g].offset = -groups[g].mean_lo * groups[g].rstd


cdef inline bint finish_group(
    const vreal *gain,      # IN  (channels,) or NULL
    double *dgain,          # IN/OUT (channels,)
    double *dbias,          # IN/OUT (channels,)
    const Scratch *scratch,
    const Columns *columns,
    Py_ssize_t g,
) noexcept nogil:
    """Factors of the group's channels, and their gradients; False, nothing done, where they are
    beyond range.
    """
    cdef const vreal *first = <vreal *>scratch.first
    cdef vreal *factors = <vreal *>scratch.factors
    cdef const Group *group = &scratch.groups[g]
    cdef const double *sum_g = scratch.total
    cdef const double *sum_gd = scratch.total + columns.padded
    cdef const double *sum_d = scratch.total + 2 * columns.padded
    cdef Py_ssize_t padded = columns.padded
    cdef Py_ssize_t n = columns.channels // columns.groups
    cdef double count = <double>(columns.positions * n)
    cdef double mean_f = 0
    cdef double rest = 0        # mean(gain * dy) - mean_f
    cdef double mean_gx = 0
    cdef double slope, level, center, factor, apart, sum_xhat
    cdef Py_ssize_t c
    cdef bint in_range = not group.beyond
    for c in range(g * n, (g + 1) * n):
        mean_f += gain_of(gain, c) * vget(first, c) / n
    for c in range(g * n, (g + 1) * n):
        factor = gain_of(gain, c)
        sum_xhat = 0
        if n > 1:
            sum_xhat = group.rstd * sum_d[c] + group.offset * columns.positions
        apart = fma(factor, vget(first, c), -mean_f)
        mean_gx += (factor * (group.rstd * sum_gd[c] + group.offset * sum_g[c])
                    + apart * sum_xhat)
        rest += factor * sum_g[c] + columns.positions * apart
        in_range = in_range and vector_range(factors, factor * group.rstd)
    mean_gx /= count
    rest /= count
    slope = -mean_gx * group.rstd * group.rstd
    level = -(mean_f + rest + mean_gx * group.offset) * group.rstd
    if not (in_range and isfinite(slope) and fabs(level) < 1e30
            and (mean_gx == 0 or slope != 0 and vector_range(factors, slope))):
        return False
    for c in range(g * n, (g + 1) * n):
        factor = gain_of(gain, c)
        center = (mean_f + rest) / factor if fabs(mean_f + rest) < 1e20 * fabs(factor) else 0.0
        vput(factors, SCALE * padded + c, factor * group.rstd)
        vput(factors, CENTER * padded + c, center)
        center = vget(factors, CENTER * padded + c)
        level = -((fma(-factor, center, mean_f) + rest) + mean_gx * group.offset) * group.rstd
        vput(factors, SLOPE * padded + c, slope)
        vput(factors, LEVEL * padded + c, level)
        sum_xhat = 0
        if n > 1:
            sum_xhat = group.rstd * sum_d[c] + group.offset * columns.positions
        dgain[c] += (group.rstd * sum_gd[c] + group.offset * sum_g[c]) + vget(first, c) * sum_xhat
        dbias[c] += sum_g[c] + columns.positions * vget(first, c)
    return True


# ---- dx ------------------------------------------------------------------------------------------


cdef inline void some_gradients(
    const vreal *dy,        # IN  (n_rows, width)
    const vreal *x,         # IN  (n_rows, width)
    const vreal *factors,   # IN  (7, padded)
    vreal *dx,              # OUT (n_rows, width)
    const Columns *columns,
    Py_ssize_t n_rows,
    Py_ssize_t n,           # columns
    bint stream,            # a constant
) noexcept nogil:
    if n_rows == PAIR:
        input_gradient_columns(dy, x, factors, dx, NULL, PAIR, columns.width, columns.padded, 0, n,
                               stream)
    else:
        input_gradient_columns(dy, x, factors, dx, NULL, n_rows, columns.width, columns.padded, 0,
                               n, stream)


cdef inline void row_gradients(
    const vreal *dy,        # IN  (positions, channels)
    const vreal *x,         # IN  (positions, channels)
    vreal *dx,              # OUT (positions, channels)
    const Scratch *scratch,
    const Columns *columns,
    bint stream,
    Py_ssize_t first,
    Py_ssize_t stop,
) noexcept nogil:
    """Rows of columns, the last first: the sums have just left them in the cache."""
    cdef const vreal *factors = <vreal *>scratch.factors
    cdef Py_ssize_t width = columns.width
    cdef Shape shape = Shape(columns.rows, width, 1)
    cdef Py_ssize_t together = rows_together(&shape, stream)
    cdef Py_ssize_t start, row, count, i
    if stop == columns.rows and columns.cut > 0:
        i = columns.rows * width
        some_gradients(at(dy, i), at(x, i), factors, at_out(dx, i), columns, 1, columns.cut, False)
    while stop > first:
        start = sweep_start(first, stop, width, True)
        row = start
        while row < stop:
            count = min(together, stop - row)
            i = row * width
            if stream:
                some_gradients(at(dy, i), at(x, i), factors, at_out(dx, i), columns, count, width,
                               True)
            else:
                some_gradients(at(dy, i), at(x, i), factors, at_out(dx, i), columns, count, width,
                               False)
            row += count
        stop = start


cdef void group_double(
    const vreal *dy,        # IN  (positions, channels), at the group's first channel
    const vreal *x,         # IN  (positions, channels)
    const vreal *gain,      # IN  (channels,) or NULL
    vreal *dx,              # OUT (positions, channels)
    double *dgain,          # IN/OUT (n,)
    double *dbias,          # IN/OUT (n,)
    const Group *group,
    const Columns *columns,
    Py_ssize_t n,           # channels of the group
) noexcept nogil:
    cdef double count = <double>(columns.positions * n)
    cdef double mean_g = 0
    cdef double mean_gx = 0
    cdef double g, xhat
    cdef Py_ssize_t p, c, i
    for p in range(columns.positions):
        for c in range(n):
            i = p * columns.channels + c
            xhat = ((vget(x, i) - group.mean_hi) - group.mean_lo) * group.rstd
            g = vget(dy, i)
            dgain[c] += g * xhat
            dbias[c] += g
            g = g * gain_of(gain, c)
            mean_g += g / count
            mean_gx += g * xhat / count
    for p in range(columns.positions):
        for c in range(n):
            i = p * columns.channels + c
            xhat = ((vget(x, i) - group.mean_hi) - group.mean_lo) * group.rstd
            g = vget(dy, i) * gain_of(gain, c)
            vput(dx, i, (g - mean_g - xhat * mean_gx) * group.rstd)


cdef void gradients_with_doubles(
    const vreal *dy,        # IN  (positions, channels)
    const vreal *x,         # IN  (positions, channels)
    const vreal *gain,      # IN  (channels,) or NULL
    vreal *dx,              # OUT (positions, channels)
    double *dgain,          # IN/OUT (channels,)
    double *dbias,          # IN/OUT (channels,)
    const Scratch *scratch,
    const Columns *columns,
) noexcept nogil:
    """A sample of which some groups are beyond range: these in double."""
    cdef Py_ssize_t n = columns.channels // columns.groups
    cdef Py_ssize_t g, c
    for g in range(columns.groups):
        c = g * n
        if scratch.groups[g].beyond:
            group_double(at(dy, c), at(x, c), at(gain, c) if gain != NULL else gain, at_out(dx, c),
                         dgain + c, dbias + c, &scratch.groups[g], columns, n)
        else:
            input_gradient_columns(dy, x, <vreal *>scratch.factors, dx, NULL, columns.positions,
                                   columns.channels, columns.padded, c, c + n, False)


cdef void backward_sample(
    const vreal *dy,        # IN  (positions, channels)
    const vreal *x,         # IN  (positions, channels)
    const vreal *gain,      # IN  (channels,) or NULL
    const double *mean,     # IN  (groups,)
    const double *rstd,     # IN  (groups,)
    vreal *dx,              # OUT (positions, channels)
    double *dgain,          # IN/OUT (channels,)
    double *dbias,          # IN/OUT (channels,)
    const Scratch *scratch,
    const Columns *columns,
    bint stream,
    int n_threads,
) noexcept nogil:
    cdef vreal *factors = <vreal *>scratch.factors
    cdef Py_ssize_t g, k
    cdef int part
    cdef bint any_double = False
    prepare_groups(dy, x, mean, rstd, scratch, columns, n_threads)
    gradient_sums(dy, x, scratch, columns, n_threads)
    for g in range(columns.groups):
        if not finish_group(gain, dgain, dbias, scratch, columns, g):
            scratch.groups[g].beyond = True
            any_double = True
    if any_double:
        gradients_with_doubles(dy, x, gain, dx, dgain, dbias, scratch, columns)
        return
    for k in range(SCALE, LEVEL + 1):
        repeat_channels(at_out(factors, k * columns.padded), columns)
    if n_threads == 1:
        row_gradients(dy, x, dx, scratch, columns, stream, 0, columns.rows)
    else:
        for part in prange(n_threads, schedule="static", num_threads=n_threads):
            row_gradients(dy, x, dx, scratch, columns, stream, columns.rows * part // n_threads,
                          columns.rows * (part + 1) // n_threads)


# ---- samples -------------------------------------------------------------------------------------


cdef inline Py_ssize_t block_samples(const Columns *columns) noexcept nogil:
    """Samples in a block: more where they are short, lest the sums outgrow the input."""
    return (POSITIONS + columns.positions - 1) // columns.positions


cdef void backward_block(
    const vreal *dy, const vreal *x, const vreal *gain, const double *mean, const double *rstd,
    vreal *dx, double *partial, const Scratch *scratch, const Columns *columns, bint stream,
    Py_ssize_t b, int n_threads,
) noexcept nogil:
    """Block b of samples; partial is (blocks, 2, channels)."""
    cdef Py_ssize_t size = block_samples(columns)
    cdef Py_ssize_t channels = columns.channels
    cdef double *dgain = partial + 2 * b * channels
    cdef double *dbias = dgain + channels
    cdef Py_ssize_t n, i
    for i in range(2 * channels):
        dgain[i] = 0
    for n in range(b * size, min((b + 1) * size, columns.samples)):
        i = n * elements(columns)
        backward_sample(at(dy, i), at(x, i), gain, mean + n * columns.groups,
                        rstd + n * columns.groups, at_out(dx, i), dgain, dbias, scratch, columns,
                        stream, n_threads)


cdef void backward_part(
    const vreal *dy, const vreal *x, const vreal *gain, const double *mean, const double *rstd,
    vreal *dx, double *partial, double *memory, const Columns *columns, bint stream,
    Py_ssize_t blocks, Py_ssize_t first, Py_ssize_t stop, int n_threads,
) noexcept nogil:
    """The blocks of samples from first to stop; n_threads share each sample."""
    cdef Scratch scratch = divide_scratch(memory, columns, blocks)
    cdef Py_ssize_t b
    for b in range(first, stop):
        backward_block(dy, x, gain, mean, rstd, dx, partial, &scratch, columns, stream, b,
                       n_threads)
    if stream:
        vec_fence()


cdef void backward_all(const vreal *dy, const vreal *x, const vreal *gain, const double *mean,
                       const double *rstd, vreal *dx, double *dgain, double *dbias,
                       double *partial, double *memory, Columns columns, Py_ssize_t size,
                       Py_ssize_t blocks, int n_threads) noexcept nogil:
    cdef bint stream = (columns.samples * elements(&columns) >= STREAM_FLOATS
                        and columns.width % lanes(x) == 0 and elements(&columns) % lanes(x) == 0
                        and to_boundary(dx) == 0)
    cdef Py_ssize_t n_blocks = count_blocks(&columns)
    cdef Py_ssize_t shared = together_from(&columns, n_threads)
    cdef Py_ssize_t b
    cdef int part
    if shared == columns.samples:
        shared = n_blocks
    elif block_samples(&columns) > 1:
        shared = n_blocks
    if n_threads == 1:
        backward_part(dy, x, gain, mean, rstd, dx, partial, memory, &columns, stream, 1, 0,
                      n_blocks, 1)
    else:
        for part in prange(n_threads, schedule="static", num_threads=n_threads):
            backward_part(dy, x, gain, mean, rstd, dx, partial, memory + part * size, &columns,
                          stream, 1, shared * part // n_threads, shared * (part + 1) // n_threads,
                          1)
        backward_part(dy, x, gain, mean, rstd, dx, partial, memory, &columns, stream, blocks,
                      shared, n_blocks, n_threads)
    for b in range(columns.channels):
        dgain[b] = 0
        dbias[b] = 0
    for b in range(n_blocks):
        add_sums(dgain, partial + 2 * b * columns.channels, columns.channels)
        add_sums(dbias, partial + (2 * b + 1) * columns.channels, columns.channels)


cdef inline Py_ssize_t count_blocks(const Columns *columns) noexcept nogil:
    return (columns.samples + block_samples(columns) - 1) // block_samples(columns)


def group_columns_backward(dy, x, Py_ssize_t groups, gain, mean, rstd, dx, dgain, dbias,
                           int n_threads):
    """Gradients of group_columns_forward; gain may be None. dgain, dbias (channels,) are float64.
    """
    cdef Columns columns = find_columns(dim(x, 0), dim(x, 1), dim(x, 2), groups)
    # Of threads together, if any sample is done so.
    cdef Py_ssize_t blocks = 1
    if together_from(&columns, n_threads) < columns.samples:
        blocks = columns.blocks
    cdef Py_ssize_t size = scratch_size(&columns, 1)
    cdef object scratch = new_vector(max(n_threads * size, scratch_size(&columns, blocks)) + 8,
                                     cnp.NPY_FLOAT64)
    cdef object partial = new_vector(2 * count_blocks(&columns) * columns.channels,
                                     cnp.NPY_FLOAT64)
    cdef void *dy_data = address(dy)
    cdef void *x_data = address(x)
    cdef void *gain_data = address(gain)
    cdef double *mean_data = <double *>address(mean)
    cdef double *rstd_data = <double *>address(rstd)
    cdef void *dx_data = address(dx)
    cdef double *dgain_data = <double *>address(dgain)
    cdef double *dbias_data = <double *>address(dbias)
    cdef double *partial_data = <double *>address(partial)
    cdef double *memory = <double *>address(scratch)
    memory += to_boundary(<vf64 *>memory)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            backward_all[vf32](<vf32 *>dy_data, <vf32 *>x_data, <vf32 *>gain_data, mean_data,
                               rstd_data, <vf32 *>dx_data, dgain_data, dbias_data, partial_data,
                               memory, columns, size, blocks, n_threads)
        else:
            backward_all[vf64](<vf64 *>dy_data, <vf64 *>x_data, <vf64 *>gain_data, mean_data,
                               rstd_data, <vf64 *>dx_data, dgain_data, dbias_data, partial_data,
                               memory, columns, size, blocks, n_threads)
