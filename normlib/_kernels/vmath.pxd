"""exp, tanh and the logistic sigmoid of vectors: within 4 ulp, saturating, NaN kept.

Design
------
Cody-Waite reduction, x = n log(2) + r with |r| <= log(2)/2, and the Taylor polynomial of
expm1(r), whose error at that r is below half an ulp. tanh and sigmoid follow from it in the form
that does not cancel. The same operations run in the same order at every CPU level.
"""
from normlib._kernels.vec cimport (
    VF32_ROUND, VF64_ROUND, vabs, vcopysign, vf32, vf64, vfma, vmax, vmin, vpow2, vreal, vscale,
    vselect_lt, vset,
)


cdef inline vreal vconst(double c, vreal like) noexcept nogil:
    """c in every lane of a vector of the same type as ``like``."""
    return vset(c, &like)


cdef inline vreal rounder(vreal like) noexcept nogil:
    """What, added to a vector, leaves its nearest integers in the low bits (see vec.h)."""
    if vreal is vf32:
        return vconst(VF32_ROUND, like)
    else:
        return vconst(VF64_ROUND, like)


cdef inline vreal reduce_exp(vreal x, vreal *n) noexcept nogil:
    """r, and n as an integral float. log(2) is in two parts, n times the first being exact."""
    n[0] = vfma(x, vconst(1.4426950408889634, x), rounder(x)) - rounder(x)
    if vreal is vf32:
        return vfma(n[0], vconst(2.12194440054690583e-4, x), vfma(n[0], vconst(-0.693359375, x), x))
    else:
        return vfma(n[0], vconst(-1.42860682030941723212e-6, x),
                    vfma(n[0], vconst(-6.93145751953125e-1, x), x))


cdef inline vreal expm1_reduced(vreal r) noexcept nogil:
    """expm1 of |r| <= log(2)/2: r + r**2 (1/2! + r/3! + r**2/4! + ...)."""
    cdef vreal q
    if vreal is vf32:
        q = vconst(1. / 5040., r)
    else:
        q = vconst(1. / 6227020800., r)
        q = vfma(q, r, vconst(1. / 479001600., r))
        q = vfma(q, r, vconst(1. / 39916800., r))
        q = vfma(q, r, vconst(1. / 3628800., r))
        q = vfma(q, r, vconst(1. / 362880., r))
        q = vfma(q, r, vconst(1. / 40320., r))
        q = vfma(q, r, vconst(1. / 5040., r))
    q = vfma(q, r, vconst(1. / 720., r))
    q = vfma(q, r, vconst(1. / 120., r))
    q = vfma(q, r, vconst(1. / 24., r))
    q = vfma(q, r, vconst(1. / 6., r))
    q = vfma(q, r, vconst(0.5, r))
    return vfma(r * r, q, r)


cdef inline vreal exp_in_range(vreal x) noexcept nogil:
    """exp(x) where x is NaN or in the range in which exp does more than saturate."""
    cdef vreal n
    cdef vreal p = expm1_reduced(reduce_exp(x, &n)) + vconst(1, x)
    return vscale(p, n)


cdef inline vreal vexp(vreal x) noexcept nogil:
    """exp(x), subnormal results too."""
    if vreal is vf32:
        return exp_in_range(vmin(vconst(89, x), vmax(vconst(-104, x), x)))
    else:
        return exp_in_range(vmin(vconst(710, x), vmax(vconst(-746, x), x)))


cdef inline vreal vtanh(vreal x) noexcept nogil:
    """tanh(x) = t / (t + 2), t = expm1(2 |x|) = 2**n expm1(r) + (2**n - 1)."""
    cdef vreal y = vmin(vconst(20, x), vabs(x))
    cdef vreal n, s, t
    t = expm1_reduced(reduce_exp(y + y, &n))
    s = vpow2(n)
    t = vfma(t, s, s - vconst(1, x))
    return vcopysign(t / (t + vconst(2, x)), x)


cdef inline vreal vsigmoid(vreal x) noexcept nogil:
    """1 / (1 + exp(-x)), from e = exp(-|x|): 1 / (1 + e), or e / (1 + e) for x < 0."""
    cdef vreal one = vconst(1, x)
    cdef vreal y = vcopysign(x, vconst(-1, x))
    cdef vreal e
    if vreal is vf32:
        e = exp_in_range(vmax(vconst(-104, x), y))
    else:
        e = exp_in_range(vmax(vconst(-746, x), y))
    return vselect_lt(x, vconst(0, x), e, one) / (one + e)
