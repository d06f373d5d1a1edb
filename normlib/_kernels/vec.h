/* SIMD vectors for the kernels, as wide as the CPU level that this file is compiled for.
 *
 * Design
 * ------
 * vf32 and vf64 hold VEC_BYTES bytes of float or double. Arithmetic (+ - * /) is the compiler's own,
 * from the GCC/Clang vector extensions; on any other compiler a "vector" is one plain number.
 * Only what those operators lack is here: loads of a part of a vector, fused multiply-add, selection,
 * powers of two. Vectors of double for those of float, and sums, are in wide.h, half types in halves.h,
 * transposes in transpose.h.
 *
 * Vectors have the alignment of their elements, so a pointer to a vector may point at any element of
 * a row, and they may alias it.
 */
#ifndef NORMLIB_VEC_H
#define NORMLIB_VEC_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if !defined(__GNUC__) || defined(NORMLIB_NO_SIMD)
#define VEC_BYTES 0
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define VEC_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__)
#define VEC_BYTES 32
#else
#define VEC_BYTES 16
#endif

#define BLOCK_BYTES 256

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define VEC_HAS_FMA 1
#else
#define VEC_HAS_FMA 0
#endif

#if VEC_BYTES
typedef float vf32 __attribute__((vector_size(VEC_BYTES), aligned(4), may_alias));
typedef double vf64 __attribute__((vector_size(VEC_BYTES), aligned(8), may_alias));
typedef int32_t vi32 __attribute__((vector_size(VEC_BYTES)));
typedef int64_t vi64 __attribute__((vector_size(VEC_BYTES)));
#define VF32_LANES (VEC_BYTES / 4)
#define VF64_LANES (VEC_BYTES / 8)
#else
typedef float vf32;
typedef double vf64;
typedef int32_t vi32;
typedef int64_t vi64;
#define VF32_LANES 1
#define VF64_LANES 1
#endif

#define VF32_BLOCK_VECS (BLOCK_BYTES / 4 / VF32_LANES)
#define VF64_BLOCK_VECS (BLOCK_BYTES / 8 / VF64_LANES)
/* Room for the block of either type, and for its lanes folded by four and widened to double. */
#define MAX_BLOCK_VECS VF32_BLOCK_VECS
#define MAX_WIDE_VECS (16 / VF64_LANES)
#define MAX_PARTS 2
/* VF64_LANES of the widest level, for the sizes of arrays. */
#define MAX_VF64_LANES 8

#define VEC_FN static inline __attribute__((always_inline, unused))
#if !defined(__GNUC__)
#undef VEC_FN
#define VEC_FN static inline
#endif

/* What Cython's "cdef inline" becomes: always inlined, so that arguments which are constants at every
 * call fold away. GCC alone stops where a function is large, and leaves accumulators in memory. */
#if defined(__GNUC__)
#undef CYTHON_INLINE
#define CYTHON_INLINE inline __attribute__((always_inline, unused))
#endif

/* ---- broadcast, bits ------------------------------------------------------------------------ */

#if VEC_BYTES
VEC_FN vf32 vf32_set(float s) { return s - (vf32){0}; }
VEC_FN vf64 vf64_set(double s) { return s - (vf64){0}; }
#else
VEC_FN vf32 vf32_set(float s) { return s; }
VEC_FN vf64 vf64_set(double s) { return s; }
VEC_FN vi32 vec_bits32(vf32 v) { vi32 r; memcpy(&r, &v, 4); return r; }
VEC_FN vi64 vec_bits64(vf64 v) { vi64 r; memcpy(&r, &v, 8); return r; }
#endif

/* ---- the first n lanes: load, store, keep (others zero); n <= 0 touches nothing ------------------ */

#if VEC_BYTES == 64
VEC_FN __mmask16 vf32_first_mask(ptrdiff_t n)
{
    return n <= 0 ? 0 : n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}
VEC_FN __mmask8 vf64_first_mask(ptrdiff_t n)
{
    return n <= 0 ? 0 : n >= 8 ? 0xff : (__mmask8)((1u << n) - 1);
}
VEC_FN vf32 vf32_load_first(const vf32 *p, ptrdiff_t n)
{
    return (vf32)_mm512_maskz_loadu_ps(vf32_first_mask(n), p);
}
VEC_FN vf64 vf64_load_first(const vf64 *p, ptrdiff_t n)
{
    return (vf64)_mm512_maskz_loadu_pd(vf64_first_mask(n), p);
}
VEC_FN void vf32_store_first(vf32 *p, vf32 v, ptrdiff_t n)
{
    _mm512_mask_storeu_ps(p, vf32_first_mask(n), (__m512)v);
}
VEC_FN void vf64_store_first(vf64 *p, vf64 v, ptrdiff_t n)
{
    _mm512_mask_storeu_pd(p, vf64_first_mask(n), (__m512d)v);
}
VEC_FN vf32 vf32_first(vf32 v, ptrdiff_t n)
{
    return (vf32)_mm512_maskz_mov_ps(vf32_first_mask(n), (__m512)v);
}
VEC_FN vf64 vf64_first(vf64 v, ptrdiff_t n)
{
    return (vf64)_mm512_maskz_mov_pd(vf64_first_mask(n), (__m512d)v);
}
#elif VEC_BYTES == 32
VEC_FN __m256i vf32_first_mask(ptrdiff_t n)
{
    int k = n < 0 ? 0 : n > 8 ? 8 : (int)n;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(k), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
VEC_FN __m256i vf64_first_mask(ptrdiff_t n)
{
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x((long long)n), _mm256_setr_epi64x(0, 1, 2, 3));
}
VEC_FN vf32 vf32_load_first(const vf32 *p, ptrdiff_t n)
{
    return (vf32)_mm256_maskload_ps((const float *)p, vf32_first_mask(n));
}
VEC_FN vf64 vf64_load_first(const vf64 *p, ptrdiff_t n)
{
    return (vf64)_mm256_maskload_pd((const double *)p, vf64_first_mask(n));
}
VEC_FN void vf32_store_first(vf32 *p, vf32 v, ptrdiff_t n)
{
    _mm256_maskstore_ps((float *)p, vf32_first_mask(n), (__m256)v);
}
VEC_FN void vf64_store_first(vf64 *p, vf64 v, ptrdiff_t n)
{
    _mm256_maskstore_pd((double *)p, vf64_first_mask(n), (__m256d)v);
}
VEC_FN vf32 vf32_first(vf32 v, ptrdiff_t n)
{
    return (vf32)_mm256_and_ps((__m256)v, (__m256)vf32_first_mask(n));
}
VEC_FN vf64 vf64_first(vf64 v, ptrdiff_t n)
{
    return (vf64)_mm256_and_pd((__m256d)v, (__m256d)vf64_first_mask(n));
}
#else
#define VEC_DEFINE_FIRST(V, LANES, SIZE)                                              \
    VEC_FN size_t V##_first_bytes(ptrdiff_t n)                                        \
    {                                                                                 \
        return (size_t)(n <= 0 ? 0 : n >= LANES ? LANES : n) * SIZE;                  \
    }                                                                                 \
    VEC_FN V V##_load_first(const V *p, ptrdiff_t n)                                  \
    {                                                                                 \
        V v = V##_set(0);                                                             \
        memcpy(&v, (const void *)p, V##_first_bytes(n));                              \
        return v;                                                                     \
    }                                                                                 \
    VEC_FN void V##_store_first(V *p, V v, ptrdiff_t n)                               \
    {                                                                                 \
        memcpy((void *)p, &v, V##_first_bytes(n));                                    \
    }                                                                                 \
    VEC_FN V V##_first(V v, ptrdiff_t n) { return V##_load_first(&v, n); }
VEC_DEFINE_FIRST(vf32, VF32_LANES, 4)
VEC_DEFINE_FIRST(vf64, VF64_LANES, 8)
#endif

/* ---- stores past the cache, to a multiple of the vector's size; vec_fence() when all are done ------- */

#if VEC_BYTES == 64
VEC_FN void vf32_stream(vf32 *p, vf32 v) { _mm512_stream_ps((float *)p, (__m512)v); }
VEC_FN void vf64_stream(vf64 *p, vf64 v) { _mm512_stream_pd((double *)p, (__m512d)v); }
#elif VEC_BYTES == 32
VEC_FN void vf32_stream(vf32 *p, vf32 v) { _mm256_stream_ps((float *)p, (__m256)v); }
VEC_FN void vf64_stream(vf64 *p, vf64 v) { _mm256_stream_pd((double *)p, (__m256d)v); }
#elif VEC_BYTES && defined(__x86_64__)
VEC_FN void vf32_stream(vf32 *p, vf32 v) { _mm_stream_ps((float *)p, (__m128)v); }
VEC_FN void vf64_stream(vf64 *p, vf64 v) { _mm_stream_pd((double *)p, (__m128d)v); }
#else
VEC_FN void vf32_stream(vf32 *p, vf32 v) { *p = v; }
VEC_FN void vf64_stream(vf64 *p, vf64 v) { *p = v; }
#endif
/* What is soon read; any address will do. */
VEC_FN void vec_prefetch(const void *p)
{
#if defined(__GNUC__)
    __builtin_prefetch(p, 0, 2);
#else
    (void)p;
#endif
}
VEC_FN void vec_fence(void)
{
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

/* ---- fused multiply-add: one rounding where the CPU level has it, two where not --------------------- */

#if VEC_BYTES == 64
VEC_FN vf32 vf32_fma(vf32 a, vf32 b, vf32 c)
{
    return (vf32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
VEC_FN vf64 vf64_fma(vf64 a, vf64 b, vf64 c)
{
    return (vf64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif VEC_BYTES == 32
VEC_FN vf32 vf32_fma(vf32 a, vf32 b, vf32 c)
{
    return (vf32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
VEC_FN vf64 vf64_fma(vf64 a, vf64 b, vf64 c)
{
    return (vf64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#elif VEC_BYTES && VEC_HAS_FMA
VEC_FN vf32 vf32_fma(vf32 a, vf32 b, vf32 c)
{
    for (int i = 0; i < VF32_LANES; i++) a[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return a;
}
VEC_FN vf64 vf64_fma(vf64 a, vf64 b, vf64 c)
{
    for (int i = 0; i < VF64_LANES; i++) a[i] = __builtin_fma(a[i], b[i], c[i]);
    return a;
}
#else
VEC_FN vf32 vf32_fma(vf32 a, vf32 b, vf32 c) { return a * b + c; }
VEC_FN vf64 vf64_fma(vf64 a, vf64 b, vf64 c) { return a * b + c; }
#endif

/* ---- selection: a < b ? yes : no, lane by lane (a NaN compares false); |v| ---------------------------- */

#if VEC_BYTES == 64
VEC_FN vf32 vf32_select_lt(vf32 a, vf32 b, vf32 yes, vf32 no)
{
    __mmask16 m = _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
    return (vf32)_mm512_mask_blend_ps(m, (__m512)no, (__m512)yes);
}
VEC_FN vf64 vf64_select_lt(vf64 a, vf64 b, vf64 yes, vf64 no)
{
    __mmask8 m = _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ);
    return (vf64)_mm512_mask_blend_pd(m, (__m512d)no, (__m512d)yes);
}
#elif VEC_BYTES == 32
VEC_FN vf32 vf32_select_lt(vf32 a, vf32 b, vf32 yes, vf32 no)
{
    return (vf32)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)(a < b));
}
VEC_FN vf64 vf64_select_lt(vf64 a, vf64 b, vf64 yes, vf64 no)
{
    return (vf64)_mm256_blendv_pd((__m256d)no, (__m256d)yes, (__m256d)(a < b));
}
#elif VEC_BYTES
#define VEC_DEFINE_SELECT_LT(V, I)                                                    \
    VEC_FN V V##_select_lt(V a, V b, V yes, V no)                                     \
    {                                                                                 \
        I m = (I)(a < b);                                                             \
        return (V)(((I)yes & m) | ((I)no & ~m));                                      \
    }
VEC_DEFINE_SELECT_LT(vf32, vi32)
VEC_DEFINE_SELECT_LT(vf64, vi64)
#endif

#if VEC_BYTES
#define VEC_DEFINE_SELECT(V, I, SIGN)                                                 \
    VEC_FN V V##_abs(V v) { return (V)((I)v & (SIGN - (I){0})); }           \
    VEC_FN V V##_copysign(V magnitude, V sign)                                        \
    {                                                                                 \
        I m = SIGN - (I){0};                                                          \
        return (V)(((I)magnitude & m) | ((I)sign & ~m));                              \
    }
VEC_DEFINE_SELECT(vf32, vi32, INT32_MAX)
VEC_DEFINE_SELECT(vf64, vi64, INT64_MAX)
#else
#define VEC_DEFINE_SELECT(V, ABS, COPYSIGN)                                           \
    VEC_FN V V##_select_lt(V a, V b, V yes, V no) { return a < b ? yes : no; }        \
    VEC_FN V V##_abs(V v) { return ABS(v); }                                          \
    VEC_FN V V##_copysign(V magnitude, V sign) { return COPYSIGN(magnitude, sign); }
VEC_DEFINE_SELECT(vf32, fabsf, copysignf)
VEC_DEFINE_SELECT(vf64, fabs, copysign)
#endif

/* ---- square root of doubles -------------------------------------------------------------------------- */

VEC_FN vf64 vf64_sqrt(vf64 v)
{
#if VEC_BYTES == 64
    return (vf64)_mm512_sqrt_pd((__m512d)v);
#elif VEC_BYTES == 32
    return (vf64)_mm256_sqrt_pd((__m256d)v);
#elif VEC_BYTES && defined(__x86_64__)
    return (vf64)_mm_sqrt_pd((__m128d)v);
#elif VEC_BYTES
    for (int i = 0; i < VF64_LANES; i++) v[i] = sqrt(v[i]);
    return v;
#else
    return sqrt(v);
#endif
}

/* ---- the larger and the smaller of two; the second where either is NaN ---------------------------------- */

#if VEC_BYTES == 64
VEC_FN vf32 vf32_max(vf32 a, vf32 b) { return (vf32)_mm512_max_ps((__m512)a, (__m512)b); }
VEC_FN vf64 vf64_max(vf64 a, vf64 b) { return (vf64)_mm512_max_pd((__m512d)a, (__m512d)b); }
VEC_FN vf32 vf32_min(vf32 a, vf32 b) { return (vf32)_mm512_min_ps((__m512)a, (__m512)b); }
VEC_FN vf64 vf64_min(vf64 a, vf64 b) { return (vf64)_mm512_min_pd((__m512d)a, (__m512d)b); }
#elif VEC_BYTES == 32
VEC_FN vf32 vf32_max(vf32 a, vf32 b) { return (vf32)_mm256_max_ps((__m256)a, (__m256)b); }
VEC_FN vf64 vf64_max(vf64 a, vf64 b) { return (vf64)_mm256_max_pd((__m256d)a, (__m256d)b); }
VEC_FN vf32 vf32_min(vf32 a, vf32 b) { return (vf32)_mm256_min_ps((__m256)a, (__m256)b); }
VEC_FN vf64 vf64_min(vf64 a, vf64 b) { return (vf64)_mm256_min_pd((__m256d)a, (__m256d)b); }
#else
VEC_FN vf32 vf32_max(vf32 a, vf32 b) { return vf32_select_lt(b, a, a, b); }
VEC_FN vf64 vf64_max(vf64 a, vf64 b) { return vf64_select_lt(b, a, a, b); }
VEC_FN vf32 vf32_min(vf32 a, vf32 b) { return vf32_select_lt(a, b, a, b); }
VEC_FN vf64 vf64_min(vf64 a, vf64 b) { return vf64_select_lt(a, b, a, b); }
#endif

/* ---- powers of two of whole numbers n: pow2(n) where 2**n is normal; scale(v, n) = v * 2**n for    ------ *
 * ---- any n up to twice that, rounded once. v + VF.._ROUND holds the integer nearest to v in its    ------ *
 * ---- low bits.                                                                                    ------ */

#define VF32_ROUND 12582912.0f            /* 1.5 * 2**23 */
#define VF64_ROUND 6755399441055744.0     /* 1.5 * 2**52 */

#if VEC_BYTES == 64
VEC_FN vf32 vf32_pow2(vf32 n)
{
    return (vf32)_mm512_scalef_ps(_mm512_set1_ps(1), (__m512)n);
}
VEC_FN vf64 vf64_pow2(vf64 n)
{
    return (vf64)_mm512_scalef_pd(_mm512_set1_pd(1), (__m512d)n);
}
VEC_FN vf32 vf32_scale(vf32 v, vf32 n) { return (vf32)_mm512_scalef_ps((__m512)v, (__m512)n); }
VEC_FN vf64 vf64_scale(vf64 v, vf64 n) { return (vf64)_mm512_scalef_pd((__m512d)v, (__m512d)n); }
#else
#if VEC_BYTES
VEC_FN vf32 vf32_pow2(vf32 n) { return (vf32)(((vi32)(n + VF32_ROUND) + 127) << 23); }
VEC_FN vf64 vf64_pow2(vf64 n) { return (vf64)(((vi64)(n + VF64_ROUND) + 1023) << 52); }
#else
VEC_FN vf32 vf32_pow2(vf32 n)
{
    uint32_t b = ((uint32_t)vec_bits32(n + VF32_ROUND) + 127u) << 23;
    memcpy(&n, &b, 4);
    return n;
}
VEC_FN vf64 vf64_pow2(vf64 n)
{
    uint64_t b = ((uint64_t)vec_bits64(n + VF64_ROUND) + 1023u) << 52;
    memcpy(&n, &b, 8);
    return n;
}
#endif
/* 2**n may be beyond the normal numbers where the result is not: two factors. */
VEC_FN vf32 vf32_scale(vf32 v, vf32 n)
{
    vf32 half = (n * 0.5f + VF32_ROUND) - VF32_ROUND;
    return v * vf32_pow2(half) * vf32_pow2(n - half);
}
VEC_FN vf64 vf64_scale(vf64 v, vf64 n)
{
    vf64 half = (n * 0.5 + VF64_ROUND) - VF64_ROUND;
    return v * vf64_pow2(half) * vf64_pow2(n - half);
}
#endif

/* ---- single elements of a row ----------------------------------------------------------------------- */

/* Elements up to the next boundary of a vector. */
VEC_FN ptrdiff_t vf32_to_boundary(const vf32 *p)
{
    return (ptrdiff_t)((0 - (uintptr_t)p) / 4 % VF32_LANES);
}
VEC_FN ptrdiff_t vf64_to_boundary(const vf64 *p)
{
    return (ptrdiff_t)((0 - (uintptr_t)p) / 8 % VF64_LANES);
}

VEC_FN double vf32_get(const vf32 *row, ptrdiff_t i) { return ((const float *)row)[i]; }
VEC_FN double vf64_get(const vf64 *row, ptrdiff_t i) { return ((const double *)row)[i]; }
VEC_FN void vf32_put(vf32 *row, ptrdiff_t i, double v) { ((float *)row)[i] = (float)v; }
VEC_FN void vf64_put(vf64 *row, ptrdiff_t i, double v) { ((double *)row)[i] = v; }

#endif
