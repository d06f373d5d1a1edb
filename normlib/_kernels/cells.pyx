"""The elementwise part of recurrent cells, forward and backward, over rows.

Arrays come in C-contiguous, of one dtype (float32 or float64), of matching shapes. As the loops
would run past the end of others, ``run`` looks at each array once before it starts, which costs
nothing beside a row.

Design
------
What happens to one row is in cell_rows.pxd. ``run`` loops over rows, told the width of each array
as a multiple of H; recurrent.pyx calls the same functions between products and normalizers.
"""
from cython.parallel cimport prange

from normlib._kernels.arrays cimport address, dim, is_plain, is_single
from normlib._kernels.cell_rows cimport (
    MAX_ARRAYS, RowFunction, gru_backward_row, gru_candidate_backward_row,
    gru_candidate_forward_row, gru_forward_row, gru_reset_backward_row, gru_reset_forward_row,
    load, lstm_gates_backward_row, lstm_gates_forward_row, lstm_output_backward_row,
    lstm_output_forward_row, relu_backward_row, relu_forward_row, store, tanh_backward_row,
    tanh_forward_row,
)
from normlib._kernels.vec cimport at, at_out, lanes, vadd_to, vf32, vf64, vget, vreal
from normlib._kernels.vmath cimport vexp, vsigmoid, vtanh

cimport numpy as cnp

import numpy as np

cnp.import_array()

cdef enum:
    STRIP = 64           # columns of a work item of add_column_sums


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


# ---- LSTM: gates i, f, g, o --------------------------------------------------------------------


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
