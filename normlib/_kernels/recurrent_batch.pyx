"""One layer of a recurrent network in one direction, trained with batch normalization.

Design
------
One parallel region runs many time steps, with no Python and no GIL. The rows of a batch meet in its
statistics, so threads share the columns of a step's products, the statistics of these columns, and
what is normalized by them; and, between, the rows of the cell, whose functions (cell_rows.pxd) take
a row whole. They meet between the two. With one thread nobody waits.

A site is batch norm (batch_columns.pxd) or the identity, each with an array of its own, so that
cells and normalizers never multiply. Products, cells and batch norm are the functions that the loop
step by step calls, and sums run in its order: the bits are the same, for any number of threads.

Where one row is left, it takes the statistics that it is given, as constants.
"""
cimport numpy as cnp
from cython.parallel cimport parallel, threadid
from libc.string cimport memcpy

from normlib._kernels.arrays cimport address, dim, is_single
from normlib._kernels.batch_columns cimport FACTORS, denormalize_batch, normalize_batch
from normlib._kernels.cell_rows cimport (
    MAX_ARRAYS, gru_backward_row, gru_candidate_backward_row, gru_candidate_forward_row,
    gru_forward_row, gru_reset_backward_row, gru_reset_forward_row, lstm_gates_backward_row,
    lstm_gates_forward_row, lstm_output_backward_row, lstm_output_forward_row, relu_backward_row,
    relu_forward_row, tanh_backward_row, tanh_forward_row,
)
from normlib._kernels.recurrent_cells cimport add_row, add_rows
from normlib._kernels.recurrent_run cimport (
    CLASSIC_GRU, EVERY_STEP, GRU, LSTM, MAX_PRODUCTS, MAX_SITES, ONE_STEP, RELU, WINDOW, Kind, Run,
    Slab, Weight, row_before, row_of, set_slab, team_barrier, team_size,
)
from normlib._kernels.tiles cimport count_panels, multiply_panels, panel_columns
from normlib._kernels.vec cimport at, at_out, lanes, vf32, vf64, vget, vreal

cnp.import_array()

cdef enum:
    INPUT_ROWS = 32      # rows whose products with the input are made at once
    FEW_ROWS = 4         # with fewer a thread, threads share the columns of products backward


cdef struct Site:
    bint active          # or the identity
    Py_ssize_t features
    double eps
    const void *gain     # (features,) or NULL
    const void *bias
    double *mean         # (T, features)
    double *rest         # of float64 alone
    double *var
    double *dgain        # (features,) or NULL
    double *dbias
    double *d_cell_bias  # of the cell's bias that follows, or NULL
    Slab x
    Slab y
    Slab dy
    Slab dx


cdef struct Loop:
    Run run
    Weight input[MAX_PRODUCTS]
    Site sites[MAX_SITES]
    Slab d_product       # GRU: what comes by a product, before it is added; one step


# ---- threads -------------------------------------------------------------------------------------


cdef inline void meet(int n_threads) noexcept nogil:
    if n_threads > 1:
        team_barrier()


cdef inline Py_ssize_t first_of(Py_ssize_t n, int k, int n_threads) noexcept nogil:
    """The first of n that is of thread k's share."""
    return n * k // n_threads


cdef inline Py_ssize_t first_vector(const vreal *tag, Py_ssize_t n, int k,
                                    int n_threads) noexcept nogil:
    """The same of n columns: whole vectors."""
    return min(n, first_of((n + lanes(tag) - 1) // lanes(tag), k, n_threads) * lanes(tag))


cdef inline Py_ssize_t first_panel(const vreal *tag, const Loop *loop, int block, int k,
                                   int n_threads) noexcept nogil:
    """The same of the panels of a block of the weight; of a GRU's blocks together."""
    cdef Py_ssize_t own = count_panels(tag, loop.run.hidden[block].N)
    cdef Py_ssize_t before = 0
    cdef Py_ssize_t all = own
    if loop.run.kind == GRU:
        all = own + count_panels(tag, loop.run.hidden[1 - block].N)
        before = (all - own) * block
    return max(0, min(own, first_of(all, k, n_threads) - before))


cdef void multiply(const vreal *tag, const Weight *weight, const void *a, Py_ssize_t a_bytes,
                   void *out, Py_ssize_t out_bytes, Py_ssize_t n_rows, Py_ssize_t t,
                   Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    """Some panels of out = a times the weight; from right to left in odd steps t."""
    cdef Py_ssize_t item = sizeof(float) if vreal is vf32 else sizeof(double)
    multiply_panels(<const vreal *>a, <const vreal *>weight.packed, <vreal *>out, n_rows,
                    a_bytes // item, out_bytes // item, weight.K, weight.N, first, stop, t % 2 == 1)


# ---- sites ---------------------------------------------------------------------------------------


cdef inline double *rest_at(const Site *site, Py_ssize_t place) noexcept nogil:
    return NULL if site.rest == NULL else site.rest + place


cdef void normalize(const vreal *tag, const Run *run, const Site *site, Py_ssize_t t,
                    Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    """Some columns of step t."""
    cdef Py_ssize_t place = t * site.features
    if not site.active:
        return
    normalize_batch(<const vreal *>row_of(&site.x, run, t, 0), <const vreal *>site.gain,
                    <const vreal *>site.bias, <vreal *>row_of(&site.y, run, t, 0),
                    site.mean + place, rest_at(site, place), site.var + place,
                    <vreal *>run.scratch, run.counts[t], site.features, site.eps, first, stop)


cdef void denormalize(const vreal *tag, const Run *run, const Site *site, Py_ssize_t t,
                      bint alike, Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    """Some columns of step t; and the gradient of the cell's bias."""
    cdef const vreal *dy = <const vreal *>row_of(&site.dy, run, t, 0)
    cdef vreal *dx = <vreal *>row_of(&site.dx, run, t, 0)
    cdef Py_ssize_t features = site.features
    cdef Py_ssize_t place = t * features
    cdef Py_ssize_t r
    if first >= stop:
        return
    if site.d_cell_bias != NULL:
        for r in range(run.counts[t]):
            add_row(at(dy, r * features + first), site.d_cell_bias + first, stop - first)
    if not site.active:
        for r in range(run.counts[t]):
            memcpy(at_out(dx, r * features + first), at(dy, r * features + first),
                   (stop - first) * run.item)
        return
    denormalize_batch(dy, <const vreal *>row_of(&site.x, run, t, 0), <const vreal *>site.gain, dx,
                      site.dgain, site.dbias, site.mean + place, rest_at(site, place),
                      site.var + place, <vreal *>run.scratch, run.counts[t], features, site.eps,
                      alike, first, stop)


cdef bint rows_alike(const vreal *rows, Py_ssize_t n_rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t r, j
    for r in range(1, n_rows):
        for j in range(n):
            if vget(rows, r * n + j) != vget(rows, j):
                return False
    return True


cdef bint step_alike(const vreal *tag, const Run *run, Py_ssize_t t) noexcept nogil:
    """Whether all rows of a step have one input and one state, and there are several."""
    cdef Py_ssize_t n = run.counts[t]
    return (
        n > 1
        and rows_alike(<const vreal *>row_of(&run.x, run, t, 0), n, run.x.row_bytes // run.item)
        and rows_alike(<const vreal *>row_before(&run.h, run.initial_h, run, t, 0), n, run.size)
        and (run.kind != LSTM
             or rows_alike(<const vreal *>row_before(&run.c, run.initial_c, run, t, 0), n,
                           run.size))
    )


# ---- forward -------------------------------------------------------------------------------------


cdef void forward_inputs(const vreal *tag, const Loop *loop, Py_ssize_t t, Py_ssize_t stop,
                         int k, int n_threads) noexcept nogil:
    """This thread's columns of the products with the input, of some steps."""
    cdef const Run *run = &loop.run
    cdef Py_ssize_t n = run.starts[stop - 1] + run.counts[stop - 1] - run.starts[t]
    cdef const Slab *out
    cdef int block
    for block in range(run.n_products):
        out = &run.inputs if run.inputs.data != NULL else &loop.sites[2 * block].x
        multiply(tag, &loop.input[block], row_of(&run.x, run, t, 0), run.x.row_bytes,
                 row_of(out, run, t, 0), out.row_bytes, n, t,
                 first_panel(tag, loop, block, k, n_threads),
                 first_panel(tag, loop, block, k + 1, n_threads))


cdef void forward_columns(const vreal *tag, const Loop *loop, int block, Py_ssize_t t, int k,
                          int n_threads) noexcept nogil:
    """This thread's columns of a block: the products with the state, and both normalized."""
    cdef const Run *run = &loop.run
    cdef const Slab *out = &loop.sites[0].x
    cdef const char *a = row_before(&run.h, run.initial_h, run, t, 0)
    cdef Py_ssize_t first = first_panel(tag, loop, block, k, n_threads)
    cdef Py_ssize_t stop = first_panel(tag, loop, block, k + 1, n_threads)
    cdef Py_ssize_t n = run.hidden[block].N
    cdef vreal *total
    cdef Py_ssize_t r
    if run.inputs.data == NULL:
        out = &loop.sites[2 * block + 1].x
    if run.kind == CLASSIC_GRU and block == 1:
        a = row_of(&run.reset_h, run, t, 0)
    multiply(tag, &run.hidden[block], a, run.size * run.item, row_of(out, run, t, 0),
             out.row_bytes, run.counts[t], t, first, stop)
    first = min(n, first * panel_columns(tag))
    stop = min(n, stop * panel_columns(tag))
    if run.inputs.data != NULL:
        for r in range(run.counts[t]):
            total = at_out(<vreal *>row_of(out, run, t, r), first)
            add_rows(total, at(<const vreal *>row_of(&run.inputs, run, t, r), first), total,
                     stop - first)
        normalize(tag, run, &loop.sites[0], t, first, stop)
        return
    normalize(tag, run, &loop.sites[2 * block], t, first, stop)
    normalize(tag, run, &loop.sites[2 * block + 1], t, first, stop)


cdef void lstm_gates_forward(const vreal *tag, const Loop *loop, Py_ssize_t t, Py_ssize_t first,
                             Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef const Run *run = &loop.run
    cdef Py_ssize_t r
    for r in range(first, stop):
        arrays[0] = row_of(&loop.sites[0].y, run, t, r)
        arrays[1] = row_of(&loop.sites[1].y, run, t, r)
        arrays[2] = <void *>run.bias
        arrays[3] = row_before(&run.c, run.initial_c, run, t, r)
        arrays[4] = row_of(&run.gates, run, t, r)
        arrays[5] = row_of(&run.c, run, t, r)
        lstm_gates_forward_row(<vreal **>arrays, run.size)


cdef void lstm_output_forward(const vreal *tag, const Loop *loop, Py_ssize_t t, Py_ssize_t first,
                              Py_ssize_t stop) noexcept nogil:
    """Some columns: the row function takes them for all where o, the last gate, is."""
    cdef inline void *arrays[MAX_ARRAYS]
    cdef const Run *run = &loop.run
    cdef Py_ssize_t width = stop - first
    cdef Py_ssize_t r
    if width <= 0:
        return
    normalize(tag, run, &loop.sites[2], t, first, stop)
    for r in range(run.counts[t]):
        arrays[0] = at_out(<vreal *>row_of(&run.gates, run, t, r),
                           3 * run.size + first - 3 * width)
        arrays[1] = at_out(<vreal *>row_of(&loop.sites[2].y, run, t, r), first)
        arrays[2] = at_out(<vreal *>row_of(&run.extra, run, t, r), first)
        arrays[3] = at_out(<vreal *>row_of(&run.h, run, t, r), first)
        lstm_output_forward_row(<vreal **>arrays, width)


cdef void gru_forward(const vreal *tag, const Loop *loop, Py_ssize_t t, Py_ssize_t first,
                      Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef const Run *run = &loop.run
    cdef Py_ssize_t r
    cdef int k
    for r in range(first, stop):
        for k in range(4):
            arrays[k] = row_of(&loop.sites[k].y, run, t, r)
        arrays[4] = <void *>run.bias
        arrays[5] = row_before(&run.h, run.initial_h, run, t, r)
        arrays[6] = row_of(&run.gates, run, t, r)
        arrays[7] = row_of(&run.extra, run, t, r)
        arrays[8] = row_of(&run.h, run, t, r)
        gru_forward_row(<vreal **>arrays, run.size)


cdef void gru_half_forward(const vreal *tag, const Loop *loop, int block, Py_ssize_t t,
                           Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    """The classical GRU: the gates and the state after the reset; then n and the new state."""
    cdef inline void *arrays[MAX_ARRAYS]
    cdef const Run *run = &loop.run
    cdef Py_ssize_t r
    for r in range(first, stop):
        arrays[0] = row_of(&loop.sites[2 * block].y, run, t, r)
        arrays[1] = row_of(&loop.sites[2 * block + 1].y, run, t, r)
        arrays[2] = <void *>run.bias
        arrays[3] = row_before(&run.h, run.initial_h, run, t, r)
        arrays[4] = row_of(&run.gates, run, t, r)
        if block == 0:
            arrays[5] = row_of(&run.reset_h, run, t, r)
            gru_reset_forward_row(<vreal **>arrays, run.size)
        else:
            arrays[5] = row_of(&run.h, run, t, r)
            gru_candidate_forward_row(<vreal **>arrays, run.size)


cdef void vanilla_forward(const vreal *tag, const Loop *loop, Py_ssize_t t, Py_ssize_t first,
                          Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef const Run *run = &loop.run
    cdef Py_ssize_t r
    for r in range(first, stop):
        arrays[0] = row_of(&loop.sites[0].y, run, t, r)
        arrays[1] = <void *>run.bias
        arrays[2] = row_of(&run.h, run, t, r)
        if run.kind == RELU:
            relu_forward_row(<vreal **>arrays, run.size)
        else:
            tanh_forward_row(<vreal **>arrays, run.size)


cdef void forward_share(const vreal *tag, const Loop *shared, int k,
                        int n_threads) noexcept nogil:
    """What one thread does of the forward pass."""
    cdef Loop mine = shared[0]
    cdef const Loop *loop = &mine
    cdef const Run *run = &mine.run
    cdef Py_ssize_t t = run.first
    cdef Py_ssize_t window, first, stop
    mine.run.scratch = run.scratch + k * run.scratch_bytes
    while t < run.stop:
        mine.run.window = t
        window = min(t + max(1, INPUT_ROWS // run.n_rows), run.stop)
        # Rows of a step follow those of the one before only if there are as many.
        while run.inputs.data != NULL and window > t + 1 and run.counts[window - 1] < run.n_rows:
            window -= 1
        forward_inputs(tag, loop, t, window, k, n_threads)
        while t < window:
            first = first_of(run.counts[t], k, n_threads)
            stop = first_of(run.counts[t], k + 1, n_threads)
            forward_columns(tag, loop, 0, t, k, n_threads)
            if run.kind == GRU:
                forward_columns(tag, loop, 1, t, k, n_threads)
            meet(n_threads)
            if run.kind == LSTM:
                lstm_gates_forward(tag, loop, t, first, stop)
                meet(n_threads)
                lstm_output_forward(tag, loop, t, first_vector(tag, run.size, k, n_threads),
                                    first_vector(tag, run.size, k + 1, n_threads))
            elif run.kind == GRU:
                gru_forward(tag, loop, t, first, stop)
            elif run.kind == CLASSIC_GRU:
                gru_half_forward(tag, loop, 0, t, first, stop)
                meet(n_threads)
                forward_columns(tag, loop, 1, t, k, n_threads)
                meet(n_threads)
                gru_half_forward(tag, loop, 1, t, first, stop)
            else:
                vanilla_forward(tag, loop, t, first, stop)
            meet(n_threads)
            t += 1


# ---- backward ------------------------------------------------------------------------------------


cdef inline void add_output(const vreal *tag, const Run *run, Py_ssize_t t,
                            Py_ssize_t r) noexcept nogil:
    """Add the gradient of the output to that of the state."""
    cdef vreal *dh = <vreal *>row_of(&run.dh, run, t, r)
    add_rows(dh, <const vreal *>row_of(&run.d_output, run, t, r), dh, run.size)


cdef void lstm_output_backward(const vreal *tag, const Loop *loop, Py_ssize_t t, Py_ssize_t first,
                               Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef const Run *run = &loop.run
    cdef Py_ssize_t r
    for r in range(first, stop):
        add_output(tag, run, t, r)
        arrays[0] = row_of(&run.dh, run, t, r)
        arrays[1] = row_of(&run.gates, run, t, r)
        arrays[2] = row_of(&run.extra, run, t, r)
        arrays[3] = row_of(&loop.sites[2].dy, run, t, r)
        arrays[4] = row_of(&loop.sites[0].dy, run, t, r)
        lstm_output_backward_row(<vreal **>arrays, run.size)


cdef void lstm_gates_backward(const vreal *tag, const Loop *loop, Py_ssize_t t, Py_ssize_t first,
                              Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef const Run *run = &loop.run
    cdef Py_ssize_t r
    for r in range(first, stop):
        arrays[0] = row_of(&run.dc, run, t, r)
        arrays[1] = row_of(&loop.sites[2].dx, run, t, r)
        arrays[2] = row_of(&run.gates, run, t, r)
        arrays[3] = row_before(&run.c, run.initial_c, run, t, r)
        arrays[4] = row_of(&loop.sites[0].dy, run, t, r)
        arrays[5] = row_of(&run.dc, run, t, r)
        lstm_gates_backward_row(<vreal **>arrays, run.size)


cdef void gru_backward(const vreal *tag, const Loop *loop, Py_ssize_t t, Py_ssize_t first,
                       Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef const Run *run = &loop.run
    cdef Py_ssize_t r
    for r in range(first, stop):
        add_output(tag, run, t, r)
        arrays[0] = row_of(&run.dh, run, t, r)
        arrays[1] = row_of(&run.gates, run, t, r)
        arrays[2] = row_of(&run.extra, run, t, r)
        arrays[3] = row_before(&run.h, run.initial_h, run, t, r)
        arrays[4] = row_of(&loop.sites[0].dy, run, t, r)
        arrays[5] = row_of(&loop.sites[2].dy, run, t, r)
        arrays[6] = row_of(&loop.sites[3].dy, run, t, r)
        arrays[7] = row_of(&run.dh, run, t, r)
        gru_backward_row(<vreal **>arrays, run.size)


cdef void gru_half_backward(const vreal *tag, const Loop *loop, int block, Py_ssize_t t,
                            Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    """The classical GRU: of n and the new state; then of the reset."""
    cdef inline void *arrays[MAX_ARRAYS]
    cdef const Run *run = &loop.run
    cdef Py_ssize_t r
    for r in range(first, stop):
        if block == 1:
            add_output(tag, run, t, r)
        arrays[0] = row_of(&run.dh if block == 1 else &run.d_reset_h, run, t, r)
        arrays[1] = row_of(&run.gates, run, t, r)
        arrays[2] = row_before(&run.h, run.initial_h, run, t, r)
        arrays[3] = row_of(&loop.sites[0].dy, run, t, r)
        if block == 1:
            arrays[4] = row_of(&loop.sites[2].dy, run, t, r)
            arrays[5] = row_of(&run.dh, run, t, r)
            gru_candidate_backward_row(<vreal **>arrays, run.size)
        else:
            arrays[4] = row_of(&run.dh, run, t, r)
            gru_reset_backward_row(<vreal **>arrays, run.size)


cdef void vanilla_backward(const vreal *tag, const Loop *loop, Py_ssize_t t, Py_ssize_t first,
                           Py_ssize_t stop) noexcept nogil:
    cdef inline void *arrays[MAX_ARRAYS]
    cdef const Run *run = &loop.run
    cdef Py_ssize_t r
    for r in range(first, stop):
        add_output(tag, run, t, r)
        arrays[0] = row_of(&run.dh, run, t, r)
        arrays[1] = row_of(&run.h, run, t, r)
        arrays[2] = row_of(&loop.sites[0].dy, run, t, r)
        if run.kind == RELU:
            relu_backward_row(<vreal **>arrays, run.size)
        else:
            tanh_backward_row(<vreal **>arrays, run.size)


cdef void backward_columns(const vreal *tag, const Loop *loop, int site, Py_ssize_t t, bint alike,
                           int k, int n_threads) noexcept nogil:
    """This thread's columns of a site."""
    cdef Py_ssize_t n = loop.sites[site].features
    denormalize(tag, &loop.run, &loop.sites[site], t, alike, first_vector(tag, n, k, n_threads),
                first_vector(tag, n, k + 1, n_threads))


cdef inline bint shares_rows(Py_ssize_t n_rows, int n_threads) noexcept nogil:
    return n_rows >= FEW_ROWS * n_threads


cdef void backward_product(const vreal *tag, const Loop *loop, int block, Py_ssize_t t, int k,
                           int n_threads) noexcept nogil:
    """This thread's rows, or columns, of what the gradient of a product gives for its factor."""
    cdef const Run *run = &loop.run
    cdef const Slab *d = &loop.sites[0 if run.n_products == 1 and run.kind != LSTM
                                     else 2 * block + 1].dx
    cdef const Slab *out = &run.dh
    cdef Py_ssize_t n = run.counts[t]
    cdef Py_ssize_t panels = count_panels(tag, run.size)
    cdef bint by_rows = shares_rows(n, n_threads)
    cdef Py_ssize_t first = first_of(n, k, n_threads) if by_rows else 0
    cdef Py_ssize_t stop = first_of(n, k + 1, n_threads) if by_rows else n
    cdef Py_ssize_t panel = 0 if by_rows else first_of(panels, k, n_threads)
    cdef Py_ssize_t last = panels if by_rows else first_of(panels, k + 1, n_threads)
    cdef Py_ssize_t column = min(run.size, panel * panel_columns(tag))
    cdef Py_ssize_t width = min(run.size, last * panel_columns(tag)) - column
    cdef vreal *dh
    cdef Py_ssize_t r
    if run.kind == CLASSIC_GRU and block == 1:
        out = &run.d_reset_h
    elif loop.d_product.data != NULL:
        out = &loop.d_product
    if first < stop:
        multiply(tag, &run.hidden[block], row_of(d, run, t, first), d.row_bytes,
                 row_of(out, run, t, first), out.row_bytes, stop - first, t, panel, last)
    if out == &loop.d_product:
        for r in range(first, stop):
            dh = at_out(<vreal *>row_of(&run.dh, run, t, r), column)
            add_rows(dh, at(<const vreal *>row_of(out, run, t, r), column), dh, width)


cdef void backward_share(const vreal *tag, const Loop *shared, int k,
                         int n_threads) noexcept nogil:
    """What one thread does of the backward pass."""
    cdef Loop mine = shared[0]
    cdef const Loop *loop = &mine
    cdef const Run *run = &mine.run
    cdef Py_ssize_t t, first, stop
    cdef bint alike
    mine.run.scratch = run.scratch + k * run.scratch_bytes
    for t in range(run.stop - 1, run.first - 1, -1):
        alike = step_alike(tag, run, t)
        first = first_of(run.counts[t], k, n_threads)
        stop = first_of(run.counts[t], k + 1, n_threads)
        if run.kind == LSTM:
            lstm_output_backward(tag, loop, t, first, stop)
            meet(n_threads)
            backward_columns(tag, loop, 2, t, alike, k, n_threads)
            meet(n_threads)
            lstm_gates_backward(tag, loop, t, first, stop)
        elif run.kind == GRU:
            gru_backward(tag, loop, t, first, stop)
        elif run.kind == CLASSIC_GRU:
            gru_half_backward(tag, loop, 1, t, first, stop)
            meet(n_threads)
            backward_columns(tag, loop, 2, t, alike, k, n_threads)
            backward_columns(tag, loop, 3, t, alike, k, n_threads)
            meet(n_threads)
            backward_product(tag, loop, 1, t, k, n_threads)
            if not shares_rows(run.counts[t], n_threads):
                meet(n_threads)
            gru_half_backward(tag, loop, 0, t, first, stop)
        else:
            vanilla_backward(tag, loop, t, first, stop)
        meet(n_threads)
        backward_columns(tag, loop, 0, t, alike, k, n_threads)
        if run.inputs.data == NULL:
            backward_columns(tag, loop, 1, t, alike, k, n_threads)
        if run.kind == GRU:
            backward_columns(tag, loop, 2, t, alike, k, n_threads)
            backward_columns(tag, loop, 3, t, alike, k, n_threads)
        meet(n_threads)
        backward_product(tag, loop, 0, t, k, n_threads)
        if run.kind == GRU:
            backward_product(tag, loop, 1, t, k, n_threads)
        # A thread that goes on with the rows it has just made waits for nobody.
        if not shares_rows(run.counts[t], n_threads) or (
            t > run.first and run.counts[t - 1] != run.counts[t]
        ):
            meet(n_threads)


cdef void run_share(const Loop *loop, bint backward, int k, int n_threads) noexcept nogil:
    if backward and loop.run.single:
        backward_share(<const vf32 *>NULL, loop, k, n_threads)
    elif backward:
        backward_share(<const vf64 *>NULL, loop, k, n_threads)
    elif loop.run.single:
        forward_share(<const vf32 *>NULL, loop, k, n_threads)
    else:
        forward_share(<const vf64 *>NULL, loop, k, n_threads)


cdef void run_all(const Loop *loop, bint backward, int n_threads) noexcept nogil:
    if n_threads == 1:
        run_share(loop, backward, 0, 1)
        return
    with parallel(num_threads=n_threads):
        run_share(loop, backward, threadid(), team_size())


# ---- from Python ---------------------------------------------------------------------------------


cdef void set_weight(Weight *weight, packed) except *:
    weight.packed = address(packed.panels)
    weight.K = packed.K
    weight.N = packed.N


cdef void set_site(Site *site, tuple values) except *:
    """Read the tuple that ``forward`` describes."""
    (site.features, eps, gain, bias, mean, rest, var, x, y, dy, dx, dgain, dbias,
     d_cell_bias) = values
    site.active = eps is not None
    site.eps = eps if site.active else 0
    site.gain = address(gain)
    site.bias = address(bias)
    site.mean = <double *>address(mean)
    site.rest = <double *>address(rest)
    site.var = <double *>address(var)
    site.dgain = <double *>address(dgain)
    site.dbias = <double *>address(dbias)
    site.d_cell_bias = <double *>address(d_cell_bias)
    set_slab(&site.x, x, EVERY_STEP)
    if site.active:
        set_slab(&site.y, y, ONE_STEP)
    else:
        site.y = site.x
    set_slab(&site.dy, dy, ONE_STEP)
    set_slab(&site.dx, dx, ONE_STEP)


cdef void start(Loop *loop, Kind kind, tuple hidden, bias, tuple sites, tuple steps, x, h, c,
                tuple initial, gates, extra, scratch) except *:
    cdef Run *run = &loop.run
    cdef int k
    starts, counts, run.first, run.stop = steps
    run.kind = kind
    run.single = is_single(h)
    run.item = 4 if run.single else 8
    run.size = dim(h, 1)
    run.starts = <const Py_ssize_t *>address(starts)
    run.counts = <const Py_ssize_t *>address(counts)
    run.n_steps = dim(starts, 0)
    run.n_rows = dim(initial[0], 0)
    run.n_products = len(hidden)
    for k in range(run.n_products):
        set_weight(&run.hidden[k], hidden[k])
    run.bias = address(bias)
    for k in range(len(sites)):
        set_site(&loop.sites[k], sites[k])
    set_slab(&run.x, x, EVERY_STEP)
    set_slab(&run.h, h, EVERY_STEP)
    set_slab(&run.c, c, EVERY_STEP)
    set_slab(&run.gates, gates, EVERY_STEP)
    set_slab(&run.extra, extra, EVERY_STEP)
    run.initial_h = address(initial[0])
    run.initial_c = address(initial[1]) if kind == LSTM else NULL
    run.scratch = <char *>address(scratch)
    run.scratch_bytes = cnp.PyArray_STRIDE(scratch, 0)


def forward(Kind kind, tuple inputs, tuple hidden, bias, tuple sites, tuple steps, x, h, c,
            tuple initial, gates, extra, scratch, input_rows, reset_h, int n_threads):
    """Run some time steps. Arrays are C-contiguous and of one type, statistics float64.

    inputs and hidden have the blocks of the weights, packed and transposed; bias is the merged one;
    initial the states (N, H); steps (starts, counts, first, stop). Of every step: x (total, I), h,
    c of the LSTM, gates but for the vanilla cell, and extra, tanh(N_c(c)) of the LSTM and
    N_hn(U_n h) + b_hn of the GRU. reset_h (N, H) is the classical GRU's; input_rows, of
    ``window_rows(N)`` rows, the vanilla cell's alone; else None. scratch is (threads,
    ``FACTOR_ROWS`` times the features of the widest site).

    A site is (features, eps, gain, bias, mean, rest, var, x, y, dy, dx, dgain, dbias, d_cell_bias):
    eps None for the identity; mean, rest and var (T, features), which steps of one row read, rest
    None for float32; x of every step, y (N, features), and None for what backward takes.
    """
    cdef Loop loop
    cdef int k
    start(&loop, kind, hidden, bias, sites, steps, x, h, c, initial, gates, extra, scratch)
    for k in range(len(inputs)):
        set_weight(&loop.input[k], inputs[k])
    set_slab(&loop.run.inputs, input_rows, WINDOW)
    set_slab(&loop.run.reset_h, reset_h, ONE_STEP)
    set_slab(&loop.d_product, None, ONE_STEP)
    with nogil:
        run_all(&loop, False, n_threads)


def backward(Kind kind, tuple hidden, tuple sites, tuple steps, x, h, c, tuple initial, gates,
             extra, scratch, d_output, dh, dc, d_product, d_reset_h, int n_threads):
    """Run the same steps backwards, after ``forward``, whose arrays these are.

    hidden has the blocks of the weight, packed. Of a site: dy (N, features), which sites 0 and 1
    share; dx of the steps' rows, but (N, H) for the LSTM's c; dgain, dbias and the cell's bias of
    float64, to which is added, or None. Of one step: the state's gradients dh and dc (N, H);
    d_product (N, H) for the GRUs; d_reset_h (N, H) for the classical one.
    """
    cdef Loop loop
    cdef int k
    start(&loop, kind, hidden, None, sites, steps, x, h, c, initial, gates, extra, scratch)
    for k in range(len(sites)):
        if kind == LSTM and k == 2:
            continue
        loop.sites[k].dx.extent = EVERY_STEP
        loop.sites[k].dx.data -= loop.run.starts[loop.run.first] * loop.sites[k].dx.row_bytes
    # What tells the vanilla cell, of one site, from the others.
    loop.run.inputs = loop.sites[0].x
    if len(sites) > 1:
        loop.run.inputs.data = NULL
    set_slab(&loop.run.d_output, d_output, EVERY_STEP)
    set_slab(&loop.run.dh, dh, ONE_STEP)
    set_slab(&loop.run.dc, dc, ONE_STEP)
    set_slab(&loop.d_product, d_product, ONE_STEP)
    set_slab(&loop.run.d_reset_h, d_reset_h, ONE_STEP)
    with nogil:
        run_all(&loop, True, n_threads)


FACTOR_ROWS = FACTORS


def window_rows(Py_ssize_t n_rows):
    """Rows of ``input_rows`` for a batch of n_rows."""
    return max(1, INPUT_ROWS // max(1, n_rows)) * n_rows
