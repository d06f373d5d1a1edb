"""Whether something is as it was, so that what was made of it still holds."""
cimport numpy as cnp
from libc.string cimport memcmp

from normlib._kernels.arrays cimport is_plain

cnp.import_array()


def same_bits(tuple ones, tuple others):
    """Whether each array has the type, shape and bits of its other; all are None or plain."""
    cdef Py_ssize_t i
    for i in range(len(ones)):
        a = ones[i]
        b = others[i]
        if a is None or b is None:
            if a is not b:
                return False
        elif not (is_plain(a) and cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(b)
                  and cnp.PyArray_NDIM(a) == cnp.PyArray_NDIM(b)
                  and cnp.PyArray_CompareLists(cnp.PyArray_DIMS(a), cnp.PyArray_DIMS(b),
                                               cnp.PyArray_NDIM(a))
                  and memcmp(cnp.PyArray_DATA(a), cnp.PyArray_DATA(b),
                             cnp.PyArray_NBYTES(a)) == 0):
            return False
    return True


cdef bint same_values(object mapping, tuple values) except -1:
    """Whether the values of a dict are these very objects, in this order."""
    cdef Py_ssize_t i = 0
    if type(mapping) is not dict or len(<dict>mapping) != len(values):
        return False
    for value in (<dict>mapping).values():
        if value is not values[i]:
            return False
        i += 1
    return True


def same_normalizers(tuple owners):
    """Whether normalizers have the same attributes and parameters.

    An owner is (normalizer, the values of its attributes, those of its parameters): each must be
    the very object, whatever became of its contents.
    """
    for normalizer, attributes, parameters in owners:
        if not (same_values(normalizer.__dict__, attributes)
                and same_values(normalizer.parameters, parameters)):
            return False
    return True
