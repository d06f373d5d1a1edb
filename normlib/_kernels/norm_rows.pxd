"""A normalizer's work on one row, as a C function: what a fused loop over time calls.

The contract is documented for authors of normalizers at `normlib.RowFunctions`; T is float or
double.
"""

from cpython.pycapsule cimport PyCapsule_New

cdef extern from *:
    """
    #define FORWARD_OF(T) "void (const " T " *, " T " *, intptr_t, const " T " **, double, " \
        "double *)"
    #define FORWARD_FLOAT FORWARD_OF("float")
    #define FORWARD_DOUBLE FORWARD_OF("double")
    #define BACKWARD_OF(T) "void (const " T " *, const " T " *, " T " *, intptr_t, const " T \
        " **, double, const double *, double **)"
    #define BACKWARD_FLOAT BACKWARD_OF("float")
    #define BACKWARD_DOUBLE BACKWARD_OF("double")
    """
    const char *FORWARD_FLOAT
    const char *FORWARD_DOUBLE
    const char *BACKWARD_FLOAT
    const char *BACKWARD_DOUBLE

# y = the normalized x. cache is for backward.
ctypedef void (*NormForward)(
    const void *x,              # IN  (features,) of T
    void *y,                    # OUT (features,) of T
    Py_ssize_t features,
    const void **parameters,    # IN  what the normalizer offers, of T; NULL for what it has not
    double eps,
    double *cache,              # OUT (cache_size,); NULL if that is 0
) noexcept nogil

# The same for a few rows that follow each other, with the same bits; y may be x. One of normlib's
# own functions may have this beside it.
ctypedef void (*NormRows)(
    const void *x,              # IN  (n_rows, features) of T
    void *y,                    # OUT (n_rows, features) of T
    Py_ssize_t n_rows,          # at most 8
    Py_ssize_t features,
    const void **parameters,    # IN  as NormForward has them
    double eps,
) noexcept nogil

# dx; and the gradient of each parameter is added to gradients, in double.
ctypedef void (*NormBackward)(
    const void *dy,             # IN  (features,) of T
    const void *x,              # IN  (features,) of T
    void *dx,                   # OUT (features,) of T
    Py_ssize_t features,
    const void **parameters,    # IN  as forward had them
    double eps,
    const double *cache,        # IN  (cache_size,); NULL if that is 0
    double **gradients,         # IN/OUT (features,) for each parameter, or NULL
) noexcept nogil


cdef inline object forward_capsule(NormForward single, NormForward double, bint is_single):
    """A capsule of one of the two, its name the C signature, as scipy.LowLevelCallable takes it."""
    if is_single:
        return PyCapsule_New(<void *>single, FORWARD_FLOAT, NULL)
    return PyCapsule_New(<void *>double, FORWARD_DOUBLE, NULL)


cdef inline object rows_capsule(NormRows single, NormRows double, bint is_single):
    """A capsule of one of the two."""
    return PyCapsule_New(<void *>(single if is_single else double), NULL, NULL)


cdef inline object backward_capsule(NormBackward single, NormBackward double, bint is_single):
    """As ``forward_capsule``."""
    if is_single:
        return PyCapsule_New(<void *>single, BACKWARD_FLOAT, NULL)
    return PyCapsule_New(<void *>double, BACKWARD_DOUBLE, NULL)
