"""Mean and variance of each row."""
from cython.parallel cimport prange

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.rows cimport (
    Moments, ScaledMoments, needs_scaling, row_moments, scaled_moments, unscaled_mean,
    unscaled_var,
)
from normlib._kernels.vec cimport at, vf32, vf64, vreal


cdef void moments_row(
    const vreal *x,         # IN  (n,)
    double *mean,           # OUT
    double *var,            # OUT
    Py_ssize_t n,
) noexcept nogil:
    cdef Moments moments
    cdef ScaledMoments scaled
    row_moments(x, n, &moments)
    if needs_scaling(x, moments.var, 0):
        scaled_moments(x, 1, 0, n, 0, &scaled)
        mean[0] = unscaled_mean(&scaled)
        var[0] = unscaled_var(&scaled)
    else:
        mean[0] = moments.mean_hi + moments.mean_lo
        var[0] = moments.var


cdef void moments_rows(const vreal *x, double *mean, double *var, Py_ssize_t n_rows,
                       Py_ssize_t n, int n_threads) noexcept nogil:
    cdef Py_ssize_t r
    if n_threads == 1:
        for r in range(n_rows):
            moments_row(at(x, r * n), mean + r, var + r, n)
    else:
        for r in prange(n_rows, schedule="static", num_threads=n_threads):
            moments_row(at(x, r * n), mean + r, var + r, n)


def moments(x, mean, var, int n_threads):
    """Mean and biased variance of the rows of x (rows, n), in float64."""
    cdef Py_ssize_t n_rows = dim(x, 0)
    cdef Py_ssize_t n = dim(x, 1)
    cdef void *x_data = address(x)
    cdef double *mean_data = <double *>address(mean)
    cdef double *var_data = <double *>address(var)
    cdef bint single = is_single(x)
    with nogil:
        if single:
            moments_rows[vf32](<vf32 *>x_data, mean_data, var_data, n_rows, n, n_threads)
        else:
            moments_rows[vf64](<vf64 *>x_data, mean_data, var_data, n_rows, n, n_threads)
