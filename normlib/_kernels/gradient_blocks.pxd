"""Gradients of arrays of normalized rows: what layer and RMS norm share, around row_gradients.pxd.

Design
------
dgain and dbias are summed over blocks of rows, in double beyond NARROW_ROWS, then over the blocks
in their order: the thread count never shows in the bits.
"""
cimport numpy as cnp
from cython.parallel cimport prange
from libc.stdint cimport uintptr_t

from normlib._kernels.arrays cimport address, dim
from normlib._kernels.buffers cimport aligned_like
from normlib._kernels.halves cimport BFLOAT16, DOUBLE, FLOAT16, Kind, kind_of
from normlib._kernels.plain cimport (
    is_input, is_like, is_parameter, is_row_statistic, new_vector,
)
from normlib._kernels.row_gradients cimport NARROW_ROWS, TOGETHER
from normlib._kernels.vec cimport (
    STREAM_FLOATS, at, at_out, lanes, vadd_to, vec_fence, vf32, vf64, vreal, vset,
)

cdef enum:
    ROWS = 64            # rows in a block, at least
    BLOCK_ELEMENTS = 4096

# Of a few rows of T, computed in float, or in double if that is T, as some_gradients does it.
ctypedef void (*FewGradients)(
    const void *dy,         # IN  (n_rows, n) of T
    const void *x,          # IN  (n_rows, n) of T
    const void *gain,       # IN  (n,) of the computing type, or NULL
    const double *mean,     # IN  (n_rows,), if centered
    const double *rstd,     # IN  (n_rows,)
    const void *around,     # IN  (n_rows, n) of T, or NULL: added to dx
    void *dx,               # OUT (n_rows, n) of T
    double *dgain,          # IN/OUT (n rounded up to blocks,)
    double *dbias,          # IN/OUT (n rounded up to blocks,)
    void *narrow,           # IN/OUT (2, padded) of that type: sums of columns yet to be added there
    Py_ssize_t n_rows,      # at most TOGETHER
    Py_ssize_t n,
    bint stream,            # dx, which starts a cache line, goes past the cache
) noexcept nogil


cdef struct Differentiation:
    FewGradients single
    FewGradients double
    FewGradients half
    FewGradients brain
    bint centered           # has a mean and a bias


cdef struct Gradients:
    FewGradients few
    Kind kind               # of dy, x, around and dx
    Py_ssize_t item         # its bytes
    const char *dy
    const char *x
    const void *gain
    const double *mean
    const double *rstd
    const char *around
    char *dx
    double *partial         # (blocks, 2, padded): dgain and dbias
    double *narrow          # (threads, 2, padded): of the rows' own type
    Py_ssize_t n_rows
    Py_ssize_t n
    bint stream


cdef inline Py_ssize_t block_rows(Py_ssize_t n) noexcept nogil:
    """Rows in a block: more where they are short, lest the scratch outgrow the input."""
    return max(ROWS, BLOCK_ELEMENTS // n)


cdef inline Py_ssize_t n_blocks(Py_ssize_t n_rows, Py_ssize_t n) noexcept nogil:
    return (n_rows + block_rows(n) - 1) // block_rows(n)


cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    """n, rounded up to whole vectors of any kind."""
    return (n + 63) // 64 * 64


cdef inline FewGradients few_of(const Differentiation *how, Kind kind) noexcept nogil:
    if kind == DOUBLE:
        return how.double
    if kind == FLOAT16:
        return how.half
    if kind == BFLOAT16:
        return how.brain
    return how.single


cdef inline void widen_columns(vreal *narrow, double *sums, Py_ssize_t n) noexcept nogil:
    """Move n sums of columns, whole vectors of them, to those in double."""
    cdef Py_ssize_t i = 0
    while i < n:
        vadd_to(sums + i, at(narrow, i)[0])
        at_out(narrow, i)[0] = vset(0, narrow)
        i += lanes(narrow)


cdef inline void gradients_part(const Gradients *all, int part, int n_parts) noexcept nogil:
    """The blocks of one of n_parts equal parts."""
    cdef Py_ssize_t size = block_rows(all.n)
    cdef Py_ssize_t stride = padded(all.n)
    cdef Py_ssize_t blocks = n_blocks(all.n_rows, all.n)
    cdef double *narrow = all.narrow + 2 * part * stride
    cdef double *dgain
    cdef double *dbias
    cdef const double *mean
    cdef const char *around
    cdef bint summed
    cdef Py_ssize_t b, first, stop, count, i
    for b in range(blocks * part // n_parts, blocks * (part + 1) // n_parts):
        dgain = all.partial + 2 * b * stride
        dbias = dgain + stride
        for i in range(2 * stride):
            dgain[i] = 0
        first = b * size
        stop = min(first + size, all.n_rows)
        # Fewer rows than TOGETHER add to the sums in double.
        summed = stop - first >= TOGETHER
        if summed:
            for i in range(2 * stride):
                narrow[i] = 0
        while first < stop:
            count = min(<Py_ssize_t>TOGETHER, stop - first)
            mean = all.mean
            if mean != NULL:
                mean = mean + first
            i = first * all.n * all.item
            around = all.around
            if around != NULL:
                around = around + i
            all.few(all.dy + i, all.x + i, all.gain, mean, all.rstd + first, around, all.dx + i,
                    dgain, dbias, narrow, count, all.n, all.stream)
            first += count
            if summed and (first == stop or (first - b * size) % NARROW_ROWS == 0):
                if all.kind == DOUBLE:
                    widen_columns(<vf64 *>narrow, dgain, 2 * stride)
                else:
                    widen_columns(<vf32 *>narrow, dgain, 2 * stride)
    if all.stream:
        vec_fence()


cdef inline void all_gradients(const Gradients *all, int n_threads) noexcept nogil:
    cdef int part
    if n_threads == 1:
        gradients_part(all, 0, 1)
        return
    for part in prange(n_threads, schedule="static", num_threads=n_threads):
        gradients_part(all, part, n_threads)


cdef inline void add_columns(double *partial, void *out, Py_ssize_t blocks, Py_ssize_t n,
                             bint single) noexcept nogil:
    """The sums of columns over blocks, in their order, into out (n,) of float or double; the first
    block is overwritten.
    """
    cdef Py_ssize_t stride = 2 * padded(n)
    cdef const double *block
    cdef Py_ssize_t b, i
    for b in range(1, blocks):
        block = partial + b * stride
        for i in range(n):
            partial[i] += block[i]
    if single:
        for i in range(n):
            (<float *>out)[i] = <float>partial[i]
    else:
        for i in range(n):
            (<double *>out)[i] = partial[i]


cdef inline int differentiate(
    const Differentiation *how, object dy, object x, object gain, object mean, object rstd,
    object around, object dx, object dgain, object dbias, Py_ssize_t n_rows, Py_ssize_t n,
    int n_threads,
) except -1:
    """Checked arguments: all C-contiguous, dy, around and dx of x's type, gain, dgain and dbias of
    the type it is computed in; gain and dgain, around, and mean and dbias may be None.
    """
    cdef Gradients all
    cdef void *dgain_data = address(dgain)
    cdef void *dbias_data = address(dbias)
    cdef Py_ssize_t blocks = n_blocks(n_rows, n)
    cdef bint single
    cdef object partial = new_vector(2 * padded(n) * (blocks + n_threads), cnp.NPY_FLOAT64)
    all.kind = kind_of(x)
    all.item = cnp.PyArray_ITEMSIZE(x)
    single = all.kind != DOUBLE
    all.few = few_of(how, all.kind)
    all.dy = <const char *>address(dy)
    all.x = <const char *>address(x)
    all.gain = address(gain)
    all.mean = <const double *>address(mean)
    all.rstd = <const double *>address(rstd)
    all.around = <const char *>address(around)
    all.dx = <char *>address(dx)
    all.partial = <double *>address(partial)
    all.narrow = all.partial + 2 * padded(n) * blocks
    all.n_rows = n_rows
    all.n = n
    all.stream = (n_rows * n * max(all.item, <Py_ssize_t>4) >= 4 * STREAM_FLOATS
                  and n * all.item % 64 == 0 and <uintptr_t>all.dx % 64 == 0)
    with nogil:
        all_gradients(&all, n_threads)
        if dgain_data != NULL:
            add_columns(all.partial, dgain_data, blocks, n, single)
        if dbias_data != NULL:
            add_columns(all.partial + padded(n), dbias_data, blocks, n, single)
    return 0


cdef inline object differentiate_plain(
    const Differentiation *how, object dy, object x, object mean, object rstd, object gain,
    object around, object threads_for,
):
    """(dx, dgain, dbias) over the last axis, or (dx, dgain); None unless every argument is plain.

    threads_for(elements) tells how many threads to use.
    """
    cdef int number
    cdef Py_ssize_t n, n_rows
    cdef object dx, dgain, dbias
    if not (is_input(x) and is_like(dy, x) and is_row_statistic(rstd, x)
            and (mean is None or is_row_statistic(mean, x))
            and (around is None or is_like(around, x))):
        return None
    number = cnp.PyArray_TYPE(x)
    n = dim(x, cnp.PyArray_NDIM(x) - 1)
    n_rows = cnp.PyArray_SIZE(x) // n
    if not is_parameter(gain, x, n):
        return None
    dx = aligned_like(x)
    dgain = None if gain is None else new_vector(n, number)
    dbias = new_vector(n, number) if how.centered else None
    differentiate(how, dy, x, gain, mean, rstd, around, dx, dgain, dbias, n_rows, n,
                  threads_for(n_rows * n))
    return (dx, dgain, dbias) if how.centered else (dx, dgain)
