"""Streaming stores of an output that does not start a cache line, or whose rows do not.

Streaming stores that share a line with others cost more than they save. So a part's output, which
is one run of memory, is first put together in a buffer in L1, and leaves it by whole lines.
"""
from normlib._kernels.vec cimport (
    at, at_out, lanes, to_boundary, vec_fence, vec_prefetch, vload_first, vreal, vstore,
    vstore_first,
)

cdef enum:
    MAX_HELD = 16        # elements, at most, that wait for their line to be full


cdef struct Lines:
    void *start            # the line that the buffer starts
    Py_ssize_t held      # elements in the buffer
    Py_ssize_t others    # the first of them, which are not of this output


cdef inline void no_lines(Lines *lines) noexcept nogil:
    lines.start = NULL
    lines.held = 0
    lines.others = 0


cdef inline void open_lines(Lines *lines, vreal *y) noexcept nogil:
    """Begin a run at y."""
    lines.others = (lanes(y) - to_boundary(y)) % lanes(y)
    lines.held = lines.others
    lines.start = at_out(y, -lines.others)


cdef inline void pass_lines(Lines *lines, vreal *buffer, Py_ssize_t n,
                            const vreal *source) noexcept nogil:
    """Store what has become whole lines with the n elements from buffer[held] on.

    Meanwhile prefetch as many of source, which is to be read next.
    """
    cdef vreal *start = <vreal *>lines.start
    cdef Py_ssize_t width = lanes(buffer)
    cdef Py_ssize_t i = 0
    lines.held += n
    if lines.others > 0 and lines.held >= width:
        vstore_first(at_out(start, lines.others),
                     vload_first(at(buffer, lines.others), width - lines.others),
                     width - lines.others)
        lines.others = 0
        i = width
    while i + width <= lines.held:
        vec_prefetch(at(source, i))
        vstore(at_out(start, i), at(buffer, i)[0], True)
        i += width
    if i > 0:
        lines.held -= i
        lines.start = at_out(start, i)
        buffer[0] = vload_first(at(buffer, i), lines.held)


cdef inline void close_lines(Lines *lines, const vreal *buffer) noexcept nogil:
    """Store the rest."""
    cdef Py_ssize_t n = lines.held - lines.others
    if n > 0:
        vstore_first(at_out(<vreal *>lines.start, lines.others),
                     vload_first(at(buffer, lines.others), n), n)
    vec_fence()
