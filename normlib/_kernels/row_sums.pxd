"""What one row adds to the gradients of gain and bias, for row functions (norm_rows.pxd)."""
from normlib._kernels.affine cimport scaled
from normlib._kernels.vec cimport at, lanes, vadd_to, vget, vload_first, vreal, vset


cdef inline void add_row(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    Py_ssize_t n,
    double mean,            # xhat = (x - mean) * scale + offset
    double scale,
    double offset,
    double *dgain,          # IN/OUT (n,)
    double *dbias,          # IN/OUT (n,)
    bint centered,          # a constant: whether there are mean and offset
    bint has_gain,          # a constant
    bint has_bias,          # a constant
) noexcept nogil:
    """Add the row's dy * xhat to dgain, its dy to dbias."""
    cdef vreal m = vset(mean, x)
    cdef vreal s = vset(scale, x)
    cdef vreal t = vset(offset, x)
    cdef vreal g
    cdef vreal rest[2]
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j
    while i + lanes(x) <= n:
        g = at(dy, i)[0]
        if has_gain:
            vadd_to(dgain + i, g * scaled(at(x, i)[0], m, s, t, centered))
        if has_bias:
            vadd_to(dbias + i, g)
        i += lanes(x)
    if i < n:
        g = vload_first(at(dy, i), n - i)
        rest[0] = g * scaled(vload_first(at(x, i), n - i), m, s, t, centered)
        rest[1] = g
        for j in range(n - i):
            if has_gain:
                dgain[i + j] += vget(&rest[0], j)
            if has_bias:
                dbias[i + j] += vget(&rest[1], j)


cdef inline void add_row_any(
    const vreal *dy, const vreal *x, Py_ssize_t n, double mean, double scale, double offset,
    double *dgain, double *dbias, bint centered,
) noexcept nogil:
    """add_row, compiled for each combination of dgain and dbias; either may be NULL."""
    if dgain != NULL and dbias != NULL:
        add_row(dy, x, n, mean, scale, offset, dgain, dbias, centered, True, True)
    elif dgain != NULL:
        add_row(dy, x, n, mean, scale, offset, dgain, dbias, centered, True, False)
    elif dbias != NULL:
        add_row(dy, x, n, mean, scale, offset, dgain, dbias, centered, False, True)
