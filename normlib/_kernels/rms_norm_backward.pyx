"""Gradients of root-mean-square normalization of rows: those of row_gradients.pxd, not centered.

Arrays come in checked: C-contiguous, of one dtype, gain of that in which it is computed, rstd in
float64, at least one row and one feature.
"""
cimport numpy as cnp

from normlib._kernels.arrays cimport dim
from normlib._kernels.gradient_blocks cimport (
    Differentiation, FewGradients, differentiate, differentiate_plain, padded,
)
from normlib._kernels.norm_rows cimport NormBackward, backward_capsule
from normlib._kernels.row_gradients cimport (
    Row, TOGETHER, one_gradient, prepare_row, row_double, some_gradients,
)
from normlib._kernels.row_sums cimport add_row_any
from normlib._kernels.vec cimport at, at_out, vbrain, vf32, vf64, vhalf, vreal, vstored

cnp.import_array()


cdef void few_gradients(
    const vstored *dy, const vstored *x, const vreal *gain, const double *mean,
    const double *rstd, const vstored *around, vstored *dx, double *dgain, double *dbias,
    vreal *narrow, Py_ssize_t n_rows, Py_ssize_t n,
    bint stream,
) noexcept nogil:
    cdef Row rows[TOGETHER]
    cdef Py_ssize_t r
    for r in range(n_rows):
        prepare_row(at(x, r * n), n, 0, rstd[r], &rows[r], False)
    some_gradients(dy, x, gain, around, dx, rows, dgain, dbias, narrow,
                   at_out(narrow, padded(n)), n, n, n_rows, False, stream)


cdef Differentiation RMS_NORM = Differentiation(
    <FewGradients>few_gradients[vf32, vf32], <FewGradients>few_gradients[vf64, vf64],
    <FewGradients>few_gradients[vhalf, vf32], <FewGradients>few_gradients[vbrain, vf32], False)


def rms_norm_backward(dy, x, gain, rstd, dtotal, dx, dgain, int n_threads):
    """Gradients of rms_norm_forward for x (rows, n); gain and dgain, and dtotal may be None.

    dtotal is added to dx: the gradient of a sum that was normalized.
    """
    differentiate(&RMS_NORM, dy, x, gain, None, rstd, dtotal, dx, dgain, None, dim(x, 0), dim(x, 1),
                  n_threads)


def rms_norm_backward_plain(dy, x, rstd, gain, dtotal, threads_for):
    """(dx, dgain) over the last axis; None unless every argument is plain."""
    return differentiate_plain(&RMS_NORM, dy, x, None, rstd, gain, dtotal, threads_for)


# ---- one row, for a loop of others ---------------------------------------------------------------


cdef void backward_one(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    vreal *dx,              # OUT (n,)
    Py_ssize_t n,
    const vreal **parameters,   # IN  gain
    double eps,
    const double *cache,    # IN  rstd
    double **gradients,     # IN/OUT of gain
) noexcept nogil:
    cdef Row row
    cdef const vreal *gain = parameters[0]
    prepare_row(x, n, 0, cache[0], &row, False)
    if not row.vector:
        row_double(dy, x, gain, <const vreal *>NULL, dx, n, &row, gradients[0], NULL, False)
        return
    one_gradient(dy, x, gain, dx, &row, n, False)
    add_row_any(dy, x, n, 0, row.rstd, 0, gradients[0], NULL, False)


def row_function(bint single):
    """A capsule of the function for a row, the gradient of that in rms_norm.pyx."""
    return backward_capsule(<NormBackward>backward_one[vf32], <NormBackward>backward_one[vf64],
                            single)
