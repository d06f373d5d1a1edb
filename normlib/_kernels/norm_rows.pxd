"""A normalizer's work on one row, as a C function: what a fused loop over time calls.

The signatures are documented for authors of normalizers in docs/write_a_normalizer.md; T is float
or double. No argument overlaps another.
"""

# y = the normalized x. cache, for backward, is NULL where there will be none.
ctypedef void (*NormForward)(
    const void *x,              # IN  (features,) of T
    void *y,                    # OUT (features,) of T
    Py_ssize_t features,
    const void **parameters,    # IN  what the normalizer offers, of T; NULL for what it has not
    double eps,
    double *cache,              # OUT (cache_size,), or NULL
) noexcept nogil

# dx; and the gradient of each parameter is added to gradients, in double.
ctypedef void (*NormBackward)(
    const void *dy,             # IN  (features,) of T
    const void *x,              # IN  (features,) of T
    void *dx,                   # OUT (features,) of T
    Py_ssize_t features,
    const void **parameters,    # IN  as forward had them
    double eps,
    const double *cache,        # IN  (cache_size,)
    double **gradients,         # IN/OUT (features,) for each parameter, or NULL
) noexcept nogil
