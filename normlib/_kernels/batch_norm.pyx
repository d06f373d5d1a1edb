"""Batch normalization by given statistics.

Arrays come in checked: C-contiguous, of one dtype (float32 or float64), no axis empty; statistics
in float64. channels.pxd tells how the loops go over memory.

With scale = gain * rstd and offset = bias - mean_lo * scale, the output is
fma(x - mean_hi, scale, offset).
"""
from cython.parallel cimport prange

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.channels cimport (
    Shape, Statistics, find_doubles, gain_of, load_doubles, rest_of, scale_channels,
    store_doubles,
)
from normlib._kernels.vec cimport (
    VF64_LANES, at, at_out, lanes, vf32, vf64, vf64_set, vf64_sqrt, vfma, vget, vload_first, vput,
    vreal, vselect_lt, vset, vstore_first,
)

cdef inline void normalize_double(
    const vreal *x,         # IN
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    vreal *y,               # OUT, may be x
    Py_ssize_t n,
    const Statistics *statistics,
    Py_ssize_t c,
) noexcept nogil:
    """n neighbours of channel c."""
    cdef double v
    cdef Py_ssize_t i
    for i in range(n):
        v = ((vget(x, i) - statistics.mean[c]) - rest_of(statistics, c)) * statistics.rstd[c]
        v = v * gain_of(gain, c)
        if bias != NULL:
            v += vget(bias, c)
        vput(y, i, v)


cdef inline void normalize_columns(
    const vreal *x,         # IN  a row
    const vreal *factors,   # IN  (3, channels)
    vreal *y,               # OUT a row, may be x
    Py_ssize_t channels,
    Py_ssize_t first,
    Py_ssize_t stop,
) noexcept nogil:
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t c = first
    cdef Py_ssize_t left
    while c + width <= stop:
        at_out(y, c)[0] = vfma(at(x, c)[0] - at(factors, c)[0], at(factors, channels + c)[0],
                               at(factors, 2 * channels + c)[0])
        c += width
    left = stop - c
    if left > 0:
        vstore_first(at_out(y, c),
                     vfma(vload_first(at(x, c), left) - vload_first(at(factors, c), left),
                          vload_first(at(factors, channels + c), left),
                          vload_first(at(factors, 2 * channels + c), left)), left)


cdef inline void normalize_plane(
    const vreal *x,         # IN  (n,)
    vreal *y,               # OUT (n,), may be x
    Py_ssize_t n,
    double mean,
    double scale,
    double offset,
) noexcept nogil:
    cdef vreal m = vset(mean, x)
    cdef vreal s = vset(scale, x)
    cdef vreal t = vset(offset, x)
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    while i + width <= n:
        at_out(y, i)[0] = vfma(at(x, i)[0] - m, s, t)
        i += width
    if i < n:
        vstore_first(at_out(y, i), vfma(vload_first(at(x, i), n - i) - m, s, t), n - i)


cdef void normalize_item(
    const vreal *x,         # IN  (outer, channels, inner)
    const vreal *gain,      # IN  (channels,) or NULL
    const vreal *bias,      # IN  (channels,) or NULL
    const vreal *factors,   # IN  (3, channels)
    const Py_ssize_t *doubles,  # IN, ended by channels
    vreal *y,               # OUT (outer, channels, inner), may be x
    const Shape *shape,
    const Statistics *statistics,
    Py_ssize_t o,
) noexcept nogil:
    cdef Py_ssize_t row = o * shape.channels * shape.inner
    cdef Py_ssize_t i, c
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t d = 0
    if shape.inner == 1:
        while first <= shape.channels:
            c = doubles[d]
            normalize_columns(at(x, row), factors, at_out(y, row), shape.channels, first, c)
            if c < shape.channels:
                normalize_double(at(x, row + c), gain, bias, at_out(y, row + c), 1, statistics, c)
            first = c + 1
            d += 1
        return
    for c in range(shape.channels):
        i = row + c * shape.inner
        if c == doubles[d]:
            normalize_double(at(x, i), gain, bias, at_out(y, i), shape.inner, statistics, c)
            d += 1
        else:
            normalize_plane(at(x, i), at_out(y, i), shape.inner, vget(factors, c),
                            vget(factors, shape.channels + c),
                            vget(factors, 2 * shape.channels + c))


cdef void normalize_all(const vreal *x, const vreal *gain, const vreal *bias, vreal *factors,
                        Py_ssize_t *doubles, vreal *y, Shape shape, Statistics statistics,
                        int n_threads) noexcept nogil:
    cdef Py_ssize_t o
    scale_channels(gain, bias, factors, at_out(factors, shape.channels),
                   at_out(factors, 2 * shape.channels), &statistics, shape.channels)
    find_doubles(gain, at(factors, shape.channels), doubles, &statistics, shape.channels)
    if n_threads == 1:
        for o in range(shape.outer):
            normalize_item(x, gain, bias, factors, doubles, y, &shape, &statistics, o)
    else:
        for o in prange(shape.outer, schedule="static", num_threads=n_threads):
            normalize_item(x, gain, bias, factors, doubles, y, &shape, &statistics, o)


def reciprocal_std(var, rstd, double eps):
    """rstd = 1 / sqrt(var + eps), both (C,); the first negative variance's index, or -1."""
    cdef const double *var_data = <double *>address(var)
    cdef double *rstd_data = <double *>address(rstd)
    cdef Py_ssize_t channels = dim(var, 0)
    cdef vf64 zero = vf64_set(0)
    cdef vf64 negative = zero
    cdef vf64 v
    cdef Py_ssize_t c = 0
    while c < channels:
        v = load_doubles(var_data + c, channels - c)
        negative = vselect_lt(v, zero, v, negative)
        store_doubles(rstd_data + c, vf64_set(1) / vf64_sqrt(v + vf64_set(eps)), channels - c)
        c += VF64_LANES
    for c in range(VF64_LANES):
        if vget(&negative, c) < 0:
            return next(i for i, value in enumerate(var) if value < 0)
    return -1


def batch_norm_forward(x, mean, rest, rstd, gain, bias, factors, doubles, y, int n_threads):
    """Normalize x (outer, C, inner) by given statistics (C,) into y.

    rest, gain and bias may be None; factors (3, C) of x's type and doubles (C + 1) of intp are
    scratch.
    """
    cdef Shape shape = Shape(dim(x, 0), dim(x, 1), dim(x, 2))
    cdef Statistics statistics = Statistics(
        <double *>address(mean), <double *>address(rest), <double *>address(rstd))
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
