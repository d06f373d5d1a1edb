"""Conversions between half types and float32, of whole arrays."""
from cython.parallel cimport prange

from normlib._kernels.arrays cimport address
from normlib._kernels.vec cimport (
    VF32_LANES, at, at_out, vbrain, vf32, vhalf, vread, vread_first, vstored, vwrite, vwrite_first,
)

cdef enum:
    CHUNK = 16384        # elements that are one work item


cdef void widen_run(const vstored *x, vf32 *y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + VF32_LANES <= n:
        vwrite(at_out(y, i), vread(at(x, i), y), False)
        i += VF32_LANES
    if i < n:
        vwrite_first(at_out(y, i), vread_first(at(x, i), n - i, y), n - i)


cdef void narrow_run(const vf32 *x, vstored *y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + VF32_LANES <= n:
        vwrite(at_out(y, i), vread(at(x, i), x), False)
        i += VF32_LANES
    if i < n:
        vwrite_first(at_out(y, i), vread_first(at(x, i), n - i, x), n - i)


cdef inline void widen_part(const void *x, vf32 *y, Py_ssize_t i, Py_ssize_t n,
                            bint brain) noexcept nogil:
    """n elements from i on."""
    if brain:
        widen_run(at(<const vbrain *>x, i), at_out(y, i), n)
    else:
        widen_run(at(<const vhalf *>x, i), at_out(y, i), n)


cdef inline void narrow_part(const vf32 *x, void *y, Py_ssize_t i, Py_ssize_t n,
                             bint brain) noexcept nogil:
    """n elements from i on."""
    if brain:
        narrow_run(at(x, i), at_out(<vbrain *>y, i), n)
    else:
        narrow_run(at(x, i), at_out(<vhalf *>y, i), n)


def widen(x, y, Py_ssize_t n, bint brain, int n_threads):
    """y = x: n elements, x of uint16 that stand for halves, y of float32."""
    cdef const void *halves = address(x)
    cdef vf32 *wide = <vf32 *>address(y)
    cdef Py_ssize_t i
    with nogil:
        if n_threads == 1:
            widen_part(halves, wide, 0, n, brain)
        else:
            for i in prange(0, n, CHUNK, schedule="static", num_threads=n_threads):
                widen_part(halves, wide, i, min(<Py_ssize_t>CHUNK, n - i), brain)


def narrow(x, y, Py_ssize_t n, bint brain, int n_threads):
    """y = x, rounded to nearest, ties to even: n elements, x of float32, y of uint16."""
    cdef const vf32 *wide = <const vf32 *>address(x)
    cdef void *halves = address(y)
    cdef Py_ssize_t i
    with nogil:
        if n_threads == 1:
            narrow_part(wide, halves, 0, n, brain)
        else:
            for i in prange(0, n, CHUNK, schedule="static", num_threads=n_threads):
                narrow_part(wide, halves, i, min(<Py_ssize_t>CHUNK, n - i), brain)
