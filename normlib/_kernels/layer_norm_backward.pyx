"""Gradients of layer normalization of rows: those of row_gradients.pxd, centered.

Arrays come in checked: C-contiguous, of one dtype, gain of that in which it is computed, statistics
in float64, at least one row and one feature.
"""
cimport numpy as cnp

from normlib._kernels.arrays cimport dim
from normlib._kernels.gradient_blocks cimport (
    Differentiation, FewGradients, differentiate, differentiate_plain, n_blocks, padded,
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
        prepare_row(at(x, r * n), n, mean[r], rstd[r], &rows[r], True)
    some_gradients(dy, x, gain, around, dx, rows, dgain, dbias, narrow,
                   at_out(narrow, padded(n)), n, n, n_rows, True, stream)


cdef Differentiation LAYER_NORM = Differentiation(
    <FewGradients>few_gradients[vf32, vf32], <FewGradients>few_gradients[vf64, vf64],
    <FewGradients>few_gradients[vhalf, vf32], <FewGradients>few_gradients[vbrain, vf32], True)


def scratch_shape(Py_ssize_t n_rows, Py_ssize_t n):
    """Shape of the float64 scratch that gradients take: blocks, dgain and dbias, features."""
    return n_blocks(n_rows, n), 2, padded(n)


def layer_norm_backward(dy, x, gain, mean, rstd, dtotal, dx, dgain, dbias, int n_threads):
    """Gradients of layer_norm_forward for x (rows, n); gain and dgain, and dtotal may be None.

    dtotal is added to dx: the gradient of a sum that was normalized.
    """
    differentiate(&LAYER_NORM, dy, x, gain, mean, rstd, dtotal, dx, dgain, dbias, dim(x, 0),
                  dim(x, 1), n_threads)


def layer_norm_backward_plain(dy, x, mean, rstd, gain, dtotal, threads_for):
    """(dx, dgain, dbias) over the last axis; None unless every argument is plain."""
    if mean is None:
        return None
    return differentiate_plain(&LAYER_NORM, dy, x, mean, rstd, gain, dtotal, threads_for)


# ---- one row, for a loop of others ---------------------------------------------------------------


cdef void backward_one(
    const vreal *dy,        # IN  (n,)
    const vreal *x,         # IN  (n,)
    vreal *dx,              # OUT (n,)
    Py_ssize_t n,
    const vreal **parameters,   # IN  gain, bias
    double eps,
    const double *cache,    # IN  mean, rstd
    double **gradients,     # IN/OUT of gain, of bias
) noexcept nogil:
    cdef Row row
    cdef const vreal *gain = parameters[0]
    cdef double *dgain = gradients[0]
    cdef double *dbias = gradients[1]
    prepare_row(x, n, cache[0], cache[1], &row, True)
    if not row.vector:
        row_double(dy, x, gain, <const vreal *>NULL, dx, n, &row, dgain, dbias, True)
        return
    one_gradient(dy, x, gain, dx, &row, n, True)
    add_row_any(dy, x, n, row.mean_hi, row.rstd, row.offset, dgain, dbias, True)


def row_function(bint single):
    """A capsule of the function for a row, the gradient of that in layer_norm.pyx."""
    return backward_capsule(<NormBackward>backward_one[vf32], <NormBackward>backward_one[vf64],
                            single)
