"""What a run over time works on: where its arrays are, and its normalizers.

Design
------
Rows are packed: those of step t are the first counts[t] of the state, and lie from starts[t] on in
an array that has every step. A ``Slab`` is such an array, or one of fewer steps; or, where a row is
needed by nobody after itself, the same few bytes for all rows of a thread.
"""
cimport numpy as cnp
from libc.string cimport memcpy

from normlib._kernels.arrays cimport address
from normlib._kernels.norm_rows cimport NormBackward, NormForward, NormRows

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define team_size() omp_get_num_threads()
    #define team_barrier() _Pragma("omp barrier")
    #else
    #define team_size() 1
    #define team_barrier() ((void)0)
    #endif
    """
    int team_size() noexcept nogil
    void team_barrier() noexcept nogil

cdef enum:
    MAX_SITES = 4
    MAX_PARAMETERS = 4
    MAX_PRODUCTS = 2
    CELL_SCRATCH = 14    # of a thread's scratch, as a multiple of H; then a normalizer's cache

cdef enum Kind:
    LSTM
    GRU
    CLASSIC_GRU
    TANH
    RELU

cdef enum Extent:
    ONE_STEP
    WINDOW               # of the steps whose products with the input were made at once
    EVERY_STEP


cdef struct Slab:
    char *data
    Py_ssize_t row_bytes
    Extent extent


cdef struct Norm:
    NormForward forward  # NULL: the identity
    NormBackward backward
    NormRows rows        # of a few rows, in inference; or NULL
    Py_ssize_t features
    double eps
    int n_parameters
    const char *parameters[MAX_PARAMETERS]
    Py_ssize_t step_bytes[MAX_PARAMETERS]   # 0 where all steps share a parameter
    Py_ssize_t last_step[MAX_PARAMETERS]    # used by the steps past it, too
    double *cache        # (total, cache_size); NULL in inference: a thread's scratch
    Py_ssize_t cache_size
    double *gradients[MAX_PARAMETERS]       # of the first block of rows; NULL for none


cdef struct Weight:
    const void *packed   # (K, N)
    Py_ssize_t K
    Py_ssize_t N


cdef struct Run:
    Kind kind
    bint single
    Py_ssize_t item      # bytes of an element
    Py_ssize_t size      # H
    Py_ssize_t n_rows    # N
    Py_ssize_t n_steps
    Py_ssize_t first     # steps first to stop
    Py_ssize_t stop
    Py_ssize_t first_step                   # the number of step 0, for normalizers
    const Py_ssize_t *starts
    const Py_ssize_t *counts
    Py_ssize_t block     # rows in a block: shares are whole blocks
    bint columns
    int n_products       # with the state, a step
    Weight input
    Weight hidden[MAX_PRODUCTS]
    const void *bias
    Norm norms[MAX_SITES]
    void *initial_h
    void *initial_c
    char *scratch        # (threads, scratch_bytes)
    Py_ssize_t scratch_bytes
    Py_ssize_t window    # the first step of it
    # Forward
    Slab x
    Slab inputs          # products of x, then of the state with the weights
    Slab products
    Slab gates
    Slab h
    Slab c
    Slab extra           # LSTM: tanh(N_c(c)); GRU: N_hn(U_n h) + b_hn; vanilla: what is normalized
    Slab reset_h         # classical GRU
    # Backward
    Slab dh              # of the state; one step
    Slab dc
    Slab d_output
    Slab d_inputs
    Slab d_products
    Slab d_gates         # classical GRU: of r, z before the nonlinearity
    Slab d_state         # what does not come by the products; one step
    Slab d_reset_h
    double *d_bias       # of the first block of rows
    Py_ssize_t block_gradients              # doubles from a block's gradients to the next's


# ---- places --------------------------------------------------------------------------------------


cdef inline char *row_of(const Slab *slab, const Run *run, Py_ssize_t t,
                         Py_ssize_t r) noexcept nogil:
    if slab.extent == EVERY_STEP:
        r += run.starts[t]
    elif slab.extent == WINDOW:
        r += (t - run.window) * run.n_rows
    return slab.data + r * slab.row_bytes


cdef inline char *row_before(const Slab *slab, const void *initial, const Run *run, Py_ssize_t t,
                             Py_ssize_t r) noexcept nogil:
    """The row of the step before; of the initial state for the first."""
    if t == 0:
        return <char *>initial + r * run.size * run.item
    return row_of(slab, run, t - 1, r)


cdef inline char *scratch_of(const Run *run, Py_ssize_t gates) noexcept nogil:
    """This thread's scratch from gates * H elements on."""
    return run.scratch + gates * run.size * run.item


cdef inline void set_slab(Slab *slab, object array, Extent extent) noexcept:
    slab.data = <char *>address(array)
    slab.extent = extent
    slab.row_bytes = 0 if array is None else cnp.PyArray_STRIDE(array, 0)


# ---- normalizers ---------------------------------------------------------------------------------


cdef inline void parameters_at(const Norm *norm, Py_ssize_t step,
                               const void **parameters) noexcept nogil:
    cdef int k
    for k in range(norm.n_parameters):
        parameters[k] = norm.parameters[k] + min(step, norm.last_step[k]) * norm.step_bytes[k]


cdef inline void *normalize(const Norm *norm, const Run *run, Py_ssize_t t, Py_ssize_t r,
                            void *x, void *y) noexcept nogil:
    """Where the normalized x is: y, or x itself."""
    cdef const void *parameters[MAX_PARAMETERS]
    cdef double *cache = NULL
    if norm.forward == NULL:
        return x
    parameters_at(norm, run.first_step + t, parameters)
    if norm.cache != NULL:
        cache = norm.cache + (run.starts[t] + r) * norm.cache_size
    elif norm.cache_size > 0:
        cache = <double *>scratch_of(run, CELL_SCRATCH)
    norm.forward(x, y, norm.features, parameters, norm.eps, cache)
    return y


cdef inline bint normalize_rows(const Norm *norm, const Run *run, Py_ssize_t t, Py_ssize_t n_rows,
                                void *x, void *y) noexcept nogil:
    """Normalize a few rows that follow each other; False if there is no function for it."""
    cdef const void *parameters[MAX_PARAMETERS]
    if norm.rows == NULL:
        return False
    parameters_at(norm, run.first_step + t, parameters)
    norm.rows(x, y, n_rows, norm.features, parameters, norm.eps)
    return True


cdef inline void *normalize_again(const Norm *norm, const Run *run, Py_ssize_t t, void *x,
                                  void *y) noexcept nogil:
    """As forward did in training, for backward: what it keeps is there and stays as it is."""
    cdef const void *parameters[MAX_PARAMETERS]
    cdef double *cache = NULL
    if norm.forward == NULL:
        return x
    parameters_at(norm, run.first_step + t, parameters)
    if norm.cache_size > 0:
        cache = <double *>scratch_of(run, CELL_SCRATCH)
    norm.forward(x, y, norm.features, parameters, norm.eps, cache)
    return y


cdef inline void denormalize(const Norm *norm, const Run *run, Py_ssize_t t, Py_ssize_t r,
                             const void *dy, const void *x, void *dx) noexcept nogil:
    """dx, which may be dy only for the identity."""
    cdef const void *parameters[MAX_PARAMETERS]
    cdef double *gradients[MAX_PARAMETERS]
    cdef Py_ssize_t offset
    cdef int k
    if norm.backward == NULL:
        if dx != dy:
            memcpy(dx, dy, norm.features * run.item)
        return
    parameters_at(norm, run.first_step + t, parameters)
    offset = r // run.block * run.block_gradients
    for k in range(norm.n_parameters):
        gradients[k] = NULL if norm.gradients[k] == NULL else norm.gradients[k] + offset
    norm.backward(dy, x, dx, norm.features, parameters, norm.eps,
                  norm.cache + (run.starts[t] + r) * norm.cache_size, gradients)
