"""Group normalization of x (samples, positions, channels): channels last.

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), statistics in float64, no
axis empty, groups dividing the channels.

Design
------
A sample is read twice, the second time from the cache: for the sums of its columns
(group_columns.pxd), and for the output, by batch norm's columns:

    y = fma(x - mean_hi, gain * rstd, bias - mean_lo * gain * rstd)

As with rows (rows.pxd) y takes less than the statistics do: sums in the type of x about a value
near the mean, where they are good enough. A group for which they are not, the statistics, and
float64 take sums in double, about a value that is nearer. Groups that overflow or underflow there
are done by themselves, scaled.

Threads share the samples. What is left of large ones they do together, block by block.
"""
cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport isfinite, sqrt

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.channel_outputs cimport normalize_columns
from normlib._kernels.channels cimport (
    PAIR, Shape, Statistics, find_doubles, rows_together, scale_channels, sweep_start,
)
from normlib._kernels.group_columns cimport (
    Columns, QUICK_SUMS, WIDE_SUMS, elements, few_sums, find_columns, group_sum, repeat_channels,
    sample_sums, sums_by_channel, together_from,
)
from normlib._kernels.plain cimport new_vector
from normlib._kernels.quick_moments cimport good_moments
from normlib._kernels.rows cimport (
    FOLD, ScaledMoments, needs_scaling, scaled_moments, scaled_xhat, unscaled_mean, unscaled_rstd,
)
from normlib._kernels.vec cimport (
    STREAM_FLOATS, at, at_out, lanes, to_boundary, vec_fence, vf32, vf64, vget, vput, vreal, vround,
)

cnp.import_array()

cdef enum:
    FAR = 256            # the square of how many deviations a shift may be from the mean


cdef struct Group:
    double shift         # sums are about it; in the type of x
    double mean_hi       # in the type of x
    double mean_lo
    double var
    bint good            # enough for y
    bint done            # exact
    bint scaled          # exact by the moments in extreme
    ScaledMoments extreme


cdef struct Scratch:     # of a thread
    double *total        # (2, padded)
    double *sums         # (2, padded); with threads (blocks, 2, padded)
    double *mean         # (channels,)
    double *rest         # (channels,)
    double *rstd         # (channels,)
    void *shift          # (padded,) of T
    void *factors        # (3, padded) of T
    Py_ssize_t *doubles  # (channels + 1,)
    Group *groups        # (groups,)


cdef inline Py_ssize_t scratch_size(const Columns *columns, Py_ssize_t blocks) noexcept nogil:
    """In doubles, by whole cache lines."""
    cdef Py_ssize_t size = (10 + 2 * blocks) * columns.padded + 8
    size += (columns.groups * <Py_ssize_t>sizeof(Group) + 7) // 8
    return (size + 7) // 8 * 8


cdef inline Scratch divide_scratch(double *memory, const Columns *columns,
                                   Py_ssize_t blocks) noexcept nogil:
    cdef Scratch scratch
    cdef Py_ssize_t n = columns.padded
    scratch.total = memory
    scratch.mean = memory + 2 * n
    scratch.rest = memory + 3 * n
    scratch.rstd = memory + 4 * n
    scratch.shift = memory + 5 * n
    scratch.factors = memory + 6 * n
    scratch.sums = memory + 9 * n
    scratch.doubles = <Py_ssize_t *>(memory + (9 + 2 * blocks) * n)
    scratch.groups = <Group *>(memory + (10 + 2 * blocks) * n + 8)
    return scratch


cdef inline void put_shifts(vreal *shift, const Group *groups,
                            const Columns *columns) noexcept nogil:
    cdef Py_ssize_t n = columns.channels // columns.groups
    cdef Py_ssize_t g, c
    for g in range(columns.groups):
        for c in range(g * n, (g + 1) * n):
            vput(shift, c, groups[g].shift)
    repeat_channels(shift, columns)


cdef inline void near_shifts(
    const vreal *x,         # IN  (positions, channels)
    const Scratch *scratch,
    const Columns *columns,
) noexcept nogil:
    """Shifts: means of the first positions."""
    cdef vreal *shift = <vreal *>scratch.shift
    cdef Group *groups = scratch.groups
    cdef Py_ssize_t n = columns.channels // columns.groups
    cdef Py_ssize_t rows = min(<Py_ssize_t>FOLD, columns.rows)
    cdef Py_ssize_t g, i, r
    cdef double count
    for i in range(2 * columns.padded):
        scratch.total[i] = 0
    for i in range(columns.padded):
        vput(shift, i, 0)
    if rows == FOLD:
        few_sums(WIDE_SUMS, x, shift, scratch.total, columns, FOLD, columns.width)
    else:
        for r in range(rows):
            few_sums(WIDE_SUMS, at(x, r * columns.width), shift, scratch.total, columns, 1,
                     columns.width)
        if rows == 0:
            few_sums(WIDE_SUMS, x, shift, scratch.total, columns, 1, columns.cut)
    sums_by_channel(scratch.total, columns)
    count = <double>(rows * columns.width if rows > 0 else columns.cut) / columns.groups
    for g in range(columns.groups):
        groups[g].shift = vround(group_sum(scratch.total + g * n, n) / count, x)


cdef inline void group_moments(
    const vreal *x,         # IN: tells the type
    Group *group,           # IN/OUT
    const double *sums,     # IN  (2, padded), of the group's first channel
    const Columns *columns,
    double *square,         # OUT of how far the shift is from the mean
) noexcept nogil:
    cdef Py_ssize_t n = columns.channels // columns.groups
    cdef double inverse = 1 / <double>(columns.positions * n)
    cdef double c = group_sum(sums, n) * inverse
    cdef double var = group_sum(sums + columns.padded, n) * inverse - c * c
    if var < 0:
        var = 0
    group.mean_hi = vround(group.shift + c, x)
    group.mean_lo = (group.shift - group.mean_hi) + c
    group.var = var
    square[0] = c * c


cdef inline bint quick_moments(
    const vreal *x,         # IN  (positions, channels)
    const Scratch *scratch,
    const Columns *columns,
    int n_threads,
) noexcept nogil:
    """Whether those of all groups are good enough for y."""
    cdef Group *groups = scratch.groups
    cdef Py_ssize_t n = columns.channels // columns.groups
    cdef double square
    cdef Py_ssize_t g
    cdef bint all_good = True
    near_shifts(x, scratch, columns)
    put_shifts(<vreal *>scratch.shift, groups, columns)
    sample_sums(QUICK_SUMS, x, <vreal *>scratch.shift, scratch.total, scratch.sums, columns,
                n_threads)
    for g in range(columns.groups):
        group_moments(x, &groups[g], scratch.total + g * n, columns, &square)
        groups[g].good = (good_moments(x, groups[g].var, 0)
                          and square <= groups[g].var)
        all_good = all_good and groups[g].good
    return all_good


cdef inline void exact_moments(
    const vreal *x,         # IN  (positions, channels)
    double *mean,           # OUT (groups,) or NULL
    double *rstd,           # OUT (groups,) or NULL
    const Scratch *scratch,
    const Columns *columns,
    double eps,
    int n_threads,
) noexcept nogil:
    """All groups' moments from sums in double; those that are not good enough, for y, too."""
    cdef Group *groups = scratch.groups
    cdef Py_ssize_t n = columns.channels // columns.groups
    cdef Group exact
    cdef double square
    cdef Py_ssize_t g
    cdef int turn
    cdef bint again = True
    for g in range(columns.groups):
        # A group's own value: of a constant one, all deviations are then 0.
        groups[g].shift = groups[g].mean_hi if groups[g].good else vget(x, g * n)
        groups[g].done = False
    for turn in range(2):
        if not again:
            return
        again = False
        put_shifts(<vreal *>scratch.shift, groups, columns)
        sample_sums(WIDE_SUMS, x, <vreal *>scratch.shift, scratch.total, scratch.sums, columns,
                    n_threads)
        for g in range(columns.groups):
            if groups[g].done:
                continue
            exact = groups[g]
            group_moments(x, &exact, scratch.total + g * n, columns, &square)
            if turn == 0 and square > 0 and isfinite(exact.mean_hi) and (
                    vreal is vf64 or square > FAR * exact.var):
                groups[g].shift = exact.mean_hi
                again = True
                continue
            groups[g].done = True
            exact.scaled = needs_scaling(x, exact.var, eps)
            if exact.scaled:
                scaled_moments(at(x, g * n), columns.positions, columns.channels, n, eps,
                               &exact.extreme)
            if mean != NULL:
                mean[g] = exact.mean_hi + exact.mean_lo
                rstd[g] = 1 / sqrt(exact.var + eps)
            if mean != NULL and exact.scaled:
                mean[g] = unscaled_mean(&exact.extreme)
                rstd[g] = unscaled_rstd(&exact.extreme)
            if not groups[g].good:
                groups[g] = exact


cdef inline void find_factors(
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    const Scratch *scratch,
    const Columns *columns,
    double eps,
) noexcept nogil:
    """Factors of the columns, or, where there are doubles, of the channels."""
    cdef vreal *factors = <vreal *>scratch.factors
    cdef Statistics statistics = Statistics(scratch.mean, scratch.rest, scratch.rstd)
    cdef Py_ssize_t channels = columns.channels
    cdef Py_ssize_t n = channels // columns.groups
    cdef Py_ssize_t g, c, k
    cdef double rstd
    cdef bint any_double
    for g in range(columns.groups):
        rstd = 1 / sqrt(scratch.groups[g].var + eps)
        if scratch.groups[g].scaled:
            rstd = 1e300    # beyond vector range
        for c in range(g * n, (g + 1) * n):
            scratch.mean[c] = scratch.groups[g].mean_hi
            scratch.rest[c] = scratch.groups[g].mean_lo
            scratch.rstd[c] = rstd
    any_double = scale_channels(gain, bias, factors, at_out(factors, columns.padded),
                                at_out(factors, 2 * columns.padded), &statistics, channels)
    find_doubles(gain, factors, scratch.doubles, &statistics, channels, any_double)
    if scratch.doubles[0] < channels:
        scale_channels(gain, bias, factors, at_out(factors, channels),
                       at_out(factors, 2 * channels), &statistics, channels)
        return
    for k in range(3):
        repeat_channels(at_out(factors, k * columns.padded), columns)


cdef inline void normalize_some(
    const vreal *x,         # IN  (n_rows, width)
    const vreal *factors,   # IN  (3, padded)
    vreal *y,               # OUT (n_rows, width), may be x
    const Columns *columns,
    Py_ssize_t n_rows,
    Py_ssize_t n,           # columns
    bint stream,            # a constant
) noexcept nogil:
    if n_rows == PAIR:
        normalize_columns(x, factors, y, PAIR, columns.width, columns.padded, 0, n, stream)
    elif n_rows == FOLD:
        normalize_columns(x, factors, y, FOLD, columns.width, columns.padded, 0, n, stream)
    else:
        normalize_columns(x, factors, y, n_rows, columns.width, columns.padded, 0, n, stream)


cdef inline void normalize_rows(
    const vreal *x,         # IN  (positions, channels)
    vreal *y,               # OUT (positions, channels), may be x
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
    cdef Py_ssize_t start, row, count
    if stop == columns.rows and columns.cut > 0:
        start = columns.rows * width
        normalize_some(at(x, start), factors, at_out(y, start), columns, 1, columns.cut, False)
    while stop > first:
        start = sweep_start(first, stop, width, True)
        row = start
        while row < stop:
            count = min(together, stop - row)
            if stream:
                normalize_some(at(x, row * width), factors, at_out(y, row * width), columns, count,
                               width, True)
            else:
                normalize_some(at(x, row * width), factors, at_out(y, row * width), columns, count,
                               width, False)
            row += count
        stop = start


cdef void normalize_with_doubles(
    const vreal *x,         # IN  (positions, channels)
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    vreal *y,               # OUT (positions, channels), may be x
    const Scratch *scratch,
    const Columns *columns,
) noexcept nogil:
    """A sample of which some channels are beyond vector range: these in double."""
    cdef const vreal *factors = <vreal *>scratch.factors
    cdef Py_ssize_t channels = columns.channels
    cdef Py_ssize_t n = channels // columns.groups
    cdef Py_ssize_t _, first, d, c
    cdef const Group *group
    cdef double v
    for _ in range(columns.positions):
        first = 0
        d = 0
        while first <= channels:
            c = scratch.doubles[d]
            normalize_columns(x, factors, y, 1, channels, channels, first, c, False)
            if c < channels:
                group = &scratch.groups[c // n]
                if group.scaled:
                    v = scaled_xhat(vget(x, c), &group.extreme)
                else:
                    v = ((vget(x, c) - group.mean_hi) - group.mean_lo) * scratch.rstd[c]
                if gain != NULL:
                    v = v * vget(gain, c)
                if bias != NULL:
                    v = v + vget(bias, c)
                vput(y, c, v)
            first = c + 1
            d += 1
        x = at(x, channels)
        y = at_out(y, channels)


cdef void forward_sample(
    const vreal *x,         # IN  (positions, channels)
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    vreal *y,               # OUT (positions, channels), may be x
    double *mean,           # OUT (groups,) or NULL
    double *rstd,           # OUT (groups,) or NULL
    const Scratch *scratch,
    const Columns *columns,
    double eps,
    bint stream,
    int n_threads,
) noexcept nogil:
    cdef Py_ssize_t g
    cdef int part
    cdef bint good = False
    for g in range(columns.groups):
        scratch.groups[g].good = False
        scratch.groups[g].scaled = False
    if vreal is vf32:
        good = quick_moments(x, scratch, columns, n_threads)
    if mean != NULL or not good:
        exact_moments(x, mean, rstd, scratch, columns, eps, n_threads)
    find_factors(gain, bias, scratch, columns, eps)
    if scratch.doubles[0] < columns.channels:
        normalize_with_doubles(x, gain, bias, y, scratch, columns)
    elif n_threads == 1:
        normalize_rows(x, y, scratch, columns, stream, 0, columns.rows)
    else:
        for part in prange(n_threads, schedule="static", num_threads=n_threads):
            normalize_rows(x, y, scratch, columns, stream, columns.rows * part // n_threads,
                           columns.rows * (part + 1) // n_threads)


cdef void forward_samples(
    const vreal *x, const vreal *gain, const vreal *bias, vreal *y, double *mean, double *rstd,
    double *memory, const Columns *columns, double eps, bint stream, Py_ssize_t blocks,
    Py_ssize_t first, Py_ssize_t stop, int n_threads,
) noexcept nogil:
    """The samples from first to stop; n_threads share each, with as many blocks of scratch."""
    cdef Scratch scratch = divide_scratch(memory, columns, blocks)
    cdef Py_ssize_t size = elements(columns)
    cdef Py_ssize_t groups = columns.groups
    cdef Py_ssize_t n
    for n in range(first, stop):
        forward_sample(at(x, n * size), gain, bias, at_out(y, n * size),
                       NULL if mean == NULL else mean + n * groups,
                       NULL if rstd == NULL else rstd + n * groups, &scratch, columns, eps, stream,
                       n_threads)
    if stream:
        vec_fence()


cdef void forward_all(const vreal *x, const vreal *gain, const vreal *bias, vreal *y, double *mean,
                      double *rstd, double *memory, Columns columns, double eps, Py_ssize_t size,
                      Py_ssize_t blocks, int n_threads) noexcept nogil:
    cdef bint stream = (columns.samples * elements(&columns) >= STREAM_FLOATS
                        and columns.width % lanes(x) == 0 and elements(&columns) % lanes(x) == 0
                        and to_boundary(y) == 0)
    cdef Py_ssize_t shared = together_from(&columns, n_threads)
    cdef int part
    if n_threads == 1:
        forward_samples(x, gain, bias, y, mean, rstd, memory, &columns, eps, stream, 1, 0,
                        columns.samples, 1)
        return
    for part in prange(n_threads, schedule="static", num_threads=n_threads):
        forward_samples(x, gain, bias, y, mean, rstd, memory + part * size, &columns, eps, stream,
                        1, shared * part // n_threads, shared * (part + 1) // n_threads, 1)
    forward_samples(x, gain, bias, y, mean, rstd, memory, &columns, eps, stream, blocks, shared,
                    columns.samples, n_threads)


def group_columns_forward(x, Py_ssize_t groups, gain, bias, double eps, y, mean, rstd,
                          int n_threads):
    """Normalize x (samples, positions, channels) into y.

    gain, bias (channels,), and mean, rstd (samples, groups) may be None.
    """
    cdef Columns columns = find_columns(dim(x, 0), dim(x, 1), dim(x, 2), groups)
    # Of threads together, if any sample is done so.
    cdef Py_ssize_t blocks = 1
    if together_from(&columns, n_threads) < columns.samples:
        blocks = columns.blocks
    cdef Py_ssize_t size = scratch_size(&columns, 1)
    cdef object scratch = new_vector(max(n_threads * size, scratch_size(&columns, blocks)) + 8,
                                     cnp.NPY_FLOAT64)
    cdef void *x_data = address(x)
    cdef void *gain_data = address(gain)
    cdef void *bias_data = address(bias)
    cdef void *y_data = address(y)
    cdef double *mean_data = <double *>address(mean)
    cdef double *rstd_data = <double *>address(rstd)
    cdef double *memory = <double *>address(scratch)
    memory += to_boundary(<vf64 *>memory)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            forward_all[vf32](<vf32 *>x_data, <vf32 *>gain_data, <vf32 *>bias_data,
                              <vf32 *>y_data, mean_data, rstd_data, memory, columns, eps, size,
                              blocks, n_threads)
        else:
            forward_all[vf64](<vf64 *>x_data, <vf64 *>gain_data, <vf64 *>bias_data,
                              <vf64 *>y_data, mean_data, rstd_data, memory, columns, eps, size,
                              blocks, n_threads)
