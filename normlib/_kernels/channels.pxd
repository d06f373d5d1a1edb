"""Views (outer, C, inner) of an array, whose channels are normalized over the other two axes.

Design
------
Two memory orders, and so two loops for each step. Where inner is 1 the channels lie side by side,
and a vector holds neighbouring channels ("columns"); else a vector holds neighbours of one channel
("planes", each a contiguous run of inner elements).

Sums over the batch run in blocks, of a size that only the shape decides, any thread taking any
block; each block leaves its result in scratch, and blocks are merged in their order. float32
statistics are sums in double about each channel's first value, which blocks just add; float64 ones
those of rows.pxd, merged by Chan's formula. Sums of gradients are folded into double after FOLD
steps.

Outputs follow in sweeps, from the last to the first where they leave the cache.

A channel whose scale, gain * rstd, is beyond the range of its type is done in double.
"""
from normlib._kernels.rows cimport vector_range
from normlib._kernels.vec cimport (
    MAX_PARTS, VF64_LANES, at, at_out, lanes, vabs, vf64, vf64_set, vfirst, vget, vload, vmax, vmin,
    vnarrow, vreal, vset, vstore_first, vwiden,
)

cdef enum:
    ROWS = 64            # rows in a block of the column loops, at least
    PLANES = 16          # planes in a block of the plane loops, at least
    BLOCK_ELEMENTS = 4096
    STRIP = 64           # columns side by side in registers; a block of floats, two of doubles
    NARROW = 256         # columns, at most, of rows that are streamed together
    RIVALS = 512         # columns of rows that are rivals in the cache, or a multiple
    PAIR = 2             # rows of columns that are done together, of those and of streamed ones
    OUTER = 8            # and of others
    SWEEP = 65536        # elements of large arrays that are gone through forwards
    PANEL = 1024         # columns of a work item, of whose sums L1 holds all


cdef struct Shape:
    Py_ssize_t outer
    Py_ssize_t channels
    Py_ssize_t inner


cdef inline Py_ssize_t block_size(const Shape *shape) noexcept nogil:
    """Rows, or planes, in a block: more of short ones, lest the scratch outgrow the input."""
    if shape.inner == 1:
        return max(ROWS, BLOCK_ELEMENTS // shape.channels)
    return max(PLANES, BLOCK_ELEMENTS // shape.inner)


cdef inline Py_ssize_t n_blocks(const Shape *shape) noexcept nogil:
    return (shape.outer + block_size(shape) - 1) // block_size(shape)


cdef inline Py_ssize_t items_per_block(const Shape *shape) noexcept nogil:
    """Work items in a block: panels of columns, or channels."""
    if shape.inner == 1:
        return (shape.channels + PANEL - 1) // PANEL
    return shape.channels


cdef inline Py_ssize_t n_items(const Shape *shape) noexcept nogil:
    """Work items; those of a block follow each other, as in memory."""
    return n_blocks(shape) * items_per_block(shape)


cdef inline Py_ssize_t padded_channels(const Shape *shape) noexcept nogil:
    """Channels that scratch has room for: whole strips of columns."""
    if shape.inner == 1:
        return (shape.channels + STRIP - 1) // STRIP * STRIP
    return shape.channels


cdef inline Py_ssize_t scratch_size(const Shape *shape) noexcept nogil:
    """Doubles of scratch that statistics and gradients need: (blocks, 3, padded)."""
    return n_blocks(shape) * 3 * padded_channels(shape)


cdef inline Py_ssize_t rows_together(const Shape *shape, bint stream) noexcept nogil:
    """Rows of columns whose factors are loaded once.

    Streaming stores want to fill a cache line before they go on to another one, and columns of rows
    whose length is a power of two are rivals for few places in the cache.
    """
    if shape.channels > NARROW and (stream or shape.channels % RIVALS == 0):
        return PAIR
    return OUTER


cdef inline Py_ssize_t sweep_start(Py_ssize_t first, Py_ssize_t stop, Py_ssize_t size,
                                   bint stream) noexcept nogil:
    """Where the last sweep over the items from first to stop starts, of size elements each.

    Large arrays are normalized from their end, which the sums have just left in the cache.
    """
    if not stream:
        return first
    return max(first, stop - max(1, SWEEP // size // OUTER) * OUTER)


cdef inline void clear_sums(double *sum1, double *sum2, Py_ssize_t first,
                            Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(first, stop):
        sum1[i] = 0
        sum2[i] = 0


cdef inline void add_blocks(
    double *scratch,        # IN/OUT (blocks, 3, padded): the first block becomes the sum of all
    const Shape *shape,
    Py_ssize_t padded,
) noexcept nogil:
    cdef const double *block
    cdef Py_ssize_t b, c
    for b in range(1, n_blocks(shape)):
        block = scratch + 3 * b * padded
        for c in range(2 * padded):
            scratch[c] += block[c]


cdef inline void store(vreal *row, vreal v, Py_ssize_t n, bint full) noexcept nogil:
    """Store the first n lanes; all of them where full, a constant, says so."""
    if full:
        row[0] = v
    else:
        vstore_first(row, v, n)


cdef inline vf64 load_doubles(const double *array, Py_ssize_t n, bint full) noexcept nogil:
    return vload(<const vf64 *>array, n, full)


cdef inline void store_doubles(double *array, vf64 v, Py_ssize_t n, bint full) noexcept nogil:
    store(<vf64 *>array, v, n, full)


cdef struct Statistics:     # each (channels,)
    const double *mean
    const double *rest      # or NULL for 0
    const double *rstd


cdef inline double rest_of(const Statistics *statistics, Py_ssize_t c) noexcept nogil:
    return 0 if statistics.rest == NULL else statistics.rest[c]


cdef inline double gain_of(const vreal *gain, Py_ssize_t c) noexcept nogil:
    return 1 if gain == NULL else vget(gain, c)


cdef inline bint beyond(const vreal *x, const vreal *gain, const Statistics *statistics,
                        Py_ssize_t c) noexcept nogil:
    """Whether channel c must be done in double."""
    cdef double rstd = statistics.rstd[c]
    return not (vector_range(x, rstd) and vector_range(x, gain_of(gain, c) * rstd))


cdef struct Range:          # of what channels are scaled by
    vf64 least
    vf64 most


cdef inline void open_range(Range *extent) noexcept nogil:
    extent.least = vf64_set(1)
    extent.most = vf64_set(1)


cdef inline void widen_range(Range *extent, vf64 v, Py_ssize_t n, bint full) noexcept nogil:
    """Take in the sizes of the first n lanes; of all where full, a constant. NaN is left out."""
    cdef vf64 one = vf64_set(1)
    v = vabs(v)
    if not full:
        v = v + (one - vfirst(one, n))
    extent.least = vmin(v, extent.least)
    extent.most = vmax(v, extent.most)


cdef inline bint exceeds_range(const Range *extent) noexcept nogil:
    """Whether some value may be beyond vector range."""
    cdef double least = 1
    cdef double most = 1
    cdef int i
    for i in range(VF64_LANES):
        least = min(least, vget(&extent.least, i))
        most = max(most, vget(&extent.most, i))
    return least <= 1e-30 or most >= 1e30


cdef inline void scale_vector(
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    vreal *mean_hi,         # OUT (channels,)
    vreal *scale,           # OUT (channels,): gain * rstd
    vreal *offset,          # OUT (channels,): bias - mean_lo * scale
    const Statistics *statistics,
    Range *extent,          # IN/OUT
    Py_ssize_t c,
    Py_ssize_t n,           # channels from c on, at most one vector
    bint full,              # a constant: exactly one
) noexcept nogil:
    cdef vf64 gains[MAX_PARTS]
    cdef vf64 biases[MAX_PARTS]
    cdef vf64 means[MAX_PARTS]
    cdef vf64 highs[MAX_PARTS]
    cdef vf64 scales[MAX_PARTS]
    cdef vf64 offsets[MAX_PARTS]
    cdef vf64 low, rstd
    cdef vreal high
    cdef int p
    cdef int n_parts = vwiden(vset(1, scale) if gain == NULL else vload(at(gain, c), n, full),
                              gains)
    cdef Py_ssize_t i, left
    vwiden(vset(0, scale) if bias == NULL else vload(at(bias, c), n, full), biases)
    for p in range(n_parts):
        i = c + p * VF64_LANES
        left = n - p * VF64_LANES
        means[p] = load_doubles(statistics.mean + i, left, full)
        rstd = load_doubles(statistics.rstd + i, left, full)
        scales[p] = gains[p] * rstd
        widen_range(extent, rstd, left, full)
        widen_range(extent, scales[p], left, full)
    high = vnarrow(means, vset(0, scale))
    vwiden(high, highs)
    for p in range(n_parts):
        i = c + p * VF64_LANES
        low = means[p] - highs[p]
        if statistics.rest != NULL:
            low = low + load_doubles(statistics.rest + i, n - p * VF64_LANES, full)
        offsets[p] = biases[p] - low * scales[p]
    store(at_out(mean_hi, c), high, n, full)
    store(at_out(scale, c), vnarrow(scales, high), n, full)
    store(at_out(offset, c), vnarrow(offsets, high), n, full)


cdef inline bint scale_channels(
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    vreal *mean_hi,         # OUT (channels,)
    vreal *scale,           # OUT (channels,): gain * rstd
    vreal *offset,          # OUT (channels,): bias - mean_lo * scale
    const Statistics *statistics,
    Py_ssize_t channels,
) noexcept nogil:
    """False where certainly no channel is beyond vector range."""
    cdef Range extent
    cdef Py_ssize_t width = lanes(mean_hi)
    cdef Py_ssize_t c = 0
    open_range(&extent)
    while c + width <= channels:
        scale_vector(gain, bias, mean_hi, scale, offset, statistics, &extent, c, width, True)
        c += width
    if c < channels:
        scale_vector(gain, bias, mean_hi, scale, offset, statistics, &extent, c, channels - c,
                     False)
    return exceeds_range(&extent)


cdef inline void find_doubles(
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *like,      # IN: any pointer of the type
    Py_ssize_t *doubles,    # OUT (channels + 1,): those beyond vector range, then channels
    const Statistics *statistics,
    Py_ssize_t channels,
    bint any,               # whether there may be one
) noexcept nogil:
    cdef Py_ssize_t n = 0
    cdef Py_ssize_t c
    if any:
        for c in range(channels):
            if beyond(like, gain, statistics, c):
                doubles[n] = c
                n += 1
    doubles[n] = channels
