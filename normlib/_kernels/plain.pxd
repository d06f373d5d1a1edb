"""Plain arguments: as a kernel wants them, so that a call needs neither checks in Python nor views.

Each entry point named ``_plain`` asks these, and returns None where one says no: the checked path
then takes the call, copies and converts, or raises the error.
"""
cimport numpy as cnp
from libc.math cimport isfinite

from normlib._kernels.arrays cimport dim, is_aligned, is_plain, overlap
from normlib._kernels.channels cimport Shape
from normlib._kernels.halves cimport NO_FLOAT, kind_of


cdef inline bint is_eps(object eps) noexcept:
    if type(eps) is not float:
        return False
    cdef double value = eps
    return value >= 0 and isfinite(value)


cdef inline bint is_input(object x) noexcept:
    """A plain array of at least one axis and one element."""
    return is_plain(x) and cnp.PyArray_NDIM(x) > 0 and cnp.PyArray_SIZE(x) > 0


cdef inline bint is_input_or_half(object x) noexcept:
    """The same, of a half type too."""
    return is_aligned(x) and (
        kind_of(x) != NO_FLOAT and cnp.PyArray_NDIM(x) > 0 and cnp.PyArray_SIZE(x) > 0)


cdef inline bint starts_like(object array, object x, int n_axes) noexcept:
    """Whether array has n_axes axes, of x's first sizes."""
    cdef int axis
    if cnp.PyArray_NDIM(array) != n_axes:
        return False
    for axis in range(n_axes):
        if dim(array, axis) != dim(x, axis):
            return False
    return True


cdef inline bint is_like(object array, object x) noexcept:
    """An array of x's type and shape, and as plain as x."""
    return (is_aligned(array) and cnp.PyArray_TYPE(array) == cnp.PyArray_TYPE(x)
            and starts_like(array, x, cnp.PyArray_NDIM(x)))


cdef inline bint is_vector(object array, int number, Py_ssize_t n) noexcept:
    """A plain (n,) of that type."""
    return (is_plain(array) and cnp.PyArray_TYPE(array) == number
            and cnp.PyArray_NDIM(array) == 1 and dim(array, 0) == n)


cdef inline bint is_parameter(object array, object x, Py_ssize_t n) noexcept:
    """None, or a plain (n,) of x's type."""
    return array is None or is_vector(array, cnp.PyArray_TYPE(x), n)


cdef inline bint is_row_statistic(object array, object x) noexcept:
    """A plain array of doubles, of x's shape without the last axis."""
    return (is_plain(array) and cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT64
            and starts_like(array, x, cnp.PyArray_NDIM(x) - 1))


cdef inline bint is_output(object out, object x) noexcept:
    """None, or a plain, writeable array of x's type and shape, apart from x or x itself."""
    return out is None or (is_like(out, x) and cnp.PyArray_ISWRITEABLE(out)
                           and (out is x or not overlap(out, x)))


cdef inline bint apart(object out, object a, object b) noexcept:
    """Whether out shares no memory with either; any may be None."""
    return out is None or not (overlap(out, a) or overlap(out, b))


cdef inline bint is_pair(object out, object x, object residual, object gain,
                         object bias) noexcept:
    """None, or two outputs, apart from each other; each apart from residual or residual itself."""
    if out is None:
        return True
    if type(out) is not tuple or len(<tuple>out) != 2:
        return False
    for one in <tuple>out:
        if (one is None or not is_output(one, x) or not apart(one, gain, bias)
                or (one is not residual and overlap(one, residual))):
            return False
    return not overlap((<tuple>out)[0], (<tuple>out)[1])


cdef inline bint find_channels(object x, object channel_axis, Shape *shape) except -1:
    """x as (outer, C, inner), where channel_axis is an int that x has; one channel as one plane."""
    cdef int axis, i
    cdef int n_axes = cnp.PyArray_NDIM(x)
    if type(channel_axis) is not int or not -n_axes <= channel_axis < n_axes:
        return False
    axis = channel_axis
    if axis < 0:
        axis += n_axes
    shape.outer = 1
    shape.channels = dim(x, axis)
    shape.inner = 1
    for i in range(axis):
        shape.outer *= dim(x, i)
    for i in range(axis + 1, n_axes):
        shape.inner *= dim(x, i)
    if shape.channels == 1:
        shape.inner *= shape.outer
        shape.outer = 1
    return True


cdef inline object new_vector(Py_ssize_t n, int number):
    """An uninitialized (n,) of that type."""
    cdef cnp.npy_intp size = n
    return cnp.PyArray_SimpleNew(1, &size, number)


cdef inline object as_doubles(object array, Py_ssize_t n):
    """A plain (n,) of floats or doubles as doubles, copied only if it is of floats; else None."""
    cdef const float *source
    cdef double *target
    cdef Py_ssize_t i
    if is_vector(array, cnp.NPY_FLOAT64, n):
        return array
    if not is_vector(array, cnp.NPY_FLOAT32, n):
        return None
    doubles = new_vector(n, cnp.NPY_FLOAT64)
    source = <const float *>cnp.PyArray_DATA(array)
    target = <double *>cnp.PyArray_DATA(doubles)
    for i in range(n):
        target[i] = source[i]
    return doubles


cdef inline object rounded_to(object doubles, Py_ssize_t n, int number):
    """A new (n,) of doubles as an array of that type, quietly where they are beyond it."""
    cdef const double *source = <const double *>cnp.PyArray_DATA(doubles)
    cdef float *target
    cdef Py_ssize_t i
    if number == cnp.NPY_FLOAT64:
        return doubles
    array = new_vector(n, number)
    target = <float *>cnp.PyArray_DATA(array)
    for i in range(n):
        target[i] = <float>source[i]
    return array
