"""What kernels need of NumPy arrays."""
cimport numpy as cnp
from libc.stdint cimport uintptr_t


cdef inline void *address(object array) noexcept:
    """Where the array's elements are; NULL for None."""
    if array is None:
        return NULL
    return cnp.PyArray_DATA(array)


cdef inline Py_ssize_t dim(object array, int axis) noexcept:
    return cnp.PyArray_DIM(array, axis)


cdef inline bint is_single(object array) noexcept:
    """float32, where the only other type is float64."""
    return cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT32


cdef inline bint is_aligned(object array) noexcept:
    """An ndarray in native byte order, C-contiguous and aligned."""
    return (
        cnp.PyArray_CheckExact(array)
        and cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED)
        and cnp.PyArray_ISNOTSWAPPED(array)
    )


cdef inline bint is_plain(object array) noexcept:
    """The same of float32 or float64: as kernels take it."""
    cdef int number
    if not is_aligned(array):
        return False
    number = cnp.PyArray_TYPE(array)
    return number == cnp.NPY_FLOAT32 or number == cnp.NPY_FLOAT64


cdef inline bint overlap(object a, object b) noexcept:
    """Whether two C-contiguous arrays share memory; b may be None."""
    if b is None:
        return False
    cdef uintptr_t first_a = <uintptr_t>cnp.PyArray_DATA(a)
    cdef uintptr_t first_b = <uintptr_t>cnp.PyArray_DATA(b)
    return (first_a < first_b + <uintptr_t>cnp.PyArray_NBYTES(b)
            and first_b < first_a + <uintptr_t>cnp.PyArray_NBYTES(a))
