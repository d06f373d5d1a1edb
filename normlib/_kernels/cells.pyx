"""The elementwise part of recurrent cells, forward and backward, over rows.

Arrays come in C-contiguous, of one dtype (float32 or float64), of matching shapes. As the loops
would run past the end of others, ``run`` looks at each array once before it starts, which costs
nothing beside a row.

Design
------
Everything that a cell does to one row is one C function, ``(arrays, size)``: where each of its
arrays has that row, and H. It states at its head which array is which. So a loop over rows needs a
pointer to the function and a table of arrays, whatever the cell. ``run`` is such a loop, told the
width of each array as a multiple of H; one that is fused with products and normalizers can call
the same functions.

Each element depends on its own column alone, so an output may be the same array as an input where
a function says so.
"""
from cython.parallel cimport prange

from normlib._kernels.arrays cimport address, dim, is_plain, is_single
from normlib._kernels.vec cimport (
    at, at_out, lanes, vadd_to, vf32, vf64, vfma, vget, vload_first, vreal, vselect_lt, vset,
    vstore_first,
)
from normlib._kernels.vmath cimport vexp, vsigmoid, vtanh

cimport numpy as cnp

import numpy as np

cnp.import_array()

cdef enum:
    MAX_ARRAYS = 9
    STRIP = 64           # columns of a work item of add_column_sums

ctypedef void (*RowFunction)(void **arrays, Py_ssize_t size) noexcept nogil


cdef struct Table:
    int n_arrays
    void *data[MAX_ARRAYS]
    Py_ssize_t row_bytes[MAX_ARRAYS]     # 0 for an array that all rows share


cdef inline void run_row(RowFunction function, const Table *table, Py_ssize_t row,
                         Py_ssize_t size) noexcept nogil:
    cdef void *arrays[MAX_ARRAYS]
    cdef int k
    for k in range(table.n_arrays):
        arrays[k] = <char *>table.data[k] + row * table.row_bytes[k]
    function(arrays, size)


cdef void check(array, like, Py_ssize_t n_rows, Py_ssize_t width) except *:
    """Refuse what is neither (n_rows, width) nor, shared by all rows, (width,), of like's dtype."""
    if (
        is_plain(array)
        and cnp.PyArray_TYPE(array) == cnp.PyArray_TYPE(like)
        and (
            (cnp.PyArray_NDIM(array) == 2 and dim(array, 0) == n_rows and dim(array, 1) == width)
            or (cnp.PyArray_NDIM(array) == 1 and dim(array, 0) == width)
        )
    ):
        return
    raise ValueError(
        f"a kernel needs a C-contiguous array of shape {(n_rows, width)} or {(width,)} and dtype "
        f"{like.dtype}; got shape {np.shape(array)}, dtype {getattr(array, 'dtype', None)}"
    )


cdef run(RowFunction single, RowFunction double, tuple arrays, tuple widths, like, int n_threads):
    """Run a row function over arrays (N, width H) or, shared by all rows, (width H,).

    like is one of them, (N, H).
    """
    if not is_plain(like) or cnp.PyArray_NDIM(like) != 2:
        raise ValueError(f"a kernel needs C-contiguous arrays of rows; got shape {np.shape(like)}")
    cdef Table table
    cdef RowFunction function = single if is_single(like) else double
    cdef Py_ssize_t n_rows = dim(like, 0)
    cdef Py_ssize_t size = dim(like, 1)
    cdef Py_ssize_t row
    cdef int k
    table.n_arrays = len(arrays)
    for k in range(table.n_arrays):
        array = arrays[k]
        check(array, like, n_rows, <Py_ssize_t>widths[k] * size)
        table.data[k] = address(array)
        table.row_bytes[k] = cnp.PyArray_STRIDE(array, 0) if cnp.PyArray_NDIM(array) == 2 else 0
    with nogil:
        if n_threads == 1:
            for row in range(n_rows):
                run_row(function, &table, row, size)
        else:
            for row in prange(n_rows, schedule="static", num_threads=n_threads):
                run_row(function, &table, row, size)


cdef inline vreal load(const vreal *row, Py_ssize_t n) noexcept nogil:
    """A whole vector where there is one: parts of one are slow to store on some CPUs."""
    return row[0] if n >= lanes(row) else vload_first(row, n)


cdef inline void store(vreal *row, vreal v, Py_ssize_t n) noexcept nogil:
    if n >= lanes(row):
        row[0] = v
    else:
        vstore_first(row, v, n)


cdef inline vreal sigmoid_slope(vreal s) noexcept nogil:
    """Derivative of the sigmoid, from its value."""
    return vfma(-s, s, s)


cdef inline vreal tanh_slope(vreal t) noexcept nogil:
    """Derivative of tanh, from its value."""
    return vfma(-t, t, vset(1, &t))


# ---- LSTM: gates i, f, g, o --------------------------------------------------------------------


cdef void lstm_gates_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    """The four gates after their nonlinearities, and c' = f c + i g. c' may be c."""
    cdef const vreal *a_ih = arrays[0]       # IN  (4H,)
    cdef const vreal *a_hh = arrays[1]       # IN  (4H,)
    cdef const vreal *bias = arrays[2]       # IN  (4H,)
    cdef const vreal *c = arrays[3]          # IN  (H,)
    cdef vreal *gates = arrays[4]            # OUT (4H,)
    cdef vreal *c_out = arrays[5]            # OUT (H,)
    cdef vreal a[4]
    cdef vreal i, f, g, o
    cdef Py_ssize_t j, k, n
    j = 0
    while j < size:
        n = size - j
        for k in range(4):
            a[k] = load(at(a_ih, k * size + j), n) + load(at(a_hh, k * size + j), n)
            a[k] = a[k] + load(at(bias, k * size + j), n)
        i = vsigmoid(a[0])
        f = vsigmoid(a[1])
        g = vtanh(a[2])
        o = vsigmoid(a[3])
        store(at_out(c_out, j), vfma(f, load(at(c, j), n), i * g), n)
        store(at_out(gates, j), i, n)
        store(at_out(gates, size + j), f, n)
        store(at_out(gates, 2 * size + j), g, n)
        store(at_out(gates, 3 * size + j), o, n)
        j += lanes(c)


cdef void lstm_output_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    """h = o tanh(normalized c)."""
    cdef const vreal *gates = arrays[0]      # IN  (4H,)
    cdef const vreal *normed_c = arrays[1]   # IN  (H,)
    cdef vreal *tanh_c = arrays[2]           # OUT (H,)
    cdef vreal *h = arrays[3]                # OUT (H,)
    cdef vreal t
    cdef Py_ssize_t j, n
    j = 0
    while j < size:
        n = size - j
        t = vtanh(load(at(normed_c, j), n))
        store(at_out(tanh_c, j), t, n)
        store(at_out(h, j), load(at(gates, 3 * size + j), n) * t, n)
        j += lanes(gates)


cdef void lstm_output_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    cdef const vreal *dh = arrays[0]         # IN  (H,)
    cdef const vreal *gates = arrays[1]      # IN  (4H,)
    cdef const vreal *tanh_c = arrays[2]     # IN  (H,)
    cdef vreal *d_normed_c = arrays[3]       # OUT (H,)
    cdef vreal *da = arrays[4]               # OUT (4H,), that of o alone
    cdef vreal d, t, o
    cdef Py_ssize_t j, n
    j = 0
    while j < size:
        n = size - j
        d = load(at(dh, j), n)
        t = load(at(tanh_c, j), n)
        o = load(at(gates, 3 * size + j), n)
        store(at_out(d_normed_c, j), d * o * tanh_slope(t), n)
        store(at_out(da, 3 * size + j), d * t * sigmoid_slope(o), n)
        j += lanes(dh)


cdef void lstm_gates_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    """dc' may be dc."""
    cdef const vreal *dc = arrays[0]         # IN  (H,) by way of the next step
    cdef const vreal *dc_output = arrays[1]  # IN  (H,) by way of this step's h
    cdef const vreal *gates = arrays[2]      # IN  (4H,)
    cdef const vreal *c = arrays[3]          # IN  (H,) before the step
    cdef vreal *da = arrays[4]               # OUT (4H,), those of i, f, g
    cdef vreal *dc_before = arrays[5]        # OUT (H,)
    cdef vreal d, i, f, g
    cdef Py_ssize_t j, n
    j = 0
    while j < size:
        n = size - j
        d = load(at(dc, j), n) + load(at(dc_output, j), n)
        i = load(at(gates, j), n)
        f = load(at(gates, size + j), n)
        g = load(at(gates, 2 * size + j), n)
        store(at_out(da, j), d * g * sigmoid_slope(i), n)
        store(at_out(da, size + j), d * load(at(c, j), n) * sigmoid_slope(f), n)
        store(at_out(da, 2 * size + j), d * i * tanh_slope(g), n)
        store(at_out(dc_before, j), d * f, n)
        j += lanes(dc)


def lstm_gates_forward(a_ih, a_hh, bias, c, gates, c_out, int n_threads):
    """gates = sigmoid, tanh of a_ih + a_hh + bias; c_out = f c + i g. c_out may be c."""
    run(<RowFunction>lstm_gates_forward_row[vf32], <RowFunction>lstm_gates_forward_row[vf64],
        (a_ih, a_hh, bias, c, gates, c_out), (4, 4, 4, 1, 4, 1), c, n_threads)


def lstm_output_forward(gates, normed_c, tanh_c, h, int n_threads):
    """h = o tanh(normed_c)."""
    run(<RowFunction>lstm_output_forward_row[vf32], <RowFunction>lstm_output_forward_row[vf64],
        (gates, normed_c, tanh_c, h), (4, 1, 1, 1), h, n_threads)


def lstm_output_backward(dh, gates, tanh_c, d_normed_c, da, int n_threads):
    """Gradient of lstm_output_forward; of da it writes the part of o."""
    run(<RowFunction>lstm_output_backward_row[vf32], <RowFunction>lstm_output_backward_row[vf64],
        (dh, gates, tanh_c, d_normed_c, da), (1, 4, 1, 1, 4), dh, n_threads)


def lstm_gates_backward(dc, dc_output, gates, c, da, dc_before, int n_threads):
    """Gradient of lstm_gates_forward; of da it writes i, f, g. dc_before may be dc."""
    run(<RowFunction>lstm_gates_backward_row[vf32], <RowFunction>lstm_gates_backward_row[vf64],
        (dc, dc_output, gates, c, da, dc_before), (1, 1, 4, 1, 4, 1), dc, n_threads)


# ---- GRU: gates r, z, n ------------------------------------------------------------------------


cdef inline vreal mix(vreal z, vreal n, vreal h) noexcept nogil:
    """(1 - z) n + z h: exactly h where z is 1, and n where it is 0."""
    return vfma(z, h, (vset(1, &z) - z) * n)


cdef void gru_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    """Reset after the product."""
    cdef const vreal *a_ih = arrays[0]       # IN  (2H,)
    cdef const vreal *a_hh = arrays[1]       # IN  (2H,)
    cdef const vreal *a_in = arrays[2]       # IN  (H,)
    cdef const vreal *a_hn = arrays[3]       # IN  (H,)
    cdef const vreal *bias = arrays[4]       # IN  (4H,) of r, z, in, hn
    cdef const vreal *h = arrays[5]          # IN  (H,)
    cdef vreal *gates = arrays[6]            # OUT (3H,)
    cdef vreal *hidden_n = arrays[7]         # OUT (H,)
    cdef vreal *h_out = arrays[8]            # OUT (H,)
    cdef vreal a_r, a_z, r, z, n, q
    cdef Py_ssize_t j, left
    j = 0
    while j < size:
        left = size - j
        a_r = load(at(a_ih, j), left) + load(at(a_hh, j), left)
        a_z = load(at(a_ih, size + j), left) + load(at(a_hh, size + j), left)
        r = vsigmoid(a_r + load(at(bias, j), left))
        z = vsigmoid(a_z + load(at(bias, size + j), left))
        q = load(at(a_hn, j), left) + load(at(bias, 3 * size + j), left)
        n = load(at(a_in, j), left) + load(at(bias, 2 * size + j), left)
        n = vtanh(vfma(r, q, n))
        store(at_out(h_out, j), mix(z, n, load(at(h, j), left)), left)
        store(at_out(gates, j), r, left)
        store(at_out(gates, size + j), z, left)
        store(at_out(gates, 2 * size + j), n, left)
        store(at_out(hidden_n, j), q, left)
        j += lanes(h)


cdef void gru_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    """dh_before may be dh."""
    cdef const vreal *dh = arrays[0]         # IN  (H,)
    cdef const vreal *gates = arrays[1]      # IN  (3H,)
    cdef const vreal *hidden_n = arrays[2]   # IN  (H,)
    cdef const vreal *h = arrays[3]          # IN  (H,) before the step
    cdef vreal *da_rz = arrays[4]            # OUT (2H,)
    cdef vreal *da_n = arrays[5]             # OUT (H,)
    cdef vreal *d_hidden_n = arrays[6]       # OUT (H,)
    cdef vreal *dh_before = arrays[7]        # OUT (H,) not by way of the products
    cdef vreal d, dn, r, z, n
    cdef Py_ssize_t j, left
    j = 0
    while j < size:
        left = size - j
        d = load(at(dh, j), left)
        r = load(at(gates, j), left)
        z = load(at(gates, size + j), left)
        n = load(at(gates, 2 * size + j), left)
        dn = d * (vset(1, dh) - z) * tanh_slope(n)
        store(at_out(da_rz, j), dn * load(at(hidden_n, j), left) * sigmoid_slope(r), left)
        store(at_out(da_rz, size + j), d * (load(at(h, j), left) - n) * sigmoid_slope(z), left)
        store(at_out(da_n, j), dn, left)
        store(at_out(d_hidden_n, j), dn * r, left)
        store(at_out(dh_before, j), d * z, left)
        j += lanes(dh)


cdef void gru_reset_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    """Reset before the product: r, z and r h."""
    cdef const vreal *a_ih = arrays[0]       # IN  (2H,)
    cdef const vreal *a_hh = arrays[1]       # IN  (2H,)
    cdef const vreal *bias = arrays[2]       # IN  (3H,)
    cdef const vreal *h = arrays[3]          # IN  (H,)
    cdef vreal *gates = arrays[4]            # OUT (3H,), r and z
    cdef vreal *reset_h = arrays[5]          # OUT (H,)
    cdef vreal a_r, a_z, r
    cdef Py_ssize_t j, left
    j = 0
    while j < size:
        left = size - j
        a_r = load(at(a_ih, j), left) + load(at(a_hh, j), left)
        a_z = load(at(a_ih, size + j), left) + load(at(a_hh, size + j), left)
        r = vsigmoid(a_r + load(at(bias, j), left))
        store(at_out(gates, j), r, left)
        store(at_out(gates, size + j), vsigmoid(a_z + load(at(bias, size + j), left)), left)
        store(at_out(reset_h, j), r * load(at(h, j), left), left)
        j += lanes(h)


cdef void gru_candidate_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    """Reset before the product: n and the new h."""
    cdef const vreal *a_in = arrays[0]       # IN  (H,)
    cdef const vreal *a_hn = arrays[1]       # IN  (H,)
    cdef const vreal *bias = arrays[2]       # IN  (3H,)
    cdef const vreal *h = arrays[3]          # IN  (H,)
    cdef vreal *gates = arrays[4]            # IN  z, OUT n  (3H,)
    cdef vreal *h_out = arrays[5]            # OUT (H,)
    cdef vreal n
    cdef Py_ssize_t j, left
    j = 0
    while j < size:
        left = size - j
        n = load(at(a_in, j), left) + load(at(a_hn, j), left)
        n = vtanh(n + load(at(bias, 2 * size + j), left))
        store(at_out(gates, 2 * size + j), n, left)
        store(at_out(h_out, j),
              mix(load(at(gates, size + j), left), n, load(at(h, j), left)), left)
        j += lanes(h)


cdef void gru_candidate_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    """dh_before may be dh."""
    cdef const vreal *dh = arrays[0]         # IN  (H,)
    cdef const vreal *gates = arrays[1]      # IN  (3H,)
    cdef const vreal *h = arrays[2]          # IN  (H,) before the step
    cdef vreal *da_rz = arrays[3]            # OUT (2H,), that of z alone
    cdef vreal *da_n = arrays[4]             # OUT (H,)
    cdef vreal *dh_before = arrays[5]        # OUT (H,) by way of z alone
    cdef vreal d, z, n
    cdef Py_ssize_t j, left
    j = 0
    while j < size:
        left = size - j
        d = load(at(dh, j), left)
        z = load(at(gates, size + j), left)
        n = load(at(gates, 2 * size + j), left)
        store(at_out(da_n, j), d * (vset(1, dh) - z) * tanh_slope(n), left)
        store(at_out(da_rz, size + j), d * (load(at(h, j), left) - n) * sigmoid_slope(z), left)
        store(at_out(dh_before, j), d * z, left)
        j += lanes(dh)


cdef void gru_reset_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    cdef const vreal *d_reset_h = arrays[0]  # IN  (H,)
    cdef const vreal *gates = arrays[1]      # IN  (3H,)
    cdef const vreal *h = arrays[2]          # IN  (H,) before the step
    cdef vreal *da_rz = arrays[3]            # OUT (2H,), that of r alone
    cdef vreal *dh = arrays[4]               # IN/OUT (H,), the gradient by way of r h added
    cdef vreal d, r
    cdef Py_ssize_t j, left
    j = 0
    while j < size:
        left = size - j
        d = load(at(d_reset_h, j), left)
        r = load(at(gates, j), left)
        store(at_out(da_rz, j), d * load(at(h, j), left) * sigmoid_slope(r), left)
        store(at_out(dh, j), vfma(d, r, load(at(dh, j), left)), left)
        j += lanes(h)


def gru_forward(a_ih, a_hh, a_in, a_hn, bias, h, gates, hidden_n, h_out, int n_threads):
    """Reset after the product; bias (4H,) is of r, z, in, hn."""
    run(<RowFunction>gru_forward_row[vf32], <RowFunction>gru_forward_row[vf64],
        (a_ih, a_hh, a_in, a_hn, bias, h, gates, hidden_n, h_out),
        (2, 2, 1, 1, 4, 1, 3, 1, 1), h, n_threads)


def gru_backward(dh, gates, hidden_n, h, da_rz, da_n, d_hidden_n, dh_before, int n_threads):
    """Gradient of gru_forward. dh_before lacks what comes by the products, and may be dh."""
    run(<RowFunction>gru_backward_row[vf32], <RowFunction>gru_backward_row[vf64],
        (dh, gates, hidden_n, h, da_rz, da_n, d_hidden_n, dh_before),
        (1, 3, 1, 1, 2, 1, 1, 1), dh, n_threads)


def gru_reset_forward(a_ih, a_hh, bias, h, gates, reset_h, int n_threads):
    """Reset before the product, first half: r, z of gates, and reset_h = r h."""
    run(<RowFunction>gru_reset_forward_row[vf32], <RowFunction>gru_reset_forward_row[vf64],
        (a_ih, a_hh, bias, h, gates, reset_h), (2, 2, 3, 1, 3, 1), h, n_threads)


def gru_candidate_forward(a_in, a_hn, bias, h, gates, h_out, int n_threads):
    """Reset before the product, second half: n of gates, and h_out."""
    run(<RowFunction>gru_candidate_forward_row[vf32], <RowFunction>gru_candidate_forward_row[vf64],
        (a_in, a_hn, bias, h, gates, h_out), (1, 1, 3, 1, 3, 1), h, n_threads)


def gru_candidate_backward(dh, gates, h, da_rz, da_n, dh_before, int n_threads):
    """Gradient of gru_candidate_forward; of da_rz it writes the part of z. dh_before may be dh."""
    run(<RowFunction>gru_candidate_backward_row[vf32],
        <RowFunction>gru_candidate_backward_row[vf64],
        (dh, gates, h, da_rz, da_n, dh_before), (1, 3, 1, 2, 1, 1), dh, n_threads)


def gru_reset_backward(d_reset_h, gates, h, da_rz, dh, int n_threads):
    """Gradient of gru_reset_forward; of da_rz it writes the part of r, to dh it adds."""
    run(<RowFunction>gru_reset_backward_row[vf32], <RowFunction>gru_reset_backward_row[vf64],
        (d_reset_h, gates, h, da_rz, dh), (1, 3, 1, 2, 1), h, n_threads)


# ---- vanilla -----------------------------------------------------------------------------------


cdef void tanh_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    cdef const vreal *a = arrays[0]          # IN  (H,)
    cdef const vreal *bias = arrays[1]       # IN  (H,)
    cdef vreal *h = arrays[2]                # OUT (H,)
    cdef Py_ssize_t j
    j = 0
    while j < size:
        store(at_out(h, j), vtanh(load(at(a, j), size - j) + load(at(bias, j), size - j)), size - j)
        j += lanes(a)


cdef void relu_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    cdef const vreal *a = arrays[0]          # IN  (H,)
    cdef const vreal *bias = arrays[1]       # IN  (H,)
    cdef vreal *h = arrays[2]                # OUT (H,)
    cdef vreal v
    cdef vreal zero = vset(0, a)
    cdef Py_ssize_t j
    j = 0
    while j < size:
        v = load(at(a, j), size - j) + load(at(bias, j), size - j)
        store(at_out(h, j), vselect_lt(v, zero, zero, v), size - j)
        j += lanes(a)


cdef void tanh_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    cdef const vreal *dh = arrays[0]         # IN  (H,)
    cdef const vreal *h = arrays[1]          # IN  (H,)
    cdef vreal *da = arrays[2]               # OUT (H,)
    cdef Py_ssize_t j, n
    j = 0
    while j < size:
        n = size - j
        store(at_out(da, j), load(at(dh, j), n) * tanh_slope(load(at(h, j), n)), n)
        j += lanes(h)


cdef void relu_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    cdef const vreal *dh = arrays[0]         # IN  (H,)
    cdef const vreal *h = arrays[1]          # IN  (H,)
    cdef vreal *da = arrays[2]               # OUT (H,)
    cdef vreal v
    cdef Py_ssize_t j, n
    j = 0
    while j < size:
        n = size - j
        v = load(at(h, j), n)
        # h is never negative; where it is not positive it is the 0, or the NaN, of the result.
        store(at_out(da, j), vselect_lt(vset(0, h), v, load(at(dh, j), n), v), n)
        j += lanes(h)


def vanilla_forward(a, bias, h, bint relu, int n_threads):
    """h = relu or tanh of a + bias."""
    if relu:
        run(<RowFunction>relu_forward_row[vf32], <RowFunction>relu_forward_row[vf64],
            (a, bias, h), (1, 1, 1), a, n_threads)
    else:
        run(<RowFunction>tanh_forward_row[vf32], <RowFunction>tanh_forward_row[vf64],
            (a, bias, h), (1, 1, 1), a, n_threads)


def vanilla_backward(dh, h, da, bint relu, int n_threads):
    """Gradient of vanilla_forward, from its h."""
    if relu:
        run(<RowFunction>relu_backward_row[vf32], <RowFunction>relu_backward_row[vf64],
            (dh, h, da), (1, 1, 1), h, n_threads)
    else:
        run(<RowFunction>tanh_backward_row[vf32], <RowFunction>tanh_backward_row[vf64],
            (dh, h, da), (1, 1, 1), h, n_threads)


# ---- sums over rows ----------------------------------------------------------------------------


cdef void add_strip(const vreal *a, double *sums, Py_ssize_t n_rows, Py_ssize_t n,
                    Py_ssize_t first) noexcept nogil:
    cdef Py_ssize_t stop = min(first + STRIP, n)
    cdef Py_ssize_t row, j
    for row in range(n_rows):
        j = first
        while j + lanes(a) <= stop:
            vadd_to(sums + j, at(a, row * n + j)[0])
            j += lanes(a)
        while j < stop:
            sums[j] += vget(a, row * n + j)
            j += 1


cdef void add_strips(const vreal *a, double *sums, Py_ssize_t n_rows, Py_ssize_t n,
                     int n_threads) noexcept nogil:
    cdef Py_ssize_t strip
    if n_threads == 1:
        for strip in range((n + STRIP - 1) // STRIP):
            add_strip(a, sums, n_rows, n, strip * STRIP)
    else:
        for strip in prange((n + STRIP - 1) // STRIP, schedule="static", num_threads=n_threads):
            add_strip(a, sums, n_rows, n, strip * STRIP)


def add_column_sums(a, sums, int n_threads):
    """sums (F,), float64, += the sums of the columns of a (N, F), row after row."""
    if (
        not is_plain(a) or cnp.PyArray_NDIM(a) != 2
        or not is_plain(sums) or is_single(sums) or cnp.PyArray_NDIM(sums) != 1
        or dim(sums, 0) != dim(a, 1)
    ):
        raise ValueError(
            "a kernel needs C-contiguous rows (N, F) and float64 sums (F,); got shapes "
            f"{np.shape(a)} and {np.shape(sums)}"
        )
    cdef Py_ssize_t n_rows = dim(a, 0)
    cdef Py_ssize_t n = dim(a, 1)
    cdef void *a_data = address(a)
    cdef double *sums_data = <double *>address(sums)
    cdef bint single = is_single(a)
    with nogil:
        if single:
            add_strips[vf32](<vf32 *>a_data, sums_data, n_rows, n, n_threads)
        else:
            add_strips[vf64](<vf64 *>a_data, sums_data, n_rows, n, n_threads)


# ---- the functions themselves ------------------------------------------------------------------


cdef void exp_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    cdef const vreal *x = arrays[0]          # IN  (H,)
    cdef vreal *out = arrays[1]              # OUT (H,)
    cdef Py_ssize_t j
    j = 0
    while j < size:
        store(at_out(out, j), vexp(load(at(x, j), size - j)), size - j)
        j += lanes(x)


cdef void sigmoid_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    cdef const vreal *x = arrays[0]          # IN  (H,)
    cdef vreal *out = arrays[1]              # OUT (H,)
    cdef Py_ssize_t j
    j = 0
    while j < size:
        store(at_out(out, j), vsigmoid(load(at(x, j), size - j)), size - j)
        j += lanes(x)


cdef void tanh_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    cdef const vreal *x = arrays[0]          # IN  (H,)
    cdef vreal *out = arrays[1]              # OUT (H,)
    cdef Py_ssize_t j
    j = 0
    while j < size:
        store(at_out(out, j), vtanh(load(at(x, j), size - j)), size - j)
        j += lanes(x)


def exp(x, out, int n_threads):
    """out = exp(x), both (N, H)."""
    run(<RowFunction>exp_row[vf32], <RowFunction>exp_row[vf64], (x, out), (1, 1), x, n_threads)


def sigmoid(x, out, int n_threads):
    """out = 1 / (1 + exp(-x)), both (N, H)."""
    run(<RowFunction>sigmoid_row[vf32], <RowFunction>sigmoid_row[vf64],
        (x, out), (1, 1), x, n_threads)


def tanh(x, out, int n_threads):
    """out = tanh(x), both (N, H)."""
    run(<RowFunction>tanh_row[vf32], <RowFunction>tanh_row[vf64], (x, out), (1, 1), x, n_threads)
