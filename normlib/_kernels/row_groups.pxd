"""Normalization of rows, a group of them at a time: what layer and RMS norm share.

A normalization is a function of a group of rows. Around it stands what does not depend on it: the
split between threads, the residual that is added first, half types, and the arguments of a call.

Design
------
A group is so few rows that they stay in L1 from their sums to their output. A sum x + residual is
made a group at a time, in its own place, from where it is normalized. If y leaves the cache, it is
written past it, by whole lines; the sum is not, which the next layer reads first. Half types are
widened where they are loaded, and rounded where they are stored (vread, vwrite).

Loops over threads have a serial twin, as in all kernels: a parallel region costs 0.7 us even for
one thread.
"""
cimport numpy as cnp
from cython.parallel cimport prange
from libc.stdint cimport uintptr_t

from normlib._kernels.affine cimport add_run
from normlib._kernels.arrays cimport address, dim
from normlib._kernels.buffers cimport aligned_like
from normlib._kernels.halves cimport (
    BFLOAT16, DOUBLE, FLOAT16, Kind, SINGLE, kind_of,
)
from normlib._kernels.lines cimport MAX_HELD, Lines, close_lines, open_lines, pass_lines
from normlib._kernels.plain cimport (
    apart, is_eps, is_input_or_half, is_like, is_output, is_pair, is_vector, new_vector,
)
from normlib._kernels.rows cimport GROUP, GROUP_FLOATS, SHORT
from normlib._kernels.vec cimport (
    STREAM_FLOATS, at, at_out, vbrain, vec_fence, vf32, vf64, vhalf, vreal,
)

cdef enum:
    ALONE = 4096            # bytes of rows that are streamed one by one, at least,
    FAR = 1 << 25           # in arrays of so many bytes, at least

# Normalizes rows of T, computed in float, or in double if that is T; whoever has no bias, or no
# mean, leaves it alone.
ctypedef void (*NormalizeGroup)(
    const void *x,          # IN  (n_rows, n) of T
    const void *gain,       # IN  (n,) of the computing type, or NULL
    const void *bias,       # IN  (n,) of the computing type, or NULL
    void *y,                # OUT (n_rows, n) of T, may be x
    double *mean,           # OUT (n_rows,) or NULL
    double *rstd,           # OUT (n_rows,) or NULL
    Py_ssize_t n_rows,      # at most GROUP
    Py_ssize_t n,
    double eps,
    bint stream,            # y's rows start cache lines; past the cache with them
) noexcept nogil


cdef struct Normalization:
    NormalizeGroup single
    NormalizeGroup double
    NormalizeGroup half
    NormalizeGroup brain
    bint centered           # has a mean and a bias


cdef struct Rows:
    NormalizeGroup normalize
    Kind kind               # of x, residual, y and total
    Py_ssize_t item         # its bytes
    const char *x           # IN  (n_rows, n)
    const char *residual    # IN  (n_rows, n) or NULL
    const void *gain
    const void *bias
    char *y                 # OUT (n_rows, n), may be x
    char *total             # OUT (n_rows, n), with a residual: x + residual
    double *mean
    double *rstd
    Py_ssize_t n_rows
    Py_ssize_t n
    double eps
    bint stream             # y goes past the cache
    bint by_lines           # y goes past the cache, and its rows are no whole lines
    char *scratch           # (threads, scratch_size) bytes, at a cache line; or NULL
    Py_ssize_t scratch_size


cdef inline bint is_half(Kind kind) noexcept nogil:
    return kind != SINGLE and kind != DOUBLE


cdef inline NormalizeGroup normalize_of(const Normalization *how, Kind kind) noexcept nogil:
    if kind == DOUBLE:
        return how.double
    if kind == FLOAT16:
        return how.half
    if kind == BFLOAT16:
        return how.brain
    return how.single


cdef inline const char *add_group(const Rows *rows, Py_ssize_t first,
                                  Py_ssize_t count) noexcept nogil:
    """total = x + residual; returns where it is."""
    cdef Py_ssize_t i = first * rows.n * rows.item
    cdef Py_ssize_t n = count * rows.n
    cdef const char *x = rows.x + i
    cdef const char *residual = rows.residual + i
    cdef char *total = rows.total + i
    if rows.kind == SINGLE:
        add_run(<vf32 *>x, <vf32 *>residual, <vf32 *>total, n, <vf32 *>NULL)
    elif rows.kind == DOUBLE:
        add_run(<vf64 *>x, <vf64 *>residual, <vf64 *>total, n, <vf64 *>NULL)
    elif rows.kind == FLOAT16:
        add_run(<vhalf *>x, <vhalf *>residual, <vhalf *>total, n, <vf32 *>NULL)
    else:
        add_run(<vbrain *>x, <vbrain *>residual, <vbrain *>total, n, <vf32 *>NULL)
    return total


cdef inline void normalize_by_lines(
    const Rows *rows,
    vreal *buffer,          # (GROUP_FLOATS + 2 * MAX_HELD,)
    Py_ssize_t first,
    Py_ssize_t stop,
    Py_ssize_t size,        # rows of a group
) noexcept nogil:
    """The rows from first to stop, which leave the buffer by whole lines."""
    cdef const vreal *x = <const vreal *>rows.x
    cdef Py_ssize_t n = rows.n
    cdef Py_ssize_t count
    cdef Lines lines
    open_lines(&lines, at_out(<vreal *>rows.y, first * n))
    while first < stop:
        count = min(size, stop - first)
        rows.normalize(at(x, first * n), rows.gain, rows.bias, at_out(buffer, lines.held),
                       NULL if rows.mean == NULL else rows.mean + first,
                       NULL if rows.rstd == NULL else rows.rstd + first, count, n, rows.eps, False)
        first += count
        pass_lines(&lines, buffer, count * n, at(x, first * n))
    close_lines(&lines, buffer)


cdef inline Py_ssize_t group_rows(Py_ssize_t n, Py_ssize_t item) noexcept nogil:
    """Rows of a group, n elements of item bytes each: short ones have their own way for GROUP."""
    if n < SHORT:
        return GROUP
    return max(1, min(GROUP, 4 * GROUP_FLOATS // (n * item)))


cdef inline Py_ssize_t rows_together(const Rows *rows) noexcept nogil:
    """Rows of a group; one, where the processor fetches the next while this goes to memory."""
    if (rows.stream and rows.residual == NULL and not is_half(rows.kind)
            and rows.n * rows.item >= ALONE and rows.n_rows * rows.n * rows.item >= FAR):
        return 1
    return group_rows(rows.n, rows.item)


cdef inline void normalize_part(const Rows *rows, int part, int n_parts) noexcept nogil:
    """The groups of one of n_parts equal parts."""
    cdef Py_ssize_t n = rows.n
    cdef Py_ssize_t size = rows_together(rows)
    cdef Py_ssize_t n_groups = (rows.n_rows + size - 1) // size
    cdef Py_ssize_t first = n_groups * part // n_parts * size
    cdef Py_ssize_t stop = min(n_groups * (part + 1) // n_parts * size, rows.n_rows)
    cdef char *near = rows.scratch + part * rows.scratch_size
    cdef const char *source
    cdef double *mean
    cdef double *rstd
    cdef Py_ssize_t count
    if rows.by_lines:
        if rows.kind == SINGLE:
            normalize_by_lines(rows, <vf32 *>near, first, stop, size)
        else:
            normalize_by_lines(rows, <vf64 *>near, first, stop, size)
        return
    while first < stop:
        count = min(size, stop - first)
        mean = NULL if rows.mean == NULL else rows.mean + first
        rstd = NULL if rows.rstd == NULL else rows.rstd + first
        if rows.residual == NULL:
            source = rows.x + first * n * rows.item
        else:
            source = add_group(rows, first, count)
        rows.normalize(source, rows.gain, rows.bias, rows.y + first * n * rows.item, mean, rstd,
                       count, n, rows.eps, rows.stream)
        first += count
    if rows.stream:
        vec_fence()


cdef inline void normalize_all(const Rows *rows, int n_threads) noexcept nogil:
    cdef int part
    if n_threads == 1:
        normalize_part(rows, 0, 1)
        return
    for part in prange(n_threads, schedule="static", num_threads=n_threads):
        normalize_part(rows, part, n_threads)


cdef inline bint leaves_cache(const Rows *rows) noexcept nogil:
    """Whether y leaves the cache; halves from as many elements on as floats."""
    return rows.n_rows * rows.n * max(rows.item, <Py_ssize_t>4) >= 4 * STREAM_FLOATS


cdef inline bint starts_lines(const Rows *rows) noexcept nogil:
    """Whether y's rows are whole cache lines, by four vectors; halves go by themselves."""
    cdef Py_ssize_t step = 64 if is_half(rows.kind) else 256
    return rows.n * rows.item % step == 0 and <uintptr_t>rows.y % 64 == 0


cdef inline int normalize(
    const Normalization *how, object x, object residual, object gain, object bias, double eps,
    object y, object total, object mean, object rstd, Py_ssize_t n_rows, Py_ssize_t n,
    int n_threads,
) except -1:
    """Checked arguments: all C-contiguous, y, total and residual of x's type, gain and bias of the
    type it is computed in; bias, mean and rstd, residual and total may be None.
    """
    cdef Rows rows
    cdef Py_ssize_t group
    cdef object memory
    rows.kind = kind_of(x)
    rows.item = cnp.PyArray_ITEMSIZE(x)
    rows.normalize = normalize_of(how, rows.kind)
    rows.x = <const char *>address(x)
    rows.residual = <const char *>address(residual)
    rows.gain = address(gain)
    rows.bias = address(bias)
    rows.y = <char *>address(y)
    rows.total = <char *>address(total)
    rows.mean = <double *>address(mean)
    rows.rstd = <double *>address(rstd)
    rows.n_rows = n_rows
    rows.n = n
    rows.eps = eps
    rows.stream = leaves_cache(&rows) and starts_lines(&rows)
    rows.by_lines = (leaves_cache(&rows) and not rows.stream and residual is None
                     and not is_half(rows.kind) and n <= GROUP_FLOATS)
    rows.scratch = NULL
    rows.scratch_size = 0
    if rows.by_lines:
        group = (GROUP_FLOATS + 2 * MAX_HELD) * rows.item
        rows.scratch_size = (group + 63) // 64 * 64
        memory = new_vector(n_threads * rows.scratch_size + 63, cnp.NPY_UINT8)
        rows.scratch = <char *>((<uintptr_t>address(memory) + 63) & ~<uintptr_t>63)
    with nogil:
        normalize_all(&rows, n_threads)
    return 0


cdef inline object normalize_plain(
    const Normalization *how, object x, object residual, bint adds, object gain, object bias,
    object eps, object out, bint statistics, object threads_for,
):
    """Over the last axis: y, or with adds (y, x + residual); then mean and rstd with statistics.

    None unless every argument is plain. threads_for(elements) tells how many threads to use.
    """
    cdef int n_axes, number
    cdef Py_ssize_t n, n_rows
    cdef object y, total, mean, rstd
    if not (is_input_or_half(x) and is_eps(eps)):
        return None
    n_axes = cnp.PyArray_NDIM(x)
    number = cnp.NPY_FLOAT64 if kind_of(x) == DOUBLE else cnp.NPY_FLOAT32
    n = dim(x, n_axes - 1)
    n_rows = cnp.PyArray_SIZE(x) // n
    if not ((gain is None or is_vector(gain, number, n))
            and (bias is None or is_vector(bias, number, n))):
        return None
    if adds:
        if not (is_like(residual, x) and is_pair(out, x, residual, gain, bias)):
            return None
        y, total = (aligned_like(x), aligned_like(x)) if out is None else out
    else:
        if not (is_output(out, x) and apart(out, gain, bias)):
            return None
        y, total = aligned_like(x) if out is None else out, None
    mean = rstd = None
    if statistics:
        rstd = cnp.PyArray_SimpleNew(n_axes - 1, cnp.PyArray_DIMS(x), cnp.NPY_FLOAT64)
        if how.centered:
            mean = cnp.PyArray_SimpleNew(n_axes - 1, cnp.PyArray_DIMS(x), cnp.NPY_FLOAT64)
    normalize(how, x, residual, gain, bias, eps, y, total, mean, rstd, n_rows, n,
              threads_for(n_rows * n))
    if not statistics:
        return (y, total) if adds else y
    if how.centered:
        return (y, total, mean, rstd) if adds else (y, mean, rstd)
    return (y, total, rstd) if adds else (y, rstd)
