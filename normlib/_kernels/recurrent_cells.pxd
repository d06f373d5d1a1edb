"""The rows of one step of a recurrent layer, between its products with the state.

Each function takes the rows first to stop of step t: it normalizes their products, or the gradients
of these, and calls what the cell does to a row (cell_rows.pxd).

Scratch, in multiples of H elements: 0 to 4 gates, 4 to 8 and 8 to 12 normalized products (or their
gradients; or 4 to 8 the normalized c of a few rows), 12 and 13 one H each, where the Slabs' rows
are none of these.

With normalizers, training keeps the products, and not the gates: backward makes these again, by the
same functions, in the scratch from 4 on, while the products that it reads anyway are in the cache.
"""
from libc.string cimport memcpy

from normlib._kernels.cell_rows cimport (
    MAX_ARRAYS, gru_backward_row, gru_candidate_backward_row, gru_candidate_forward_row,
    gru_forward_row, gru_reset_backward_row, gru_reset_forward_row, lstm_gates_backward_row,
    lstm_gates_forward_row, lstm_output_backward_row, lstm_output_forward_row, relu_backward_row,
    relu_forward_row, tanh_backward_row, tanh_forward_row,
)
from normlib._kernels.recurrent_run cimport (
    RELU, Norm, Run, denormalize, normalize, normalize_again, normalize_rows, row_before, row_of,
    scratch_of,
)
from normlib._kernels.vec cimport at, at_out, lanes, vadd_to, vget, vput, vreal

cdef enum:
    FEW = 4              # rows whose normalizers run together: 4 H of scratch hold their c


cdef inline void add_row(const vreal *row, double *sums, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t j = 0
    while j + lanes(row) <= n:
        vadd_to(sums + j, at(row, j)[0])
        j += lanes(row)
    while j < n:
        sums[j] += vget(row, j)
        j += 1


cdef inline void add_to_bias(const vreal *row, const Run *run, Py_ssize_t r, Py_ssize_t first,
                             Py_ssize_t gates) noexcept nogil:
    """Add some gates of a row to the gradient of the bias, from gate ``first`` on."""
    add_row(row, run.d_bias + r // run.block * run.block_gradients + first * run.size,
            gates * run.size)


cdef inline void start_dh(const vreal *tag, const Run *run, Py_ssize_t t, Py_ssize_t r,
                          vreal *dh) noexcept nogil:
    """The gradient of the state after step t: by way of later steps, and of the output."""
    cdef const vreal *later = <const vreal *>row_of(&run.dh, run, t, r)
    cdef const vreal *output = <const vreal *>row_of(&run.d_output, run, t, r)
    cdef const vreal *rest = <const vreal *>row_of(&run.d_state, run, t, r)
    cdef bint has_rest = run.d_state.data != NULL
    cdef Py_ssize_t j = 0
    while j + lanes(tag) <= run.size:
        at_out(dh, j)[0] = at(later, j)[0] + at(output, j)[0]
        if has_rest:
            at_out(dh, j)[0] = at_out(dh, j)[0] + at(rest, j)[0]
        j += lanes(tag)
    while j < run.size:
        vput(dh, j, vget(later, j) + vget(output, j))
        if has_rest:
            vput(dh, j, vget(dh, j) + vget(rest, j))
        j += 1


cdef inline void lstm_forward(const vreal *tag, const Run *run, Py_ssize_t t, Py_ssize_t first,
                              Py_ssize_t stop) noexcept nogil:
    """A few rows at a time, where their normalizers can take so many: in place, but for c."""
    cdef inline void *arrays[MAX_ARRAYS]
    cdef bint done[3]
    cdef Py_ssize_t r, n
    # Gates in scratch are of one row.
    cdef Py_ssize_t most = FEW if run.gates.row_bytes > 0 else 1
    cdef Py_ssize_t start = first
    cdef char *a_ih
    cdef char *a_hh
    cdef char *c
    cdef char *normed_c
    while start < stop:
        n = min(most, stop - start)
        a_ih = row_of(&run.inputs, run, t, start)
        a_hh = row_of(&run.products, run, t, start)
        done[0] = normalize_rows(&run.norms[0], run, t, n, a_ih, a_ih)
        done[1] = normalize_rows(&run.norms[1], run, t, n, a_hh, a_hh)
        for r in range(start, start + n):
            a_ih = row_of(&run.inputs, run, t, r)
            a_hh = row_of(&run.products, run, t, r)
            arrays[0] = a_ih if done[0] else normalize(&run.norms[0], run, t, r, a_ih,
                                                       scratch_of(run, 4))
            arrays[1] = a_hh if done[1] else normalize(&run.norms[1], run, t, r, a_hh,
                                                       scratch_of(run, 8))
            arrays[2] = <void *>run.bias
            arrays[3] = row_before(&run.c, run.initial_c, run, t, r)
            arrays[4] = row_of(&run.gates, run, t, r)
            arrays[5] = row_of(&run.c, run, t, r)
            lstm_gates_forward_row(<vreal **>arrays, run.size)
        normed_c = scratch_of(run, 4)
        done[2] = normalize_rows(&run.norms[2], run, t, n, row_of(&run.c, run, t, start), normed_c)
        for r in range(start, start + n):
            c = row_of(&run.c, run, t, r)
            arrays[0] = row_of(&run.gates, run, t, r)
            if done[2]:
                arrays[1] = normed_c + (r - start) * run.size * run.item
            else:
                arrays[1] = normalize(&run.norms[2], run, t, r, c, scratch_of(run, 12))
            arrays[2] = row_of(&run.extra, run, t, r)
            arrays[3] = row_of(&run.h, run, t, r)
            lstm_output_forward_row(<vreal **>arrays, run.size)
        start += n


cdef inline void lstm_gates_again(const vreal *tag, const Run *run, Py_ssize_t t, Py_ssize_t r,
                                  void **gates, void **tanh_c) noexcept nogil:
    """The gates, and tanh of the normalized c, as forward had them."""
    cdef inline void *arrays[MAX_ARRAYS]
    gates[0] = scratch_of(run, 4)
    tanh_c[0] = scratch_of(run, 9)
    arrays[0] = normalize_again(&run.norms[0], run, t, row_of(&run.inputs, run, t, r), gates[0])
    arrays[1] = normalize_again(&run.norms[1], run, t, row_of(&run.products, run, t, r),
                                scratch_of(run, 8))
    arrays[2] = <void *>run.bias
    arrays[3] = row_before(&run.c, run.initial_c, run, t, r)
    arrays[4] = gates[0]
    arrays[5] = scratch_of(run, 12)
    lstm_gates_forward_row(<vreal **>arrays, run.size)
    arrays[0] = gates[0]
    arrays[1] = normalize_again(&run.norms[2], run, t, row_of(&run.c, run, t, r),
                                scratch_of(run, 8))
    arrays[2] = tanh_c[0]
    arrays[3] = scratch_of(run, 10)
    lstm_output_forward_row(<vreal **>arrays, run.size)


cdef inline void lstm_backward(const vreal *tag, const Run *run, Py_ssize_t t, Py_ssize_t first,
                               Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef Py_ssize_t r
    cdef char *da
    cdef char *dc
    cdef char *dc_output
    cdef void *gates
    cdef void *tanh_c
    cdef char *d_inputs
    cdef char *d_normed_c = scratch_of(run, 12)
    cdef char *dh = scratch_of(run, 13)
    for r in range(first, stop):
        d_inputs = row_of(&run.d_inputs, run, t, r)
        dc = row_of(&run.dc, run, t, r)
        da = d_inputs if run.norms[0].backward == NULL else scratch_of(run, 0)
        gates = row_of(&run.gates, run, t, r)
        tanh_c = row_of(&run.extra, run, t, r)
        if run.gates.data == NULL:
            lstm_gates_again(tag, run, t, r, &gates, &tanh_c)
        start_dh(tag, run, t, r, <vreal *>dh)
        arrays[0] = dh
        arrays[1] = gates
        arrays[2] = tanh_c
        arrays[3] = d_normed_c
        arrays[4] = da
        lstm_output_backward_row(<vreal **>arrays, run.size)
        dc_output = d_normed_c
        if run.norms[2].backward != NULL:
            dc_output = scratch_of(run, 11)
            denormalize(&run.norms[2], run, t, r, d_normed_c, row_of(&run.c, run, t, r), dc_output)
        arrays[0] = dc
        arrays[1] = dc_output
        arrays[2] = gates
        arrays[3] = row_before(&run.c, run.initial_c, run, t, r)
        arrays[4] = da
        arrays[5] = dc
        lstm_gates_backward_row(<vreal **>arrays, run.size)
        add_to_bias(<vreal *>da, run, r, 0, 4)
        denormalize(&run.norms[0], run, t, r, da, row_of(&run.inputs, run, t, r), d_inputs)
        denormalize(&run.norms[1], run, t, r, da, row_of(&run.products, run, t, r),
                    row_of(&run.d_products, run, t, r))


cdef inline char *candidate(char *row, const Run *run) noexcept nogil:
    """The part of n in a row of gates r, z, n."""
    return row + 2 * run.size * run.item


cdef inline bint normalize_parts(const Norm *rz, const Norm *n, const Run *run, Py_ssize_t t,
                                 Py_ssize_t n_rows, char *rows) noexcept nogil:
    """Normalize a few rows of gates r, z, n: first r, z of all rows, then n of all rows.

    They go by way of the scratch, as parts of rows do not follow each other.
    """
    cdef Py_ssize_t part = run.size * run.item
    cdef char *copy = scratch_of(run, 0)
    cdef Py_ssize_t r
    for r in range(n_rows):
        memcpy(copy + r * 2 * part, rows + r * 3 * part, 2 * part)
        memcpy(copy + (2 * n_rows + r) * part, candidate(rows + r * 3 * part, run), part)
    return (normalize_rows(rz, run, t, n_rows, copy, rows)
            and normalize_rows(n, run, t, n_rows, copy + 2 * n_rows * part,
                               rows + 2 * n_rows * part))


cdef inline void gru_forward(const vreal *tag, const Run *run, Py_ssize_t t, Py_ssize_t first,
                             Py_ssize_t stop) noexcept nogil:
    """A few rows at a time, where all their normalizers can take so many."""
    cdef inline void *arrays[MAX_ARRAYS]
    cdef Py_ssize_t part = run.size * run.item
    cdef Py_ssize_t most = FEW
    cdef Py_ssize_t start = first
    cdef Py_ssize_t r, n, k
    cdef char *inputs
    cdef char *products
    for k in range(4):
        if run.norms[k].rows == NULL:
            most = 1
    while start < stop:
        n = min(most, stop - start)
        inputs = row_of(&run.inputs, run, t, start)
        products = row_of(&run.products, run, t, start)
        if n > 1:
            normalize_parts(&run.norms[0], &run.norms[2], run, t, n, inputs)
            normalize_parts(&run.norms[1], &run.norms[3], run, t, n, products)
        for r in range(n):
            if n > 1:
                arrays[0] = inputs + r * 2 * part
                arrays[1] = products + r * 2 * part
                arrays[2] = inputs + (2 * n + r) * part
                arrays[3] = products + (2 * n + r) * part
            else:
                arrays[0] = normalize(&run.norms[0], run, t, start, inputs, scratch_of(run, 4))
                arrays[1] = normalize(&run.norms[1], run, t, start, products, scratch_of(run, 8))
                arrays[2] = normalize(&run.norms[2], run, t, start, candidate(inputs, run),
                                      scratch_of(run, 6))
                arrays[3] = normalize(&run.norms[3], run, t, start, candidate(products, run),
                                      scratch_of(run, 10))
            arrays[4] = <void *>run.bias
            arrays[5] = row_before(&run.h, run.initial_h, run, t, start + r)
            arrays[6] = row_of(&run.gates, run, t, start + r)
            arrays[7] = row_of(&run.extra, run, t, start + r)
            arrays[8] = row_of(&run.h, run, t, start + r)
            gru_forward_row(<vreal **>arrays, run.size)
        start += n


cdef inline void gru_gates_again(const vreal *tag, const Run *run, Py_ssize_t t, Py_ssize_t r,
                                 void **gates, void **hidden_n) noexcept nogil:
    """The gates, and N_hn(U_n h) + b_hn, as forward had them."""
    cdef inline void *arrays[MAX_ARRAYS]
    cdef char *inputs = row_of(&run.inputs, run, t, r)
    cdef char *products = row_of(&run.products, run, t, r)
    gates[0] = scratch_of(run, 4)
    hidden_n[0] = scratch_of(run, 7)
    arrays[0] = normalize_again(&run.norms[0], run, t, inputs, gates[0])
    arrays[1] = normalize_again(&run.norms[1], run, t, products, scratch_of(run, 8))
    arrays[2] = normalize_again(&run.norms[2], run, t, candidate(inputs, run), scratch_of(run, 6))
    arrays[3] = normalize_again(&run.norms[3], run, t, candidate(products, run),
                                scratch_of(run, 10))
    arrays[4] = <void *>run.bias
    arrays[5] = row_before(&run.h, run.initial_h, run, t, r)
    arrays[6] = gates[0]
    arrays[7] = hidden_n[0]
    arrays[8] = scratch_of(run, 12)
    gru_forward_row(<vreal **>arrays, run.size)


cdef inline void gru_backward(const vreal *tag, const Run *run, Py_ssize_t t, Py_ssize_t first,
                              Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef Py_ssize_t r
    cdef char *d_inputs
    cdef char *d_products
    cdef char *inputs
    cdef char *products
    cdef char *da_rz = scratch_of(run, 0)
    cdef char *da_n = scratch_of(run, 10)
    cdef char *d_hidden_n = scratch_of(run, 8)
    cdef char *dh = scratch_of(run, 13)
    cdef void *gates
    cdef void *hidden_n
    for r in range(first, stop):
        d_inputs = row_of(&run.d_inputs, run, t, r)
        d_products = row_of(&run.d_products, run, t, r)
        inputs = row_of(&run.inputs, run, t, r)
        products = row_of(&run.products, run, t, r)
        gates = row_of(&run.gates, run, t, r)
        hidden_n = row_of(&run.extra, run, t, r)
        if run.gates.data == NULL:
            gru_gates_again(tag, run, t, r, &gates, &hidden_n)
        start_dh(tag, run, t, r, <vreal *>dh)
        arrays[0] = dh
        arrays[1] = gates
        arrays[2] = hidden_n
        arrays[3] = row_before(&run.h, run.initial_h, run, t, r)
        arrays[4] = da_rz
        arrays[5] = da_n
        arrays[6] = d_hidden_n
        arrays[7] = row_of(&run.d_state, run, t, r)
        gru_backward_row(<vreal **>arrays, run.size)
        add_to_bias(<vreal *>da_rz, run, r, 0, 2)
        add_to_bias(<vreal *>da_n, run, r, 2, 1)
        add_to_bias(<vreal *>d_hidden_n, run, r, 3, 1)
        denormalize(&run.norms[0], run, t, r, da_rz, inputs, d_inputs)
        denormalize(&run.norms[1], run, t, r, da_rz, products, d_products)
        denormalize(&run.norms[2], run, t, r, da_n, candidate(inputs, run),
                    candidate(d_inputs, run))
        denormalize(&run.norms[3], run, t, r, d_hidden_n, candidate(products, run),
                    candidate(d_products, run))


cdef inline void gru_reset_forward(const vreal *tag, const Run *run, Py_ssize_t t, Py_ssize_t first,
                                   Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef Py_ssize_t r
    for r in range(first, stop):
        arrays[0] = normalize(&run.norms[0], run, t, r, row_of(&run.inputs, run, t, r),
                              scratch_of(run, 4))
        arrays[1] = normalize(&run.norms[1], run, t, r, row_of(&run.products, run, t, r),
                              scratch_of(run, 8))
        arrays[2] = <void *>run.bias
        arrays[3] = row_before(&run.h, run.initial_h, run, t, r)
        arrays[4] = row_of(&run.gates, run, t, r)
        arrays[5] = row_of(&run.reset_h, run, t, r)
        gru_reset_forward_row(<vreal **>arrays, run.size)


cdef inline void gru_candidate_forward(const vreal *tag, const Run *run, Py_ssize_t t,
                                       Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef Py_ssize_t r
    for r in range(first, stop):
        arrays[0] = normalize(&run.norms[2], run, t, r,
                              candidate(row_of(&run.inputs, run, t, r), run), scratch_of(run, 4))
        arrays[1] = normalize(&run.norms[3], run, t, r,
                              candidate(row_of(&run.products, run, t, r), run), scratch_of(run, 8))
        arrays[2] = <void *>run.bias
        arrays[3] = row_before(&run.h, run.initial_h, run, t, r)
        arrays[4] = row_of(&run.gates, run, t, r)
        arrays[5] = row_of(&run.h, run, t, r)
        gru_candidate_forward_row(<vreal **>arrays, run.size)


cdef inline void gru_candidate_backward(const vreal *tag, const Run *run, Py_ssize_t t,
                                        Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef Py_ssize_t r
    cdef char *da_n = scratch_of(run, 4)
    cdef char *dh = scratch_of(run, 13)
    for r in range(first, stop):
        start_dh(tag, run, t, r, <vreal *>dh)
        arrays[0] = dh
        arrays[1] = row_of(&run.gates, run, t, r)
        arrays[2] = row_before(&run.h, run.initial_h, run, t, r)
        arrays[3] = row_of(&run.d_gates, run, t, r)
        arrays[4] = da_n
        arrays[5] = row_of(&run.d_state, run, t, r)
        gru_candidate_backward_row(<vreal **>arrays, run.size)
        add_to_bias(<vreal *>da_n, run, r, 2, 1)
        denormalize(&run.norms[2], run, t, r, da_n,
                    candidate(row_of(&run.inputs, run, t, r), run),
                    candidate(row_of(&run.d_inputs, run, t, r), run))
        denormalize(&run.norms[3], run, t, r, da_n,
                    candidate(row_of(&run.products, run, t, r), run),
                    candidate(row_of(&run.d_products, run, t, r), run))


cdef inline void gru_reset_backward(const vreal *tag, const Run *run, Py_ssize_t t,
                                    Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef Py_ssize_t r
    cdef char *da_rz
    for r in range(first, stop):
        da_rz = row_of(&run.d_gates, run, t, r)
        arrays[0] = row_of(&run.d_reset_h, run, t, r)
        arrays[1] = row_of(&run.gates, run, t, r)
        arrays[2] = row_before(&run.h, run.initial_h, run, t, r)
        arrays[3] = da_rz
        arrays[4] = row_of(&run.d_state, run, t, r)
        gru_reset_backward_row(<vreal **>arrays, run.size)
        add_to_bias(<vreal *>da_rz, run, r, 0, 2)
        denormalize(&run.norms[0], run, t, r, da_rz, row_of(&run.inputs, run, t, r),
                    row_of(&run.d_inputs, run, t, r))
        denormalize(&run.norms[1], run, t, r, da_rz, row_of(&run.products, run, t, r),
                    row_of(&run.d_products, run, t, r))


cdef inline void add_rows(const vreal *a, const vreal *b, vreal *sum, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t j = 0
    while j + lanes(a) <= n:
        at_out(sum, j)[0] = at(a, j)[0] + at(b, j)[0]
        j += lanes(a)
    while j < n:
        vput(sum, j, vget(a, j) + vget(b, j))
        j += 1


cdef inline void vanilla_forward(const vreal *tag, const Run *run, Py_ssize_t t, Py_ssize_t first,
                                 Py_ssize_t stop) noexcept nogil:
    """A few rows at a time, in place, where their normalizer can take so many."""
    cdef inline void *arrays[MAX_ARRAYS]
    cdef Py_ssize_t start = first
    cdef Py_ssize_t r, n
    cdef char *total
    cdef bint done
    while start < stop:
        n = min(<Py_ssize_t>FEW, stop - start)
        for r in range(start, start + n):
            total = row_of(&run.extra, run, t, r)
            add_rows(<const vreal *>row_of(&run.products, run, t, r),
                     <const vreal *>row_of(&run.inputs, run, t, r), <vreal *>total, run.size)
        total = row_of(&run.extra, run, t, start)
        done = normalize_rows(&run.norms[0], run, t, n, total, total)
        for r in range(start, start + n):
            total = row_of(&run.extra, run, t, r)
            arrays[0] = total if done else normalize(&run.norms[0], run, t, r, total,
                                                     scratch_of(run, 4))
            arrays[1] = <void *>run.bias
            arrays[2] = row_of(&run.h, run, t, r)
            if run.kind == RELU:
                relu_forward_row(<vreal **>arrays, run.size)
            else:
                tanh_forward_row(<vreal **>arrays, run.size)
        start += n


cdef inline void vanilla_backward(const vreal *tag, const Run *run, Py_ssize_t t, Py_ssize_t first,
                                  Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef Py_ssize_t r
    cdef char *da
    cdef char *d_inputs
    cdef char *dh = scratch_of(run, 13)
    for r in range(first, stop):
        d_inputs = row_of(&run.d_inputs, run, t, r)
        da = d_inputs if run.norms[0].backward == NULL else scratch_of(run, 0)
        start_dh(tag, run, t, r, <vreal *>dh)
        arrays[0] = dh
        arrays[1] = row_of(&run.h, run, t, r)
        arrays[2] = da
        if run.kind == RELU:
            relu_backward_row(<vreal **>arrays, run.size)
        else:
            tanh_backward_row(<vreal **>arrays, run.size)
        add_to_bias(<vreal *>da, run, r, 0, 1)
        denormalize(&run.norms[0], run, t, r, da, row_of(&run.extra, run, t, r), d_inputs)
