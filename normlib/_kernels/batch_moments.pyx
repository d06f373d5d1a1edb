"""Statistics of the channels of a batch.

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), no axis empty; statistics
in float64. channels.pxd tells how the loops go over memory.
"""
cimport numpy as cnp
from cython.parallel cimport prange

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.channel_moments cimport finish_channels, finish_merged, moments_columns
from normlib._kernels.channels cimport (
    PANEL, Shape, add_blocks, block_size, clear_sums, items_per_block, n_blocks, n_items,
    padded_channels, scratch_size,
)
from normlib._kernels.plain cimport new_vector
from normlib._kernels.rows cimport (
    Merged, Moments, merge, merge_none, merge_row, merged_moments, sums_wide,
)
from normlib._kernels.vec cimport at, vf32, vf64, vget, vreal

cnp.import_array()

cdef enum:
    CHUNK_ROWS = 8       # rows of columns that are summed together, at least
    CHUNK = 32768        # elements of rows that are, if there are more


def scratch_shape(Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner):
    """Shape of the float64 scratch that statistics and gradients need: blocks, sums, channels."""
    cdef Shape shape = Shape(outer, channels, inner)
    return n_blocks(&shape), 3, padded_channels(&shape)


cdef void moments_item(
    const vreal *x,         # IN  (outer, channels, inner)
    double *scratch,        # OUT (blocks, 3, padded): float32, the two sums about the channel's
                            # first value; float64, the moments m + c and m2
    const Shape *shape,
    Py_ssize_t padded,
    Py_ssize_t item,
) noexcept nogil:
    cdef Py_ssize_t size = block_size(shape)
    cdef Py_ssize_t block = item // items_per_block(shape)
    cdef Py_ssize_t channel = item % items_per_block(shape)
    cdef Py_ssize_t n_rows, rows, first, stop, r, o, i
    cdef const vreal *batch = x
    cdef double *out = scratch + 3 * block * padded
    cdef double sum_d, sum_d2
    cdef Merged all
    cdef Moments moments
    if shape.inner == 1:
        first = channel * PANEL
        stop = min(first + PANEL, shape.channels)
        n_rows = min(size, shape.outer - block * size)
        x = at(x, block * size * shape.channels)
        if vreal is vf32:
            clear_sums(out, out + padded, first, min(first + PANEL, padded))
            rows = max(CHUNK_ROWS, CHUNK // shape.channels)
            r = 0
            while r < n_rows:
                moments_columns(at(x, r * shape.channels), batch, out, min(rows, n_rows - r),
                                shape.channels, padded, first, stop)
                r += rows
        else:
            moments_columns(x, batch, out, n_rows, shape.channels, padded, first, stop)
        return
    merge_none(&all)
    out[channel] = 0
    out[padded + channel] = 0
    for o in range(block * size, min((block + 1) * size, shape.outer)):
        i = (o * shape.channels + channel) * shape.inner
        if vreal is vf32:
            sums_wide(at(x, i), shape.inner, vget(x, channel * shape.inner), &sum_d, &sum_d2)
            out[channel] += sum_d
            out[padded + channel] += sum_d2
        else:
            merge_row(&all, at(x, i), shape.inner)
    if vreal is vf64:
        merged_moments(&all, x, &moments)
        out[channel] = moments.mean_hi
        out[padded + channel] = moments.mean_lo
        out[2 * padded + channel] = all.m2


cdef void merge_channel(
    const vreal *x,         # IN  (outer, channels, inner)
    const double *scratch,  # IN  (blocks, 3, padded)
    double *mean,           # OUT (channels,)
    double *rest,           # OUT: what mean lacks for being a double
    double *var,            # OUT
    double *rstd,           # OUT
    const Shape *shape,
    Py_ssize_t padded,
    double eps,
    Py_ssize_t channel,
) noexcept nogil:
    cdef Merged all
    cdef const double *block
    cdef Py_ssize_t size = block_size(shape)
    cdef Py_ssize_t b
    # float64: blocks merged in their order.
    merge_none(&all)
    for b in range(n_blocks(shape)):
        block = scratch + 3 * b * padded + channel
        merge(&all, <double>(min(size, shape.outer - b * size) * shape.inner),
              block[0], block[padded], block[2 * padded])
    finish_merged(x, &all, mean, rest, var, rstd, shape, eps, channel)


cdef void moments_all(const vreal *x, double *scratch, double *mean, double *rest, double *var,
                      double *rstd, Shape shape, Py_ssize_t padded, double eps,
                      int n_threads) noexcept nogil:
    cdef Py_ssize_t i
    if n_threads == 1:
        for i in range(n_items(&shape)):
            moments_item(x, scratch, &shape, padded, i)
    else:
        for i in prange(n_items(&shape), schedule="static", num_threads=n_threads):
            moments_item(x, scratch, &shape, padded, i)
    if vreal is vf32:
        add_blocks(scratch, &shape, padded)
        finish_channels(x, scratch, mean, rest, var, rstd, &shape, padded, eps)
    elif n_threads == 1:
        for i in range(shape.channels):
            merge_channel(x, scratch, mean, rest, var, rstd, &shape, padded, eps, i)
    else:
        for i in prange(shape.channels, schedule="static", num_threads=n_threads):
            merge_channel(x, scratch, mean, rest, var, rstd, &shape, padded, eps, i)


def batch_moments(x, Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner, double eps,
                  int n_threads):
    """(mean, rest, var, rstd), each (C,), of x seen as (outer, C, inner).

    mean + rest is the mean, var biased, rstd = 1 / sqrt(var + eps).
    """
    cdef Shape shape = Shape(outer, channels, inner)
    mean = new_vector(channels, cnp.NPY_FLOAT64)
    rest = new_vector(channels, cnp.NPY_FLOAT64)
    var = new_vector(channels, cnp.NPY_FLOAT64)
    rstd = new_vector(channels, cnp.NPY_FLOAT64)
    scratch = new_vector(scratch_size(&shape), cnp.NPY_FLOAT64)
    cdef Py_ssize_t padded = padded_channels(&shape)
    cdef void *x_data = address(x)
    cdef double *scratch_data = <double *>address(scratch)
    cdef double *mean_data = <double *>address(mean)
    cdef double *rest_data = <double *>address(rest)
    cdef double *var_data = <double *>address(var)
    cdef double *rstd_data = <double *>address(rstd)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            moments_all[vf32](<vf32 *>x_data, scratch_data, mean_data, rest_data, var_data,
                              rstd_data, shape, padded, eps, n_threads)
        else:
            moments_all[vf64](<vf64 *>x_data, scratch_data, mean_data, rest_data, var_data,
                              rstd_data, shape, padded, eps, n_threads)
    return mean, rest, var, rstd


def mix_running(running, new, weights):
    """running = (1 - w) running + w new, row after row, all float64 and C-contiguous.

    Row t of new (n, F), with weights[t], goes into row min(t, steps - 1) of running (steps, F). A
    NaN or Inf of weight 0 does not enter, nor stay where the weight is 1.
    """
    cdef Py_ssize_t features = dim(running, 1)
    cdef Py_ssize_t last = dim(running, 0) - 1
    cdef Py_ssize_t n = dim(new, 0)
    cdef double *old = <double *>address(running)
    cdef const double *rows = <const double *>address(new)
    cdef const double *weight = <const double *>address(weights)
    cdef Py_ssize_t t, c
    cdef double *out
    with nogil:
        for t in range(n):
            out = old + min(t, last) * features
            if weight[t] == 1:
                for c in range(features):
                    out[c] = rows[t * features + c]
            elif weight[t] > 0:
                for c in range(features):
                    out[c] = (1 - weight[t]) * out[c] + weight[t] * rows[t * features + c]
