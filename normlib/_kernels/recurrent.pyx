"""One layer of a recurrent network in one direction, over many time steps, forward and backward.

Design
------
One parallel region runs all time steps, with no Python and no GIL. It is composed of functions with
one C signature each: the product's tiles (tiles.pxd), what a cell does to a row (cell_rows.pxd),
and what a normalizer does to a row (norm_rows.pxd), which is a pointer that anyone may offer. So a
normalizer here works per sample, and no two rows of the batch ever meet.

*Rows.* A thread takes a share of the batch through all time, and waits for nobody. Each panel of a
packed weight meets all its rows before the next is read. The products with the input are made for a
few steps at a time, while they stay in cache.

*Columns.* With fewer rows than would keep the threads busy, a thread takes a share of the weights'
panels instead, and the threads meet twice a step.

Where the rows are that a step reads and writes is in recurrent_run.pxd, what happens to them in
recurrent_cells.pxd.

*Order.* A row's sums do not depend on the shares. Gradients of parameters are summed in double over
blocks of rows which depend on the batch's size alone, step by step; shares are whole blocks.
"""
import numpy as np

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from cython.parallel cimport parallel, prange, threadid
from libc.string cimport memcmp, memcpy

from normlib._kernels.arrays cimport address, dim, is_plain, is_single
from normlib._kernels.buffers cimport aligned_like
from normlib._kernels.norm_rows cimport NormBackward, NormForward, NormRows
from normlib._kernels.packing cimport pack_all
from normlib._kernels.recurrent_cells cimport (
    candidate, gru_backward, gru_candidate_backward, gru_candidate_forward, gru_forward,
    gru_reset_backward, gru_reset_forward, lstm_backward, lstm_forward, vanilla_backward,
    vanilla_forward,
)
from normlib._kernels.recurrent_run cimport (
    CELL_SCRATCH, CLASSIC_GRU, EVERY_STEP, GRU, LSTM, ONE_STEP, RELU, TANH, WINDOW, Extent, Kind,
    Norm, Run, Slab, Weight, row_before, row_of, scratch_of, set_slab, team_barrier, team_size,
)
from normlib._kernels.tiles cimport count_panels, multiply_panels, panel_columns
from normlib._kernels.vec cimport vf32, vf64, vreal

cnp.import_array()

cdef enum:
    INPUT_ROWS = 32      # rows whose products with the input are made at once
    COMPARED = 1 << 16   # bytes that a thread compares in one go
    SHARED_BYTES = 1 << 19                  # of an array whose comparison is worth more threads

KINDS = {"lstm": LSTM, "gru": GRU, "classic gru": CLASSIC_GRU, "tanh": TANH, "relu": RELU}


# ---- threads -------------------------------------------------------------------------------------


cdef inline Py_ssize_t share(const Run *run, int k, int n) noexcept nogil:
    """The first row of share k of n: whole blocks, with about equal shares of all rows' steps."""
    cdef Py_ssize_t total = 0
    cdef Py_ssize_t done = 0
    cdef Py_ssize_t length = run.n_steps
    cdef Py_ssize_t t, row
    if k == 0:
        return 0
    if k == n:
        return run.n_rows
    for t in range(run.n_steps):
        total += run.counts[t]
    for row in range(run.n_rows):
        if row % run.block == 0 and done * n >= total * k:
            return row
        while length > 0 and run.counts[length - 1] <= row:
            length -= 1
        done += length
    return run.n_rows


cdef void multiply(const vreal *tag, const Weight *weight, const void *a, Py_ssize_t a_bytes,
                   void *out, Py_ssize_t out_bytes, Py_ssize_t n_rows, Py_ssize_t t, int part,
                   int n_parts) noexcept nogil:
    """Part of the columns of out = a times the weight; from right to left in odd steps t."""
    cdef Py_ssize_t n_panels = count_panels(tag, weight.N)
    cdef Py_ssize_t item = sizeof(float) if vreal is vf32 else sizeof(double)
    multiply_panels(<const vreal *>a, <const vreal *>weight.packed, <vreal *>out, n_rows,
                    a_bytes // item, out_bytes // item, weight.K, weight.N,
                    n_panels * part // n_parts, n_panels * (part + 1) // n_parts, t % 2 == 1)


cdef void forward_share(const vreal *tag, const Run *shared, int thread,
                        int n_threads) noexcept nogil:
    """What one thread does of the forward pass."""
    cdef Run mine = shared[0]
    cdef const Run *run = &mine
    cdef bint columns = shared.columns and n_threads > 1
    cdef Py_ssize_t first = share(shared, thread, n_threads)
    cdef Py_ssize_t stop = share(shared, thread + 1, n_threads)
    cdef bint all_rows = columns or n_threads == 1
    cdef int part = thread if columns else 0
    cdef int n_parts = n_threads if columns else 1
    cdef Py_ssize_t product_first = 0 if columns else first
    cdef Py_ssize_t product_stop = shared.n_rows if columns else stop
    cdef Py_ssize_t t, s, end, n
    cdef int k
    mine.scratch = shared.scratch + thread * shared.scratch_bytes
    if mine.gates.data == NULL and mine.kind == LSTM and mine.inputs.extent != EVERY_STEP:
        mine.gates = mine.inputs    # a row's own, until its output is made
    elif mine.gates.data == NULL:
        mine.gates.data = scratch_of(run, 0)
    if mine.extra.data == NULL and (mine.kind == TANH or mine.kind == RELU):
        mine.extra = mine.products
    elif mine.extra.data == NULL:
        mine.extra.data = scratch_of(run, 13)
    t = shared.first
    while t < shared.stop:
        mine.window = t
        end = min(t + max(1, INPUT_ROWS // shared.n_rows), shared.stop)
        if all_rows and (shared.counts[end - 1] == shared.n_rows or end == t + 1
                         or run.inputs.extent == EVERY_STEP):
            n = shared.starts[end - 1] + shared.counts[end - 1] - shared.starts[t]
            multiply(tag, &run.input, row_of(&run.x, run, t, 0), run.x.row_bytes,
                     row_of(&run.inputs, run, t, 0), run.inputs.row_bytes, n, t, part, n_parts)
        else:
            for s in range(t, end):
                n = min(product_stop, shared.counts[s]) - product_first
                if n > 0:
                    multiply(tag, &run.input, row_of(&run.x, run, s, product_first),
                             run.x.row_bytes, row_of(&run.inputs, run, s, product_first),
                             run.inputs.row_bytes, n, t, part, n_parts)
        while t < end:
            n = min(product_stop, shared.counts[t]) - product_first
            for k in range(run.n_products):
                if n > 0 and k == 0:
                    multiply(tag, &run.hidden[0],
                             row_before(&run.h, run.initial_h, run, t, product_first),
                             run.size * run.item, row_of(&run.products, run, t, product_first),
                             run.products.row_bytes, n, t, part, n_parts)
                elif n > 0:
                    multiply(tag, &run.hidden[1], row_of(&run.reset_h, run, t, product_first),
                             run.reset_h.row_bytes,
                             candidate(row_of(&run.products, run, t, product_first), run),
                             run.products.row_bytes, n, t, part, n_parts)
                if columns:
                    team_barrier()
                s = min(stop, shared.counts[t])
                if run.kind == LSTM:
                    lstm_forward(tag, run, t, first, s)
                elif run.kind == GRU:
                    gru_forward(tag, run, t, first, s)
                elif run.kind == CLASSIC_GRU and k == 0:
                    gru_reset_forward(tag, run, t, first, s)
                elif run.kind == CLASSIC_GRU:
                    gru_candidate_forward(tag, run, t, first, s)
                else:
                    vanilla_forward(tag, run, t, first, s)
                if columns:
                    team_barrier()
            t += 1


cdef void backward_share(const vreal *tag, const Run *shared, int thread,
                         int n_threads) noexcept nogil:
    """What one thread does of the backward pass."""
    cdef Run mine = shared[0]
    cdef const Run *run = &mine
    cdef bint columns = shared.columns and n_threads > 1
    cdef Py_ssize_t first = share(shared, thread, n_threads)
    cdef Py_ssize_t stop = share(shared, thread + 1, n_threads)
    cdef int part = thread if columns else 0
    cdef int n_parts = n_threads if columns else 1
    cdef Py_ssize_t product_first = 0 if columns else first
    cdef Py_ssize_t product_stop = shared.n_rows if columns else stop
    cdef Py_ssize_t t, s, n
    cdef int k
    mine.scratch = shared.scratch + thread * shared.scratch_bytes
    for t in range(shared.stop - 1, shared.first - 1, -1):
        n = min(product_stop, shared.counts[t]) - product_first
        s = min(stop, shared.counts[t])
        for k in range(run.n_products - 1, -1, -1):
            if run.kind == LSTM:
                lstm_backward(tag, run, t, first, s)
            elif run.kind == GRU:
                gru_backward(tag, run, t, first, s)
            elif run.kind == CLASSIC_GRU and k == 1:
                gru_candidate_backward(tag, run, t, first, s)
            elif run.kind == CLASSIC_GRU:
                gru_reset_backward(tag, run, t, first, s)
            else:
                vanilla_backward(tag, run, t, first, s)
            if columns:
                team_barrier()
            if n > 0 and k == 0:
                multiply(tag, &run.hidden[0], row_of(&run.d_products, run, t, product_first),
                         run.d_products.row_bytes, row_of(&run.dh, run, t, product_first),
                         run.dh.row_bytes, n, t, part, n_parts)
            elif n > 0:
                multiply(tag, &run.hidden[1],
                         candidate(row_of(&run.d_products, run, t, product_first), run),
                         run.d_products.row_bytes, row_of(&run.d_reset_h, run, t, product_first),
                         run.d_reset_h.row_bytes, n, t, part,
                         n_parts)
            if columns:
                team_barrier()


cdef void run_share(const Run *run, bint backward, int thread, int n_threads) noexcept nogil:
    if backward and run.single:
        backward_share(<const vf32 *>NULL, run, thread, n_threads)
    elif backward:
        backward_share(<const vf64 *>NULL, run, thread, n_threads)
    elif run.single:
        forward_share(<const vf32 *>NULL, run, thread, n_threads)
    else:
        forward_share(<const vf64 *>NULL, run, thread, n_threads)


cdef void run_all(const Run *run, bint backward, int n_threads) noexcept nogil:
    if n_threads == 1:
        run_share(run, backward, 0, 1)
        return
    with parallel(num_threads=n_threads):
        run_share(run, backward, threadid(), team_size())


# ---- from Python ---------------------------------------------------------------------------------


cdef void *function_of(object low_level) except? NULL:
    """The function of a scipy.LowLevelCallable: its first item is a capsule of it."""
    if low_level is None:
        return NULL
    capsule = (<tuple>low_level)[0]
    return PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))


cdef int set_norm(Norm *norm, object site, bint training) except -1:
    """Read the tuple that ``Plan.forward`` describes."""
    cdef int k
    forward, backward, rows, features, parameters, eps, cache_size, cache = site
    norm.rows = NULL
    if rows is not None and not training:
        norm.rows = <NormRows>PyCapsule_GetPointer(rows, NULL)
    norm.forward = <NormForward>function_of(forward)
    norm.backward = <NormBackward>function_of(backward) if training else NULL
    norm.features = features
    norm.eps = eps
    norm.cache_size = cache_size
    norm.cache = <double *>address(cache) if training else NULL
    norm.n_parameters = len(parameters)
    for k in range(norm.n_parameters):
        array = parameters[k]
        norm.parameters[k] = <const char *>address(array)
        norm.step_bytes[k] = 0
        norm.last_step[k] = 0
        norm.gradients[k] = NULL
        if array is not None and cnp.PyArray_NDIM(array) == 2:
            norm.step_bytes[k] = cnp.PyArray_STRIDE(array, 0)
            norm.last_step[k] = dim(array, 0) - 1
    return 0


cdef object pack(object weight, Weight *packed, Py_ssize_t first, Py_ssize_t stop,
                 bint transposed):
    """Pack rows first to stop of a weight, or their transpose; return what owns the memory."""
    cdef Py_ssize_t n = stop - first
    cdef Py_ssize_t columns = dim(weight, 1)
    cdef bint single = is_single(weight)
    cdef Py_ssize_t width = panel_columns(<vf32 *>NULL) if single else panel_columns(<vf64 *>NULL)
    cdef Py_ssize_t stride_k = 1 if transposed else columns
    cdef Py_ssize_t stride_n = columns if transposed else 1
    cdef const char *data = <const char *>address(weight) + first * cnp.PyArray_STRIDE(weight, 0)
    packed.K = columns if transposed else n
    packed.N = n if transposed else columns
    memory = aligned_like(
        np.empty((packed.N + width - 1) // width * width * packed.K, weight.dtype))
    packed.packed = address(memory)
    with nogil:
        if single:
            pack_all[vf32](<const vf32 *>data, <vf32 *>packed.packed, packed.K, packed.N,
                           stride_k, stride_n)
        else:
            pack_all[vf64](<const vf64 *>data, <vf64 *>packed.packed, packed.K, packed.N,
                           stride_k, stride_n)
    return memory


cdef bint same_parts(const char *a, const char *b, Py_ssize_t n_bytes,
                     int n_threads) noexcept nogil:
    cdef Py_ssize_t i
    cdef int differ = 0
    for i in prange((n_bytes + COMPARED - 1) // COMPARED, schedule="static", num_threads=n_threads):
        differ |= memcmp(a + i * COMPARED, b + i * COMPARED,
                         min(COMPARED, n_bytes - i * COMPARED)) != 0
    return differ == 0


cdef bint same(object a, object b, int n_threads) noexcept:
    """Whether plain arrays have the same type, size and bits."""
    cdef const char *a_data
    cdef const char *b_data
    cdef Py_ssize_t n_bytes
    if not (is_plain(a) and cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(b)
            and cnp.PyArray_NBYTES(a) == cnp.PyArray_NBYTES(b)):
        return False
    a_data = <const char *>cnp.PyArray_DATA(a)
    b_data = <const char *>cnp.PyArray_DATA(b)
    n_bytes = cnp.PyArray_NBYTES(a)
    if n_threads == 1 or n_bytes < SHARED_BYTES:
        return memcmp(a_data, b_data, n_bytes) == 0
    with nogil:
        return same_parts(a_data, b_data, n_bytes, n_threads)


cdef class Plan:
    """The weights and biases of one layer in one direction, packed; it never changes.

    Parameters: the kind of cell; weight_ih (GH, I), weight_hh (GH, H), bias_ih, bias_hh (GH,),
    which nobody may change; and the merged bias as the cell's row functions take it. ``backward``
    tells for which pass it is.
    """

    cdef Run base
    cdef object kept
    cdef readonly tuple weights
    cdef tuple biases
    cdef readonly object bias

    def __init__(self, Kind kind, weight_ih, weight_hh, bias_ih, bias_hh, bias, bint backward):
        cdef Py_ssize_t size = dim(weight_hh, 1)
        cdef Py_ssize_t rows = dim(weight_hh, 0)
        cdef Py_ssize_t cut = 2 * size if kind == CLASSIC_GRU else rows
        self.base.kind = kind
        self.base.single = is_single(weight_hh)
        self.base.item = 4 if self.base.single else 8
        self.base.size = size
        self.base.n_products = 2 if kind == CLASSIC_GRU else 1
        self.bias = bias
        self.base.bias = address(bias)
        self.kept = [pack(weight_hh, &self.base.hidden[0], 0, cut, not backward)]
        if kind == CLASSIC_GRU:
            self.kept.append(pack(weight_hh, &self.base.hidden[1], cut, rows, not backward))
        if not backward:
            self.kept.append(pack(weight_ih, &self.base.input, 0, rows, True))
        self.weights = (weight_ih, weight_hh)
        self.biases = (bias_ih, bias_hh)

    def fits(self, weight_ih, weight_hh, bias_ih, bias_hh, int n_threads):
        """Whether it was made of these values."""
        return (same(bias_ih, self.biases[0], 1) and same(bias_hh, self.biases[1], 1)
                and same(weight_hh, self.weights[1], n_threads)
                and same(weight_ih, self.weights[0], n_threads))

    cdef int start(self, Run *run, starts, counts, Py_ssize_t n_rows, Py_ssize_t first,
                   Py_ssize_t stop, Py_ssize_t first_step, tuple sites, bint training,
                   Py_ssize_t block, bint columns, scratch) except -1:
        cdef int k
        run[0] = self.base
        run.starts = <const Py_ssize_t *>address(starts)
        run.counts = <const Py_ssize_t *>address(counts)
        run.n_steps = dim(starts, 0)
        run.n_rows = n_rows
        run.first = first
        run.stop = stop
        run.first_step = first_step
        run.block = block
        run.columns = columns
        run.scratch = <char *>address(scratch)
        run.scratch_bytes = cnp.PyArray_STRIDE(scratch, 0)
        for k in range(len(sites)):
            set_norm(&run.norms[k], sites[k], training)
        return 0

    def forward(self, x, starts, counts, Py_ssize_t first, Py_ssize_t stop,
                Py_ssize_t first_step, h_initial, c_initial, tuple sites, inputs, products, gates,
                h, c, extra, reset_h, scratch, bint training, bint keep_products, bint keep_inputs,
                Py_ssize_t block, bint columns, int n_threads):
        """Run steps first to stop. Arrays are C-contiguous and of the plan's type.

        x (total, I) and h (total, H) have every step, as have in training c (LSTM), gates, which
        may be inputs, and extra, the two None where backward shall not need them; products
        (total, GH) and inputs (total, GH) have if the flags to keep them say so, else (N, GH), and
        ``window_rows(N)`` rows. In inference gates and extra are None, but for the classical GRU's
        gates (N, 3H), and c is the state itself. reset_h (N, H) is the classical GRU's. h_initial
        and c_initial are (N, H). scratch is (threads, 14 H and, for inference, the bytes of a row's
        largest cache), each thread's at a multiple of 8 bytes.

        A site is (forward, backward, rows, features, parameters, eps, cache size, cache), of row
        functions that `check_rows` let pass: two of scipy's LowLevelCallable, or None; a capsule of
        a NormRows, or None; arrays (features,) or (steps, features) or None; and for training
        float64 (total, cache size), or None where that is 0.
        """
        cdef Run run
        cdef Extent extent = EVERY_STEP if training else ONE_STEP
        self.start(&run, starts, counts, dim(h_initial, 0), first, stop, first_step, sites,
                   training, block, columns, scratch)
        run.initial_h = address(h_initial)
        run.initial_c = address(c_initial)
        set_slab(&run.x, x, EVERY_STEP)
        set_slab(&run.inputs, inputs, EVERY_STEP if keep_inputs else WINDOW)
        set_slab(&run.products, products, EVERY_STEP if keep_products else ONE_STEP)
        set_slab(&run.gates, gates, extent)
        set_slab(&run.h, h, EVERY_STEP)
        set_slab(&run.c, c, extent)
        set_slab(&run.extra, extra, extent)
        set_slab(&run.reset_h, reset_h, ONE_STEP)
        with nogil:
            run_all(&run, False, n_threads)

    def step(self, x, state, tuple sites, Py_ssize_t number, Py_ssize_t most_rows):
        """(y, state) of one time step, for a network of one layer; None unless all is plain.

        x is (N, I) and each array of the state (1, N, H), or state is None for zeros: of the plan's
        type, C-contiguous, of 1 to most_rows rows. Saves the checks in Python, which take longer.
        """
        cdef Run run
        cdef cnp.npy_intp dims[3]
        cdef Py_ssize_t start = 0
        cdef Py_ssize_t most_cache = 0
        cdef Py_ssize_t count, gates, window
        cdef int k
        cdef int kind = cnp.NPY_FLOAT32 if self.base.single else cnp.NPY_FLOAT64
        cdef bint lstm = self.base.kind == LSTM
        if not (is_plain(x) and cnp.PyArray_NDIM(x) == 2 and cnp.PyArray_TYPE(x) == kind
                and dim(x, 1) == self.base.input.K and 1 <= dim(x, 0) <= most_rows):
            return None
        count = dim(x, 0)
        dims[0] = 1
        dims[1] = count
        dims[2] = self.base.size
        if state is None:
            h_initial = np.zeros((1, count, self.base.size), x.dtype)
            c_initial = h_initial if lstm else None
        elif lstm:
            if type(state) is not tuple or len(state) != 2:
                return None
            h_initial, c_initial = state
        else:
            h_initial = state
            c_initial = None
        for array in (h_initial, c_initial):
            if array is not None and not (
                is_plain(array) and cnp.PyArray_NDIM(array) == 3 and cnp.PyArray_TYPE(array) == kind
                and dim(array, 0) == 1 and dim(array, 1) == count
                and dim(array, 2) == self.base.size
            ):
                return None
        y = cnp.PyArray_SimpleNew(2, &dims[1], kind)
        h = cnp.PyArray_SimpleNew(3, dims, kind)
        c = cnp.PyArray_SimpleNew(3, dims, kind) if lstm else None
        run = self.base
        run.starts = &start
        run.counts = &count
        run.n_steps = 1
        run.n_rows = count
        run.first = 0
        run.stop = 1
        run.first_step = number
        run.block = 1
        run.columns = False
        for k in range(len(sites)):
            set_norm(&run.norms[k], sites[k], False)
            most_cache = max(most_cache, run.norms[k].cache_size)
        set_slab(&run.x, x, EVERY_STEP)
        set_slab(&run.h, y, EVERY_STEP)
        run.initial_h = address(h_initial)
        run.initial_c = address(c_initial)
        run.c = Slab(<char *>address(c), self.base.size * self.base.item, ONE_STEP)
        # In multiples of H: scratch; products with x and with h, gates and r h of every row.
        gates = self.base.input.N // self.base.size
        window = window_rows(count)
        dims[0] = ((window + count) * gates + 4 * count + CELL_SCRATCH) * self.base.size
        dims[0] += most_cache * (8 // self.base.item)
        memory = cnp.PyArray_SimpleNew(1, dims, kind)
        cdef char *place = <char *>address(memory)
        cdef Py_ssize_t row = gates * self.base.size * self.base.item
        run.scratch = place
        run.scratch_bytes = CELL_SCRATCH * self.base.size * self.base.item + 8 * most_cache
        place += run.scratch_bytes
        run.inputs = Slab(place, row, WINDOW)
        place += window * row
        run.products = Slab(place, row, ONE_STEP)
        place += count * row
        row = self.base.size * self.base.item
        run.gates = Slab(NULL, 0, ONE_STEP)
        run.extra = Slab(NULL, 0, ONE_STEP)
        if self.base.kind == CLASSIC_GRU:
            run.gates = Slab(place, 3 * row, ONE_STEP)
            run.reset_h = Slab(place + 3 * count * row, row, ONE_STEP)
        with nogil:
            run_share(&run, False, 0, 1)
        memcpy(cnp.PyArray_DATA(h), cnp.PyArray_DATA(y), count * row)
        return y, (h, c) if lstm else h

    def backward(self, starts, counts, Py_ssize_t first, Py_ssize_t stop, h_initial, c_initial,
                 tuple sites, inputs, products, gates, h, c, extra, dh, dc, d_output, d_inputs,
                 d_products, d_gates, d_state, d_reset_h, gradients, tuple places, scratch,
                 Py_ssize_t block, bint columns, int n_threads):
        """Run steps stop to first, backwards.

        Of every step: what ``forward`` was given, and d_output (total, H); h is None for the LSTM
        without a normalizer; where gates is None (LSTM and GRU), it and extra are made again of
        inputs and products. Of these steps: extra; and d_inputs and d_products (rows, GH), which
        may be one array where every site is the identity. Of one: the state's gradients dh and dc
        (N, H); d_state (N, H) for the GRU; d_gates (N, 2H) and d_reset_h (N, H) for the classical
        one. scratch is as of ``forward``. gradients is float64 (blocks, all parameters); places
        tells where in a row the bias's start, and then, for each site, those of each parameter, -1
        for none.
        """
        cdef Run run
        cdef int k, p
        cdef Py_ssize_t place
        cdef double *data = <double *>address(gradients)
        self.start(&run, starts, counts, dim(h_initial, 0), first, stop, 0, sites, True, block,
                   columns, scratch)
        run.initial_h = address(h_initial)
        run.initial_c = address(c_initial)
        set_slab(&run.inputs, inputs, EVERY_STEP)
        set_slab(&run.products, products, EVERY_STEP)
        set_slab(&run.gates, gates, EVERY_STEP)
        set_slab(&run.h, h, EVERY_STEP)
        set_slab(&run.c, c, EVERY_STEP)
        set_slab(&run.extra, extra, EVERY_STEP)
        set_slab(&run.dh, dh, ONE_STEP)
        set_slab(&run.dc, dc, ONE_STEP)
        set_slab(&run.d_output, d_output, EVERY_STEP)
        set_slab(&run.d_inputs, d_inputs, EVERY_STEP)
        set_slab(&run.d_products, d_products, EVERY_STEP)
        run.d_inputs.data -= run.starts[first] * run.d_inputs.row_bytes
        run.d_products.data -= run.starts[first] * run.d_products.row_bytes
        run.extra.data -= run.starts[first] * run.extra.row_bytes
        set_slab(&run.d_gates, d_gates, ONE_STEP)
        set_slab(&run.d_state, d_state, ONE_STEP)
        set_slab(&run.d_reset_h, d_reset_h, ONE_STEP)
        run.block_gradients = dim(gradients, 1)
        run.d_bias = data + <Py_ssize_t>places[0]
        for k in range(len(sites)):
            for p in range(run.norms[k].n_parameters):
                place = places[1 + k][p]
                run.norms[k].gradients[p] = NULL if place < 0 else data + place
        with nogil:
            run_all(&run, True, n_threads)


cpdef Py_ssize_t window_rows(Py_ssize_t n_rows) noexcept:
    """Rows of ``inputs`` in inference, for a batch of n_rows."""
    return max(1, INPUT_ROWS // max(1, n_rows)) * n_rows
