"""Gradients of group normalization of x (samples, channels, inner).

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), statistics and dgain and
dbias in float64, no axis empty, groups dividing the channels.

Design
------
A row is a group of a sample. By planes (plane_gradients.pxd) each channel's gradients are sums over
its plane. Where inner is 1 ("elements"), a row is one of layer norm's (row_gradients.pxd), and
dgain and dbias are sums of columns: over blocks of samples, of a size that only the shape decides,
then over the blocks in their order.
"""
cimport numpy as cnp
from cython.parallel cimport prange

from normlib._kernels.affine cimport at_or_null
from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.buffers cimport aligned_like
from normlib._kernels.groups cimport Layout, find_groups, is_group_statistic, is_short
from normlib._kernels.norm_rows cimport NormBackward, backward_capsule
from normlib._kernels.plain cimport is_input, is_like, is_parameter, new_vector, rounded_to
from normlib._kernels.plane_gradients cimport planes_part
from normlib._kernels.row_gradients cimport (
    Row, TOGETHER, one_gradient, prepare_row, row_double, some_gradients,
)
from normlib._kernels.row_sums cimport add_row_any
from normlib._kernels.vec cimport (
    STREAM_FLOATS, at, at_out, lanes, to_boundary, vec_fence, vf32, vf64, vget, vload_first,
    vreal, vstore_first,
)

cnp.import_array()

cdef enum:
    SAMPLES = 64         # samples in a block of columns, at least
    BLOCK_ELEMENTS = 4096


# ---- elements ------------------------------------------------------------------------------------


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
    cdef Row rows[TOGETHER]
    cdef Py_ssize_t n = layout.channels
    cdef Py_ssize_t stride = layout.groups * n
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t count, group, r, i, j
    for i in range(padded):
        dgain[i] = 0
        dbias[i] = 0
    while first < samples:
        count = min(<Py_ssize_t>TOGETHER, samples - first)
        for group in range(layout.groups):
            i = first * stride + group * n
            for r in range(count):
                j = (first + r) * layout.groups + group
                prepare_row(at(x, i + r * stride), n, mean[j], rstd[j], &rows[r], True)
            some_gradients(at(dy, i), at(x, i), at_or_null(gain, group * n),
                           <const vreal *>NULL, at_out(dx, i), rows, dgain + group * n,
                           dbias + group * n, <vreal *>NULL, <vreal *>NULL, n, stride, count, True,
                           stream)
        first += count
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


cdef int backward(object dy, object x, object gain, object mean, object rstd, object dx,
                  object dgain, object dbias, Layout layout, int n_threads) except -1:
    cdef Py_ssize_t channels = layout.groups * layout.channels
    cdef Py_ssize_t size = block_samples(channels)
    cdef Py_ssize_t n_blocks = layout.samples
    cdef Py_ssize_t padded = channels
    if layout.inner == 1:
        n_blocks = (n_blocks + size - 1) // size
        padded = (channels + 63) // 64 * 64 + 64
    cdef object partial = new_vector(2 * n_blocks * padded, cnp.NPY_FLOAT64)
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
    return 0


def group_norm_backward(dy, x, Py_ssize_t groups, gain, mean, rstd, dx, dgain, dbias,
                        int n_threads):
    """Gradients of group_norm_forward; gain may be None. dgain, dbias (channels,) are float64."""
    backward(dy, x, gain, mean, rstd, dx, dgain, dbias,
             Layout(dim(x, 0), groups, dim(x, 1) // groups, dim(x, 2)), n_threads)


def group_norm_backward_plain(dy, x, groups, mean, rstd, gain, channel_axis, threads_for):
    """(dx, dgain, dbias), groups None for one a channel; None unless every argument is plain."""
    cdef Layout layout
    cdef Py_ssize_t n
    cdef int number
    if not (is_input(x) and is_like(dy, x)):
        return None
    layout = find_groups(x, groups, channel_axis)
    if not (layout.groups > 0 and not is_short(&layout) and is_group_statistic(mean, &layout)
            and is_group_statistic(rstd, &layout)
            and is_parameter(gain, x, layout.groups * layout.channels)):
        return None
    number = cnp.PyArray_TYPE(x)
    dx = aligned_like(x)
    n = layout.groups * layout.channels
    sums = new_vector(n, cnp.NPY_FLOAT64)
    more = new_vector(n, cnp.NPY_FLOAT64)
    backward(dy, x, gain, mean, rstd, dx, sums, more, layout, threads_for(cnp.PyArray_SIZE(x)))
    dgain = None if gain is None else rounded_to(sums, n, number)
    return dx, dgain, rounded_to(more, n, number)


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
        prepare_row(at(x, i), channels, cache[group], cache[groups + group], &row, True)
        if not row.vector:
            row_double(at(dy, i), at(x, i), gain, <const vreal *>NULL, at_out(dx, i), channels,
                       &row, dgain, dbias, True)
            continue
        one_gradient(at(dy, i), at(x, i), gain, at_out(dx, i), &row, channels, True)
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
    cdef vreal g
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t count
    while i < n:
        count = min(lanes(x), n - i)
        g = vload_first(at(dy, i), count)
        if gain != NULL:
            g = g * vload_first(at(gain, i), count)
        vstore_first(at_out(dx, i), g, count)
        i += count
    add_row_any(dy, x, n, 0, 1, 0, gradients[0], gradients[1], False)


def affine_function(bint single):
    """A capsule of the gradient of that in group_norm.pyx."""
    return backward_capsule(<NormBackward>affine_only_backward[vf32],
                            <NormBackward>affine_only_backward[vf64], single)
