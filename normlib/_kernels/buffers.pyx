"""Memory of outputs: aligned, and if it is large, kept when an array dies, for the next one.

Design
------
A large block is new to the process each time that the system hands it out, and the first touch of
each of its pages costs about as much as normalizing what is on it. So the memory of a dead output
goes to a short list here, and the next output of about that size takes it from there. The C library
does so too, but not for blocks beyond its threshold, nor where several die in turn at the end of
its heap: it then gives all of that to the system (docs/design/speed.md).

An array's base is a `Block`, the one owner of its memory: views keep the base alive, and only its
deallocation, when nothing refers to the memory, puts it on the list. The list is bounded in bytes
and blocks; what it cannot hold goes back to the system, the oldest first. Its lock is only tried,
never waited for: who does not get it, takes memory from the system, or gives it back, so that a
child forked while the lock was held is slower, and not stuck.
"""
cimport numpy as cnp
from cpython.object cimport PyTypeObject
from cpython.pythread cimport (
    NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_release_lock,
    PyThread_type_lock,
)
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc

from normlib._kernels cimport arrays

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(
        PyTypeObject *subtype, cnp.dtype descr, int nd, const cnp.npy_intp *dims,
        const cnp.npy_intp *strides, void *data, int flags, void *obj)

cdef extern from "Python.h":
    int PyTraceMalloc_Track(unsigned int domain, uintptr_t ptr, size_t size)
    int PyTraceMalloc_Untrack(unsigned int domain, uintptr_t ptr)

cdef extern from *:
    """
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif
    /* Large pages, where the system has them on request: fewer faults for new memory. */
    static void normlib_advise(uintptr_t first, size_t size)
    {
    #if defined(__linux__) && defined(MADV_HUGEPAGE)
        uintptr_t start = (first + 4095) & ~(uintptr_t)4095;
        uintptr_t stop = (first + size) & ~(uintptr_t)4095;
        if (stop > start) madvise((void *)start, stop - start, MADV_HUGEPAGE);
    #else
        (void)first; (void)size;
    #endif
    }
    """
    void normlib_advise(uintptr_t first, size_t size)

cdef enum:
    MAX_KEPT = 16               # blocks
    LARGE = 1 << 17             # bytes of what may be kept; the C library keeps smaller ones
    ADVISED = 1 << 22           # bytes from which large pages are asked for, as NumPy does
    TRACE_DOMAIN = 389047       # numpy.lib.tracemalloc_domain

cnp.import_array()

cdef struct Memory:
    void *start             # as allocated
    size_t size             # of it

cdef Memory kept[MAX_KEPT]      # the oldest first
cdef int n_kept = 0
cdef size_t kept_bytes = 0
cdef size_t limit = 0
cdef PyThread_type_lock lock = PyThread_allocate_lock()


cdef Memory forget(int i) noexcept:
    """Take block i off the list. The caller holds the lock."""
    global n_kept, kept_bytes
    cdef Memory memory = kept[i]
    n_kept -= 1
    kept_bytes -= memory.size
    for i in range(i, n_kept):
        kept[i] = kept[i + 1]
    return memory


cdef Memory take(size_t size) noexcept:
    """Memory for so many bytes, at most a quarter of it unused; start NULL if there is none.
    """
    cdef Memory memory = Memory(NULL, size)
    cdef int i
    if n_kept > 0 and PyThread_acquire_lock(lock, NOWAIT_LOCK):
        for i in range(n_kept - 1, -1, -1):
            if size <= kept[i].size <= size + size // 4:
                memory = forget(i)
                break
        PyThread_release_lock(lock)
    if memory.start == NULL:
        memory.start = malloc(size)
        if memory.start != NULL and size >= ADVISED:
            normlib_advise(<uintptr_t>memory.start, size)
    return memory


cdef void trim(size_t bytes_free, int blocks_free) noexcept:
    """Free the oldest blocks until there is so much room. The caller holds the lock."""
    while n_kept > 0 and (kept_bytes + bytes_free > limit or n_kept + blocks_free > MAX_KEPT):
        free(forget(0).start)


cdef void give_back(Memory memory) noexcept:
    global n_kept, kept_bytes
    if memory.size <= limit and PyThread_acquire_lock(lock, NOWAIT_LOCK):
        trim(memory.size, 1)
        kept[n_kept] = memory
        n_kept += 1
        kept_bytes += memory.size
        PyThread_release_lock(lock)
    else:
        free(memory.start)


cdef class Block:
    """The memory of one large array, and of its views."""
    cdef Memory memory

    def __dealloc__(self):
        if self.memory.start != NULL:
            PyTraceMalloc_Untrack(TRACE_DOMAIN, <uintptr_t>self.memory.start)
            give_back(self.memory)


def set_limit(size_t n_bytes):
    """Keep at most so many bytes; frees what is beyond."""
    global limit
    PyThread_acquire_lock(lock, 1)
    limit = n_bytes
    trim(0, 0)
    PyThread_release_lock(lock)


def get_limit():
    """The most bytes that are kept."""
    return limit


def get_kept():
    """Bytes that are kept now, for arrays to come."""
    return kept_bytes


def is_plain(array):
    """Whether array is an ndarray of native float32 or float64, C-contiguous and aligned."""
    return arrays.is_plain(array)


cpdef object aligned_like(object x):
    """An uninitialized array of the shape and type of a plain one, at a multiple of 64 bytes."""
    cdef cnp.npy_intp n_bytes = cnp.PyArray_NBYTES(x) + 63
    cdef void *start
    cdef Block block
    if n_bytes >= LARGE and limit > 0:
        block = Block()
        block.memory = take(n_bytes)
        start = block.memory.start
        if start == NULL:
            raise MemoryError(f"no memory for an output of {n_bytes} bytes")
        PyTraceMalloc_Track(TRACE_DOMAIN, <uintptr_t>start, block.memory.size)
        base = block
    else:
        base = cnp.PyArray_SimpleNew(1, &n_bytes, cnp.NPY_UINT8)
        start = cnp.PyArray_DATA(base)
    cdef uintptr_t first = (<uintptr_t>start + 63) & ~(<uintptr_t>63)
    cdef cnp.dtype dtype = cnp.PyArray_DescrFromType(cnp.PyArray_TYPE(x))
    Py_INCREF(dtype)        # NewFromDescr takes that reference
    array = PyArray_NewFromDescr(
        <PyTypeObject *>cnp.ndarray, dtype, cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), NULL,
        <void *>first, cnp.NPY_ARRAY_CARRAY, NULL)
    cnp.set_array_base(array, base)
    return array
