"""The output of a normalization of rows, ((x - mean) * scale + offset) * gain + bias.

What a kernel does not have, it leaves out by constants: the mean and the offset (centered), the
gain, the bias.
"""
from normlib._kernels.vec cimport (
    at, at_out, lanes, to_boundary, vfma, vload, vread, vread_first, vreal, vset, vstored, vwrite,
    vwrite_first,
)

cdef enum:
    ALIGNED = 256        # elements of a row from which it pays to align its stores


cdef inline const vstored *at_or_null(const vstored *row, Py_ssize_t i) noexcept nogil:
    """Address of element i of what may be NULL."""
    if row == NULL:
        return row
    return at(row, i)


cdef inline vreal affine(vreal v, const vreal *gain, const vreal *bias, Py_ssize_t n,
                         bint has_gain, bint has_bias) noexcept nogil:
    """v * gain + bias, from the first n elements of each."""
    cdef bint full = n == lanes(gain)
    if has_gain and has_bias:
        return vfma(v, vload(gain, n, full), vload(bias, n, full))
    if has_gain:
        return v * vload(gain, n, full)
    if has_bias:
        return v + vload(bias, n, full)
    return v


cdef inline vreal scaled(vreal v, vreal mean, vreal scale, vreal offset,
                         bint centered) noexcept nogil:
    if centered:
        return vfma(v - mean, scale, offset)
    return v * scale


cdef inline void affine_part(
    const vstored *x,       # IN
    const vreal *gain,      # IN
    const vreal *bias,      # IN
    vstored *y,             # OUT, may be x
    Py_ssize_t n,           # at most one vector
    vreal mean,
    vreal scale,
    vreal offset,
    bint centered,
    bint has_gain,
    bint has_bias,
) noexcept nogil:
    cdef vreal v = scaled(vread_first(x, n, gain), mean, scale, offset, centered)
    vwrite_first(y, affine(v, gain, bias, n, has_gain, has_bias), n)


cdef inline void affine_row(
    const vstored *x,       # IN
    const vreal *gain,      # IN
    const vreal *bias,      # IN
    vstored *y,             # OUT, may be x
    Py_ssize_t n,
    double mean,
    double scale,
    double offset,
    bint centered,
    bint has_gain,
    bint has_bias,
    bint stream,            # y's rows start cache lines; past the cache with them
) noexcept nogil:
    cdef vreal m = vset(mean, gain)
    cdef vreal s = vset(scale, gain)
    cdef vreal t = vset(offset, gain)
    cdef vreal v
    cdef int k
    cdef Py_ssize_t width = lanes(x)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j
    if n >= ALIGNED:
        # Stores that stay in a cache line from here on.
        i = to_boundary(y)
        if i > 0:
            affine_part(x, gain, bias, y, i, m, s, t, centered, has_gain, has_bias)
    while i + 4 * width <= n:
        for k in range(4):
            j = i + k * width
            v = scaled(vread(at(x, j), gain), m, s, t, centered)
            vwrite(at_out(y, j), affine(v, at(gain, j), at(bias, j), width, has_gain, has_bias),
                   stream)
        i += 4 * width
    while i + width <= n:
        v = scaled(vread(at(x, i), gain), m, s, t, centered)
        vwrite(at_out(y, i), affine(v, at(gain, i), at(bias, i), width, has_gain, has_bias), stream)
        i += width
    if i < n:
        affine_part(at(x, i), at(gain, i), at(bias, i), at_out(y, i), n - i, m, s, t, centered,
                    has_gain, has_bias)


cdef inline void add_run(
    const vstored *a,       # IN  (n,)
    const vstored *b,       # IN  (n,)
    vstored *out,           # OUT (n,), may be a or b
    Py_ssize_t n,
    const vreal *like,
) noexcept nogil:
    """out = a + b."""
    cdef vreal v
    cdef Py_ssize_t width = lanes(a)
    cdef Py_ssize_t i = 0
    while i + width <= n:
        vwrite(at_out(out, i), vread(at(a, i), like) + vread(at(b, i), like), False)
        i += width
    if i < n:
        v = vread_first(at(a, i), n - i, like) + vread_first(at(b, i), n - i, like)
        vwrite_first(at_out(out, i), v, n - i)
