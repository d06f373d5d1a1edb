"""Samples whose channels come last, (positions, channels), in groups: sums of columns.

Design
------
Few channels are seen side by side with those of the next positions, as rows that are whole vectors;
the last of these rows may be cut. Sums run down the columns: FOLD rows in the type of x, those in
double over a block of rows, of a size that only the shape decides, and blocks in their order. So
any thread may take any block.
"""
from cython.parallel cimport prange

from normlib._kernels.rows cimport FOLD
from normlib._kernels.vec cimport (
    MAX_PARTS, VF64_LANES, at, lanes, vadd_to, vec_prefetch, vf64, vf64_set, vfirst, vfma, vload,
    vload_first, vload_wide, vreal, vset, vwiden,
)

cdef enum:
    BLOCK = 16384        # elements of a block of rows
    SIDE_BY_SIDE = 64    # channels below which rows are made of several positions
    LINE = 16            # elements of which a row then is a multiple
    QUICK_SUMS = 0       # in the type of x, folded
    WIDE_SUMS = 1        # in double


cdef struct Columns:
    Py_ssize_t samples
    Py_ssize_t positions
    Py_ssize_t channels
    Py_ssize_t groups
    Py_ssize_t width     # columns: of some positions
    Py_ssize_t padded    # room for them in scratch
    Py_ssize_t rows      # whole ones
    Py_ssize_t cut       # columns of one row more
    Py_ssize_t block     # rows of a block
    Py_ssize_t blocks


cdef inline Columns find_columns(Py_ssize_t samples, Py_ssize_t positions, Py_ssize_t channels,
                                 Py_ssize_t groups) noexcept nogil:
    cdef Columns columns
    cdef Py_ssize_t together = 1
    if channels < SIDE_BY_SIDE:
        while together * channels % LINE != 0:
            together *= 2
    columns.samples = samples
    columns.positions = positions
    columns.channels = channels
    columns.groups = groups
    columns.width = together * channels
    columns.padded = (columns.width + LINE - 1) // LINE * LINE
    columns.rows = positions // together
    columns.cut = positions % together * channels
    columns.block = max(1, BLOCK // columns.width // FOLD) * FOLD
    columns.blocks = max(1, (columns.rows + columns.block - 1) // columns.block)
    return columns


cdef inline Py_ssize_t elements(const Columns *columns) noexcept nogil:
    """Of a sample."""
    return columns.positions * columns.channels


cdef inline void quick_sums(
    const vreal *x,         # IN  (n_rows, width), at the first column
    const vreal *shift,     # IN  one vector
    double *sum1,           # IN/OUT one vector
    double *sum2,           # IN/OUT one vector
    int n_rows,             # at most FOLD; a constant
    Py_ssize_t width,
    Py_ssize_t n,           # columns, at most a vector
    bint full,              # a constant: exactly one
) noexcept nogil:
    """Add sums of d = x - shift, and of d**2."""
    cdef vreal m = shift[0]
    cdef vreal acc1 = vset(0, x)
    cdef vreal acc2 = vset(0, x)
    cdef vreal d
    cdef Py_ssize_t r
    for r in range(n_rows):
        if n_rows == FOLD:
            vec_prefetch(at(x, (r + FOLD) * width))
        d = vload(at(x, r * width), n, full) - m
        if not full:
            d = vfirst(d, n)
        acc1 = acc1 + d
        acc2 = vfma(d, d, acc2)
    vadd_to(sum1, acc1)
    vadd_to(sum2, acc2)


cdef inline void wide_sums(
    const vreal *x,         # IN  (n_rows, width), at the first column
    const vreal *shift,     # IN  one vector
    double *sum1,           # IN/OUT one vector
    double *sum2,           # IN/OUT one vector
    int n_rows,             # at most FOLD; a constant
    Py_ssize_t width,
    Py_ssize_t n,           # columns, at most a vector
    bint full,              # a constant: exactly one
) noexcept nogil:
    """The same in double."""
    cdef vf64 m[MAX_PARTS]
    cdef vf64 acc1[MAX_PARTS]
    cdef vf64 acc2[MAX_PARTS]
    cdef vf64 parts[MAX_PARTS]
    cdef vf64 d
    cdef int p
    cdef int n_parts = vwiden(shift[0], m)
    cdef Py_ssize_t r
    for p in range(n_parts):
        acc1[p] = vf64_set(0)
        acc2[p] = vf64_set(0)
    for r in range(n_rows):
        if full:
            vload_wide(at(x, r * width), parts)
        else:
            vwiden(vload_first(at(x, r * width), n), parts)
        for p in range(n_parts):
            d = parts[p] - m[p]
            if not full:
                d = vfirst(d, n - p * VF64_LANES)
            acc1[p] = acc1[p] + d
            acc2[p] = vfma(d, d, acc2[p])
    for p in range(n_parts):
        (<vf64 *>sum1)[p] = (<vf64 *>sum1)[p] + acc1[p]
        (<vf64 *>sum2)[p] = (<vf64 *>sum2)[p] + acc2[p]


cdef inline void few_sums(
    int kind,               # a constant
    const vreal *x,         # IN  (n_rows, width)
    const vreal *shift,     # IN  (padded,), zero beyond width
    double *sums,           # IN/OUT (2, padded)
    const Columns *columns,
    int n_rows,             # at most FOLD; a constant
    Py_ssize_t n,           # columns
) noexcept nogil:
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t stride = columns.width
    cdef double *more = sums + columns.padded
    cdef Py_ssize_t c = 0
    while c + width <= n:
        if kind == QUICK_SUMS:
            quick_sums(at(x, c), at(shift, c), sums + c, more + c, n_rows, stride, width, True)
        else:
            wide_sums(at(x, c), at(shift, c), sums + c, more + c, n_rows, stride, width, True)
        c += width
    if c < n:
        if kind == QUICK_SUMS:
            quick_sums(at(x, c), at(shift, c), sums + c, more + c, n_rows, stride, n - c, False)
        else:
            wide_sums(at(x, c), at(shift, c), sums + c, more + c, n_rows, stride, n - c, False)


cdef inline void block_sums(
    int kind,               # a constant
    const vreal *x,         # IN  (positions, channels)
    const vreal *shift,     # IN  (padded,), zero beyond width
    double *sums,           # OUT (2, padded)
    const Columns *columns,
    Py_ssize_t b,
) noexcept nogil:
    """Sums of d = x - shift, and of d**2, over block b."""
    cdef Py_ssize_t width = columns.width
    cdef Py_ssize_t first = b * columns.block
    cdef Py_ssize_t stop = min(first + columns.block, columns.rows)
    cdef Py_ssize_t i, r
    for i in range(2 * columns.padded):
        sums[i] = 0
    while first + FOLD <= stop:
        few_sums(kind, at(x, first * width), shift, sums, columns, FOLD, width)
        first += FOLD
    for r in range(first, stop):
        few_sums(kind, at(x, r * width), shift, sums, columns, 1, width)
    if columns.cut > 0 and b == columns.blocks - 1:
        few_sums(kind, at(x, columns.rows * width), shift, sums, columns, 1, columns.cut)


cdef inline void add_sums(double *total, const double *sums, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        total[i] += sums[i]


cdef inline void sample_sums(
    int kind,               # a constant
    const vreal *x,         # IN  (positions, channels)
    const vreal *shift,     # IN  (padded,), zero beyond width
    double *total,          # OUT (2, padded): of the channels, in the first of these
    double *sums,           # scratch (2, padded); with threads (blocks, 2, padded)
    const Columns *columns,
    int n_threads,
) noexcept nogil:
    """Sums of d = x - shift, and of d**2, of each channel."""
    cdef Py_ssize_t n = 2 * columns.padded
    cdef Py_ssize_t b, i
    for i in range(n):
        total[i] = 0
    if n_threads == 1:
        for b in range(columns.blocks):
            block_sums(kind, x, shift, sums, columns, b)
            add_sums(total, sums, n)
    else:
        for b in prange(columns.blocks, schedule="static", num_threads=n_threads):
            block_sums(kind, x, shift, sums + b * n, columns, b)
        for b in range(columns.blocks):
            add_sums(total, sums + b * n, n)
    sums_by_channel(total, columns)
    sums_by_channel(total + columns.padded, columns)


cdef inline void sums_by_channel(double *sums, const Columns *columns) noexcept nogil:
    """Sums of the columns, to those of channels in the first of these."""
    cdef Py_ssize_t i = columns.channels
    while i < columns.width:
        add_sums(sums, sums + i, columns.channels)
        i += columns.channels


cdef inline double group_sum(const double *sums, Py_ssize_t n) noexcept nogil:
    """Sum of n neighbours, in four lanes."""
    cdef double parts[4]
    cdef Py_ssize_t i
    cdef Py_ssize_t whole = n // 4 * 4
    if n == 1:
        return sums[0]
    for i in range(4):
        parts[i] = 0
    for i in range(0, whole, 4):
        parts[0] += sums[i]
        parts[1] += sums[i + 1]
        parts[2] += sums[i + 2]
        parts[3] += sums[i + 3]
    for i in range(whole, n):
        parts[i - whole] += sums[i]
    return (parts[0] + parts[1]) + (parts[2] + parts[3])


cdef inline void repeat_channels(vreal *row, const Columns *columns) noexcept nogil:
    """Fill a row of columns with its channels, and zero what pads it."""
    cdef Py_ssize_t i
    if vreal is vf64:
        for i in range(columns.channels, columns.width):
            (<double *>row)[i] = (<double *>row)[i - columns.channels]
        for i in range(columns.width, columns.padded):
            (<double *>row)[i] = 0
    else:
        for i in range(columns.channels, columns.width):
            (<float *>row)[i] = (<float *>row)[i - columns.channels]
        for i in range(columns.width, columns.padded):
            (<float *>row)[i] = 0


cdef inline Py_ssize_t together_from(const Columns *columns, int n_threads) noexcept nogil:
    """The sample from which on threads do each together: of large ones, those left over."""
    if elements(columns) < BLOCK or columns.blocks < n_threads:
        return columns.samples
    return columns.samples // n_threads * n_threads
