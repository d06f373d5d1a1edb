"""Half types, float16 and bfloat16 ("brain"): stored as such, computed in float32, rounded once."""
cimport numpy as cnp
from libc.string cimport strstr

cdef enum Kind:
    NO_FLOAT = 0
    SINGLE = 1
    DOUBLE = 2
    FLOAT16 = 3
    BFLOAT16 = 4

cdef enum:
    NPY_HALF = 23
    FIRST_USER_TYPE = 256


cdef inline Kind kind_of(object array) noexcept:
    """Of the elements of an ndarray; NO_FLOAT of all that kernels do not take."""
    cdef int number = cnp.PyArray_TYPE(array)
    if number == cnp.NPY_FLOAT32:
        return SINGLE
    if number == cnp.NPY_FLOAT64:
        return DOUBLE
    if number == NPY_HALF:
        return FLOAT16
    if (number >= FIRST_USER_TYPE and cnp.PyArray_ITEMSIZE(array) == 2
            and strstr((<cnp.ndarray>array).descr.typeobj.tp_name, b"bfloat16") != NULL):
        return BFLOAT16
    return NO_FLOAT
