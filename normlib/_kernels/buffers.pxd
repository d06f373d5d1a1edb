cpdef object aligned_like(object x)
