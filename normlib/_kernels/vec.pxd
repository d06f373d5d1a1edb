"""vec.h, wide.h and halves.h for Cython: fused vector types, one name for each operation on them.

``vreal`` is a vector of float32 or float64. ``vstored`` is one in memory, of a half type, too,
which is computed in float32: read by ``vread``, written by ``vwrite``. Cython is told that they are
plain numbers, so that ``a * b + c`` is written as such, and the C compiler sees the vector type.
Two rules follow: a vector is made from a number by ``vset`` alone, and never meets a Python object.
"""
from libc.stdint cimport uint16_t

cdef extern from "vec.h" nogil:
    ctypedef float vf32
    ctypedef double vf64

    enum:
        VF32_LANES
        VF64_LANES
        VF32_BLOCK_VECS
        VF64_BLOCK_VECS
        MAX_BLOCK_VECS
        MAX_WIDE_VECS
        MAX_PARTS
        MAX_VF64_LANES

    float VF32_ROUND
    double VF64_ROUND

    vf32 vf32_set(float) noexcept
    vf64 vf64_set(double) noexcept
    vf32 vf32_load_first(const vf32 *, Py_ssize_t) noexcept
    vf64 vf64_load_first(const vf64 *, Py_ssize_t) noexcept
    void vf32_store_first(vf32 *, vf32, Py_ssize_t) noexcept
    void vf64_store_first(vf64 *, vf64, Py_ssize_t) noexcept
    void vf32_stream(vf32 *, vf32) noexcept
    void vf64_stream(vf64 *, vf64) noexcept
    void vec_fence() noexcept
    void vec_prefetch(const void *) noexcept
    vf32 vf32_first(vf32, Py_ssize_t) noexcept
    vf64 vf64_first(vf64, Py_ssize_t) noexcept
    vf32 vf32_fma(vf32, vf32, vf32) noexcept
    vf64 vf64_fma(vf64, vf64, vf64) noexcept
    vf32 vf32_select_lt(vf32, vf32, vf32, vf32) noexcept
    vf64 vf64_select_lt(vf64, vf64, vf64, vf64) noexcept
    vf64 vf64_sqrt(vf64) noexcept
    vf32 vf32_abs(vf32) noexcept
    vf64 vf64_abs(vf64) noexcept
    vf32 vf32_copysign(vf32, vf32) noexcept
    vf64 vf64_copysign(vf64, vf64) noexcept
    vf32 vf32_max(vf32, vf32) noexcept
    vf64 vf64_max(vf64, vf64) noexcept
    vf32 vf32_min(vf32, vf32) noexcept
    vf64 vf64_min(vf64, vf64) noexcept
    vf32 vf32_pow2(vf32) noexcept
    vf64 vf64_pow2(vf64) noexcept
    vf32 vf32_scale(vf32, vf32) noexcept
    vf64 vf64_scale(vf64, vf64) noexcept
    Py_ssize_t vf32_to_boundary(const vf32 *) noexcept
    Py_ssize_t vf64_to_boundary(const vf64 *) noexcept
    double vf32_get(const vf32 *, Py_ssize_t) noexcept
    double vf64_get(const vf64 *, Py_ssize_t) noexcept
    void vf32_put(vf32 *, Py_ssize_t, double) noexcept
    void vf64_put(vf64 *, Py_ssize_t, double) noexcept

cdef extern from "wide.h" nogil:
    enum:
        VF32_PARTS
        VF64_PARTS
        VF32_WIDE_VECS
        VF64_WIDE_VECS

    void vf32_fold(const vf32 *, vf64 *) noexcept
    void vf64_fold(const vf64 *, vf64 *) noexcept
    double vf32_sum_wide(vf64 *) noexcept
    double vf64_sum_wide(vf64 *) noexcept
    vf64 vec_halve_wide(vf64 *, int) noexcept
    double vec_sum_wide(vf64 *, int) noexcept
    void vf32_widen(vf32, vf64 *) noexcept
    void vf64_widen(vf64, vf64 *) noexcept
    vf32 vf32_narrow(const vf64 *) noexcept
    vf64 vf64_narrow(const vf64 *) noexcept
    void vf32_load_wide(const vf32 *, vf64 *) noexcept
    void vf64_load_wide(const vf64 *, vf64 *) noexcept

cdef extern from "halves.h" nogil:
    ctypedef short vhalf
    ctypedef signed char vbrain

    vf32 vhalf_load(const vhalf *) noexcept
    vf32 vbrain_load(const vbrain *) noexcept
    vf32 vhalf_load_first(const vhalf *, Py_ssize_t) noexcept
    vf32 vbrain_load_first(const vbrain *, Py_ssize_t) noexcept
    void vhalf_store(vhalf *, vf32) noexcept
    void vbrain_store(vbrain *, vf32) noexcept
    void vhalf_stream(vhalf *, vf32) noexcept
    void vbrain_stream(vbrain *, vf32) noexcept
    void vhalf_store_first(vhalf *, vf32, Py_ssize_t) noexcept
    void vbrain_store_first(vbrain *, vf32, Py_ssize_t) noexcept
    Py_ssize_t vhalf_to_boundary(const vhalf *) noexcept
    Py_ssize_t vbrain_to_boundary(const vbrain *) noexcept
    double vhalf_get(const vhalf *, Py_ssize_t) noexcept
    double vbrain_get(const vbrain *, Py_ssize_t) noexcept
    void vhalf_put(vhalf *, Py_ssize_t, double) noexcept
    void vbrain_put(vbrain *, Py_ssize_t, double) noexcept

cdef enum:
    STREAM_FLOATS = 1 << 21     # elements of an output that leaves the cache: benchmarks.thresholds

ctypedef fused vreal:
    vf32
    vf64

ctypedef fused vstored:
    vf32
    vf64
    vhalf                # float16
    vbrain               # bfloat16


cdef inline int lanes(const vstored *row) noexcept nogil:
    """Elements in one vector of the row's type."""
    if vstored is vf64:
        return VF64_LANES
    else:
        return VF32_LANES


cdef inline int block_vecs(const vstored *row) noexcept nogil:
    """Vectors in one block of 256 bytes."""
    if vstored is vf64:
        return VF64_BLOCK_VECS
    else:
        return VF32_BLOCK_VECS


cdef inline int wide_vecs(const vstored *row) noexcept nogil:
    """Vectors of double that a folded block fills."""
    if vstored is vf64:
        return VF64_WIDE_VECS
    else:
        return VF32_WIDE_VECS


cdef inline const vstored *at(const vstored *row, Py_ssize_t i) noexcept nogil:
    """Address of element i."""
    if vstored is vf32:
        return <const vstored *>(<const float *>row + i)
    elif vstored is vf64:
        return <const vstored *>(<const double *>row + i)
    else:
        return <const vstored *>(<const uint16_t *>row + i)


cdef inline vstored *at_out(vstored *row, Py_ssize_t i) noexcept nogil:
    """Address of element i, for writing."""
    return <vstored *>at(row, i)


cdef inline vreal vset(double s, const vreal *row) noexcept nogil:
    """Vector of s, rounded to the row's type, in every lane."""
    if vreal is vf32:
        return vf32_set(<float>s)
    else:
        return vf64_set(s)


cdef inline vreal vload_first(const vreal *row, Py_ssize_t n) noexcept nogil:
    """The first n elements; the lanes behind them are zero, and not read."""
    if vreal is vf32:
        return vf32_load_first(row, n)
    else:
        return vf64_load_first(row, n)


cdef inline vreal vload(const vreal *row, Py_ssize_t n, bint full) noexcept nogil:
    """The first n elements; all of them where full, a constant, says so. A mask takes a while."""
    if full:
        return row[0]
    return vload_first(row, n)


cdef inline void vstore_first(vreal *row, vreal v, Py_ssize_t n) noexcept nogil:
    """Store the first n lanes alone."""
    if vreal is vf32:
        vf32_store_first(row, v, n)
    else:
        vf64_store_first(row, v, n)


cdef inline void vstore(vreal *row, vreal v, bint stream) noexcept nogil:
    """Store a whole vector; past the cache if stream, which needs its own alignment."""
    if stream:
        if vreal is vf32:
            vf32_stream(row, v)
        else:
            vf64_stream(row, v)
    else:
        row[0] = v


cdef inline vreal vread(const vstored *row, const vreal *like) noexcept nogil:
    """The first vector of a row, in the type that it is computed in: that of ``like``."""
    if vstored is vreal:
        return row[0]
    elif vstored is vhalf and vreal is vf32:
        return vhalf_load(row)
    elif vstored is vbrain and vreal is vf32:
        return vbrain_load(row)
    else:
        return vset(0, like)            # never compiled into a kernel


cdef inline vreal vread_first(const vstored *row, Py_ssize_t n, const vreal *like) noexcept nogil:
    """The first n elements; the lanes behind them are zero, and not read."""
    if vstored is vreal:
        return vload_first(row, n)
    elif vstored is vhalf and vreal is vf32:
        return vhalf_load_first(row, n)
    elif vstored is vbrain and vreal is vf32:
        return vbrain_load_first(row, n)
    else:
        return vset(0, like)            # never compiled into a kernel


cdef inline void vwrite(vstored *row, vreal v, bint stream) noexcept nogil:
    """Store a whole vector, rounded; past the cache if stream, which needs its own alignment."""
    if vstored is vreal:
        vstore(row, v, stream)
    elif vstored is vhalf and vreal is vf32:
        if stream:
            vhalf_stream(row, v)
        else:
            vhalf_store(row, v)
    elif vstored is vbrain and vreal is vf32:
        if stream:
            vbrain_stream(row, v)
        else:
            vbrain_store(row, v)


cdef inline void vwrite_first(vstored *row, vreal v, Py_ssize_t n) noexcept nogil:
    """Store the first n lanes alone, rounded."""
    if vstored is vreal:
        vstore_first(row, v, n)
    elif vstored is vhalf and vreal is vf32:
        vhalf_store_first(row, v, n)
    elif vstored is vbrain and vreal is vf32:
        vbrain_store_first(row, v, n)


cdef inline vreal vfirst(vreal v, Py_ssize_t n) noexcept nogil:
    """v with the lanes from n on set to zero."""
    if vreal is vf32:
        return vf32_first(v, n)
    else:
        return vf64_first(v, n)


cdef inline vreal vfma(vreal a, vreal b, vreal c) noexcept nogil:
    """a * b + c, rounded once."""
    if vreal is vf32:
        return vf32_fma(a, b, c)
    else:
        return vf64_fma(a, b, c)


cdef inline vreal vselect_lt(vreal a, vreal b, vreal yes, vreal no) noexcept nogil:
    """yes where a < b, else no; no where either is NaN."""
    if vreal is vf32:
        return vf32_select_lt(a, b, yes, no)
    else:
        return vf64_select_lt(a, b, yes, no)


cdef inline vreal vabs(vreal v) noexcept nogil:
    if vreal is vf32:
        return vf32_abs(v)
    else:
        return vf64_abs(v)


cdef inline vreal vcopysign(vreal magnitude, vreal sign) noexcept nogil:
    if vreal is vf32:
        return vf32_copysign(magnitude, sign)
    else:
        return vf64_copysign(magnitude, sign)


cdef inline vreal vmax(vreal a, vreal b) noexcept nogil:
    """The larger of a and b; b where either is NaN."""
    if vreal is vf32:
        return vf32_max(a, b)
    else:
        return vf64_max(a, b)


cdef inline vreal vmin(vreal a, vreal b) noexcept nogil:
    """The smaller of a and b; b where either is NaN."""
    if vreal is vf32:
        return vf32_min(a, b)
    else:
        return vf64_min(a, b)


cdef inline vreal vpow2(vreal n) noexcept nogil:
    """2**n for whole n, where that is a normal number."""
    if vreal is vf32:
        return vf32_pow2(n)
    else:
        return vf64_pow2(n)


cdef inline vreal vscale(vreal v, vreal n) noexcept nogil:
    """v * 2**n for whole n, rounded once, whether or not 2**n is a normal number."""
    if vreal is vf32:
        return vf32_scale(v, n)
    else:
        return vf64_scale(v, n)


cdef inline void vfold(const vreal *acc, vf64 *wide) noexcept nogil:
    """Add one block of accumulators to its folded double lanes."""
    if vreal is vf32:
        vf32_fold(acc, wide)
    else:
        vf64_fold(acc, wide)


cdef inline double vsum_wide(const vstored *row, vf64 *wide) noexcept nogil:
    """Sum of the folded lanes, by halves (overwrites them)."""
    if vstored is vf64:
        return vf64_sum_wide(wide)
    else:
        return vf32_sum_wide(wide)


cdef inline vf64 vhalve_wide(const vreal *row, vf64 *wide) noexcept nogil:
    """The first of vsum_wide's additions, which leave one vector (overwrites them)."""
    return vec_halve_wide(wide, wide_vecs(row))


cdef inline int vwiden(vreal v, vf64 *parts) noexcept nogil:
    """v as vectors of double; returns how many."""
    if vreal is vf32:
        vf32_widen(v, parts)
        return VF32_PARTS
    else:
        vf64_widen(v, parts)
        return VF64_PARTS


cdef inline vreal vnarrow(const vf64 *parts, vreal like) noexcept nogil:
    """Vectors of double as one of the type of ``like``, rounded."""
    if vreal is vf32:
        return vf32_narrow(parts)
    else:
        return vf64_narrow(parts)


cdef inline int vload_wide(const vstored *row, vf64 *parts) noexcept nogil:
    """The first vector of a row as vectors of double; returns how many."""
    if vstored is vf32:
        vf32_load_wide(row, parts)
        return VF32_PARTS
    elif vstored is vf64:
        vf64_load_wide(row, parts)
        return VF64_PARTS
    elif vstored is vhalf:
        return vwiden(vhalf_load(row), parts)
    else:
        return vwiden(vbrain_load(row), parts)


cdef inline int vload_first_wide(const vstored *row, Py_ssize_t n, vf64 *parts) noexcept nogil:
    """The same of its first n elements, with zeros behind them."""
    if vstored is vhalf:
        return vwiden(vhalf_load_first(row, n), parts)
    elif vstored is vbrain:
        return vwiden(vbrain_load_first(row, n), parts)
    else:
        return vwiden(vload_first(row, n), parts)


cdef inline Py_ssize_t to_boundary(const vstored *row) noexcept nogil:
    """Elements before the next address that is a multiple of the size of a vector, as stored."""
    if vstored is vf32:
        return vf32_to_boundary(row)
    elif vstored is vf64:
        return vf64_to_boundary(row)
    elif vstored is vhalf:
        return vhalf_to_boundary(row)
    else:
        return vbrain_to_boundary(row)


cdef inline void vadd_to(double *dst, vreal v) noexcept nogil:
    """dst[:lanes] += v, in double."""
    cdef vf64 parts[MAX_PARTS]
    cdef vf64 *wide = <vf64 *>dst
    cdef int i
    for i in range(vwiden(v, parts)):
        wide[i] = wide[i] + parts[i]


cdef inline double vget(const vstored *row, Py_ssize_t i) noexcept nogil:
    """Element i as a double."""
    if vstored is vf32:
        return vf32_get(row, i)
    elif vstored is vf64:
        return vf64_get(row, i)
    elif vstored is vhalf:
        return vhalf_get(row, i)
    else:
        return vbrain_get(row, i)


cdef inline void vput(vstored *row, Py_ssize_t i, double v) noexcept nogil:
    """Element i = v, rounded to the row's type, a half by way of float."""
    if vstored is vf32:
        vf32_put(row, i, v)
    elif vstored is vf64:
        vf64_put(row, i, v)
    elif vstored is vhalf:
        vhalf_put(row, i, v)
    else:
        vbrain_put(row, i, v)


cdef inline double vround(double s, const vstored *row) noexcept nogil:
    """s rounded to the type that the row is computed in."""
    if vstored is vf64:
        return s
    else:
        return <double>(<float>s)
