"""What kernels need of NumPy arrays that Python code has already checked."""
cimport numpy as cnp


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
