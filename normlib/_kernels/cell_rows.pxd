"""What a recurrent cell does to one row, forward and backward, elementwise.

Design
------
Everything that a cell does to one row is one C function, ``(arrays, size)``: where each of its
arrays has that row, and H. It states at its head which array is which. So a loop over rows needs a
pointer to the function and a table of arrays, whatever the cell.

Each element depends on its own column alone, so an output may be the same array as an input where
a function says so.
"""
from normlib._kernels.vec cimport (
    at, at_out, lanes, vfma, vload_first, vreal, vselect_lt, vset, vstore_first,
)
from normlib._kernels.vmath cimport vsigmoid, vtanh

cdef enum:
    MAX_ARRAYS = 9

ctypedef void (*RowFunction)(void **arrays, Py_ssize_t size) noexcept nogil


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


cdef inline void lstm_gates_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    """The four gates after their nonlinearities, and c' = f c + i g.

    c' may be c, and gates a_ih.
    """
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


cdef inline void lstm_output_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
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


cdef inline void lstm_output_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
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


cdef inline void lstm_gates_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
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


# ---- GRU: gates r, z, n ------------------------------------------------------------------------


cdef inline vreal mix(vreal z, vreal n, vreal h) noexcept nogil:
    """(1 - z) n + z h: exactly h where z is 1, and n where it is 0."""
    return vfma(z, h, (vset(1, &z) - z) * n)


cdef inline void gru_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    """Reset after the product. gates may be a_ih and a_in, one after the other."""
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


cdef inline void gru_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
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


cdef inline void gru_reset_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    """Reset before the product: r, z and r h. gates may be a_ih."""
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


cdef inline void gru_candidate_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
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


cdef inline void gru_candidate_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
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


cdef inline void gru_reset_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
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


# ---- vanilla -----------------------------------------------------------------------------------


cdef inline void tanh_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    cdef const vreal *a = arrays[0]          # IN  (H,)
    cdef const vreal *bias = arrays[1]       # IN  (H,)
    cdef vreal *h = arrays[2]                # OUT (H,)
    cdef Py_ssize_t j
    j = 0
    while j < size:
        store(at_out(h, j), vtanh(load(at(a, j), size - j) + load(at(bias, j), size - j)), size - j)
        j += lanes(a)


cdef inline void relu_forward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
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


cdef inline void tanh_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
    cdef const vreal *dh = arrays[0]         # IN  (H,)
    cdef const vreal *h = arrays[1]          # IN  (H,)
    cdef vreal *da = arrays[2]               # OUT (H,)
    cdef Py_ssize_t j, n
    j = 0
    while j < size:
        n = size - j
        store(at_out(da, j), load(at(dh, j), n) * tanh_slope(load(at(h, j), n)), n)
        j += lanes(h)


cdef inline void relu_backward_row(vreal **arrays, Py_ssize_t size) noexcept nogil:
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
