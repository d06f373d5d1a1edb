"""The output of batch normalization over some rows of columns, or planes, by given factors.

With scale = gain * rstd and offset = bias - mean_lo * scale, it is fma(x - mean_hi, scale, offset).
"""
from normlib._kernels.channels cimport Statistics, gain_of, rest_of
from normlib._kernels.vec cimport (
    at, at_out, lanes, vfma, vget, vload_first, vput, vreal, vset, vstore, vstore_first,
)

cdef enum:
    REGISTERS = 4        # vectors of channels whose factors stay in registers


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
    const vreal *x,         # IN  (n_rows, channels)
    const vreal *factors,   # IN  (3, padded)
    vreal *y,               # OUT (n_rows, channels), may be x
    Py_ssize_t n_rows,
    Py_ssize_t channels,
    Py_ssize_t padded,
    Py_ssize_t first,
    Py_ssize_t stop,
    bint stream,            # a constant: past the cache
) noexcept nogil:
    """Some columns of some rows, a vector of factors being loaded once."""
    cdef vreal m, s, t
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t c = first
    cdef Py_ssize_t left, r
    while c + width <= stop:
        m = at(factors, c)[0]
        s = at(factors, padded + c)[0]
        t = at(factors, 2 * padded + c)[0]
        for r in range(n_rows):
            vstore(at_out(y, r * channels + c), vfma(at(x, r * channels + c)[0] - m, s, t), stream)
        c += width
    left = stop - c
    if left > 0:
        m = vload_first(at(factors, c), left)
        s = vload_first(at(factors, padded + c), left)
        t = vload_first(at(factors, 2 * padded + c), left)
        for r in range(n_rows):
            vstore_first(at_out(y, r * channels + c),
                         vfma(vload_first(at(x, r * channels + c), left) - m, s, t), left)


cdef inline void normalize_plane(
    const vreal *x,         # IN  (n,)
    vreal *y,               # OUT (n,), may be x
    Py_ssize_t n,
    double mean,
    double scale,
    double offset,
    bint stream,            # a constant: past the cache
) noexcept nogil:
    cdef vreal m = vset(mean, x)
    cdef vreal s = vset(scale, x)
    cdef vreal t = vset(offset, x)
    cdef int k
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j
    while i + 4 * width <= n:
        for k in range(4):
            j = i + k * width
            vstore(at_out(y, j), vfma(at(x, j)[0] - m, s, t), stream)
        i += 4 * width
    while i + width <= n:
        vstore(at_out(y, i), vfma(at(x, i)[0] - m, s, t), stream)
        i += width
    if i < n:
        vstore_first(at_out(y, i), vfma(vload_first(at(x, i), n - i) - m, s, t), n - i)


cdef inline void normalize_narrow(
    const vreal *x,         # IN  (n_rows, channels)
    const vreal *factors,   # IN  (3, channels)
    vreal *y,               # OUT (n_rows, channels), may be x
    Py_ssize_t n_rows,
    Py_ssize_t channels,    # REGISTERS vectors
    bint stream,            # a constant: past the cache
) noexcept nogil:
    """Rows in the order of memory, their factors in registers."""
    cdef vreal m[REGISTERS]
    cdef vreal s[REGISTERS]
    cdef vreal t[REGISTERS]
    cdef int k
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j
    for k in range(REGISTERS):
        m[k] = at(factors, k * lanes(x))[0]
        s[k] = at(factors, channels + k * lanes(x))[0]
        t[k] = at(factors, 2 * channels + k * lanes(x))[0]
    while i < n_rows * channels:
        for k in range(REGISTERS):
            j = i + k * lanes(x)
            vstore(at_out(y, j), vfma(at(x, j)[0] - m[k], s[k], t[k]), stream)
        i += channels
