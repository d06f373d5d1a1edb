"""Arrays whose channels, the second axis, are in groups: (samples, groups, channels, inner)."""
cimport numpy as cnp

from normlib._kernels.arrays cimport dim, is_plain

cdef enum:
    SHORT_PLANE = 32     # shorter planes go element by element, with gain and bias repeated


cdef struct Layout:
    Py_ssize_t samples
    Py_ssize_t groups    # 0: none that is plain
    Py_ssize_t channels  # of a group
    Py_ssize_t inner


cdef inline Layout find_groups(object x, object groups, object channel_axis) noexcept:
    """How plain arguments see x; groups None for one a channel, which needs two values each."""
    cdef Layout layout = Layout(0, 0, 0, 1)
    cdef int n_axes = cnp.PyArray_NDIM(x)
    cdef Py_ssize_t channels, n_groups
    cdef int axis
    if n_axes < 2 or type(channel_axis) is not int or not (
            channel_axis == 1 or n_axes == 2 and channel_axis == -1):
        return layout
    channels = dim(x, 1)
    for axis in range(2, n_axes):
        layout.inner *= dim(x, axis)
    if groups is None:
        n_groups = channels if layout.inner > 1 else 0
    elif type(groups) is int and 0 < groups <= channels:
        n_groups = groups
    else:
        n_groups = 0
    if n_groups == 0 or channels % n_groups != 0:
        return layout
    layout.samples = dim(x, 0)
    layout.groups = n_groups
    layout.channels = channels // n_groups
    return layout


cdef inline bint is_short(const Layout *layout) noexcept nogil:
    """Whether its planes go element by element, which needs gain and bias repeated."""
    return 1 < layout.inner < SHORT_PLANE


cdef inline bint is_group_statistic(object array, const Layout *layout) noexcept:
    """A plain (samples, groups) of doubles."""
    return (is_plain(array) and cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT64
            and cnp.PyArray_NDIM(array) == 2 and dim(array, 0) == layout.samples
            and dim(array, 1) == layout.groups)
