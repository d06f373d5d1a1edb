/* SIMD vectors for the kernels, as wide as the CPU level that this file is compiled for.
 *
 * Design
 * ------
 * vf32 and vf64 hold VEC_BYTES bytes of float or double. Arithmetic (+ - * /) is the compiler's own,
 * from the GCC/Clang vector extensions; on any other compiler a "vector" is one plain number.
 * Only what those operators lack is here: loads of a part of a vector, fused multiply-add, selection,
 * powers of two, and sums in a fixed order.
 *
 * Fixed order. A sum runs in the lanes of one BLOCK of 256 bytes (64 floats or 32 doubles), that is
 * in BLOCK_VECS vectors, whatever their width; lanes are then folded by four, widened to double, and
 * added by halves. Every CPU level with fused multiply-add so gives the same bits.
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

/* GCC 12 folds a constructor of lanes narrowed and widened again to the lanes themselves: no such
 * constructors here. */
#if VEC_BYTES == 16
typedef float vf32_half __attribute__((vector_size(8)));
#endif

/* ---- a vector as one (vf64, or no SIMD) or two vectors of double ---------------------------------------- */

#define VF32_PARTS (VF32_LANES / VF64_LANES)
#define VF64_PARTS 1

VEC_FN void vf32_widen(vf32 v, vf64 *parts)
{
#if VEC_BYTES == 64
    parts[0] = (vf64)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
    parts[1] = (vf64)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif VEC_BYTES == 32
    parts[0] = (vf64)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
    parts[1] = (vf64)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#elif VEC_BYTES && defined(__x86_64__)
    parts[0] = (vf64)_mm_cvtps_pd((__m128)v);
    parts[1] = (vf64)_mm_cvtps_pd(_mm_movehl_ps((__m128)v, (__m128)v));
#elif VEC_BYTES
    vf32_half halves[2];
    memcpy(halves, &v, sizeof v);
    parts[0] = (vf64)__builtin_convertvector(halves[0], vf64);
    parts[1] = (vf64)__builtin_convertvector(halves[1], vf64);
#else
    parts[0] = (double)v;
#endif
}
VEC_FN void vf64_widen(vf64 v, vf64 *parts) { parts[0] = v; }

/* And back, rounded. */
VEC_FN vf32 vf32_narrow(const vf64 *parts)
{
#if VEC_BYTES == 64
    return (vf32)_mm512_insertf32x8(
        _mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)parts[0])),
        _mm512_cvtpd_ps((__m512d)parts[1]), 1);
#elif VEC_BYTES == 32
    return (vf32)_mm256_set_m128(_mm256_cvtpd_ps((__m256d)parts[1]),
                                 _mm256_cvtpd_ps((__m256d)parts[0]));
#elif VEC_BYTES && defined(__x86_64__)
    return (vf32)_mm_movelh_ps(_mm_cvtpd_ps((__m128d)parts[0]), _mm_cvtpd_ps((__m128d)parts[1]));
#elif VEC_BYTES
    vf32_half halves[2] = {__builtin_convertvector(parts[0], vf32_half),
                           __builtin_convertvector(parts[1], vf32_half)};
    vf32 v;
    memcpy(&v, halves, sizeof v);
    return v;
#else
    return (float)parts[0];
#endif
}
VEC_FN vf64 vf64_narrow(const vf64 *parts) { return parts[0]; }

/* The same of a vector in memory: at v3 and v4 conversions read it without a shuffle. */
VEC_FN void vf32_load_wide(const vf32 *p, vf64 *parts)
{
#if VEC_BYTES == 64
    parts[0] = (vf64)_mm512_cvtps_pd(_mm256_loadu_ps((const float *)p));
    parts[1] = (vf64)_mm512_cvtps_pd(_mm256_loadu_ps((const float *)p + 8));
#elif VEC_BYTES == 32
    parts[0] = (vf64)_mm256_cvtps_pd(_mm_loadu_ps((const float *)p));
    parts[1] = (vf64)_mm256_cvtps_pd(_mm_loadu_ps((const float *)p + 4));
#else
    vf32_widen(*p, parts);
#endif
}
VEC_FN void vf64_load_wide(const vf64 *p, vf64 *parts) { parts[0] = *p; }

/* Elements up to the next boundary of a vector. */
VEC_FN ptrdiff_t vf32_to_boundary(const vf32 *p)
{
    return (ptrdiff_t)((0 - (uintptr_t)p) / 4 % VF32_LANES);
}
VEC_FN ptrdiff_t vf64_to_boundary(const vf64 *p)
{
    return (ptrdiff_t)((0 - (uintptr_t)p) / 8 % VF64_LANES);
}

/* ---- sums in the fixed order ------------------------------------------------------------------------ */

/* Add one block of accumulators into 16 (vf32) or 8 (vf64) double lanes: lanes j, j + 1/4, j + 1/2 and
 * j + 3/4 of the block are folded in their own type first. */
#define VEC_DEFINE_FOLD(V, BLOCK_VECS, PARTS)                                         \
    VEC_FN void V##_fold(const V *acc, vf64 *wide)                                    \
    {                                                                                 \
        enum { Q = BLOCK_VECS / 4 };                                                  \
        vf64 parts[PARTS];                                                            \
        for (int q = 0; q < Q; q++) {                                                 \
            V##_widen((acc[q] + acc[q + Q]) + (acc[q + 2 * Q] + acc[q + 3 * Q]), parts); \
            for (int i = 0; i < PARTS; i++) wide[q * PARTS + i] += parts[i];          \
        }                                                                             \
    }
VEC_DEFINE_FOLD(vf32, VF32_BLOCK_VECS, VF32_PARTS)
VEC_DEFINE_FOLD(vf64, VF64_BLOCK_VECS, VF64_PARTS)

/* Sum of n_vecs (a power of two) vectors of double lanes, by halves: down to a vector, and its lanes. */
VEC_FN vf64 vec_halve_wide(vf64 *wide, int n_vecs)
{
    for (int half = n_vecs / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) wide[i] += wide[i + half];
    return wide[0];
}
VEC_FN double vec_sum_wide(vf64 *wide, int n_vecs)
{
    vec_halve_wide(wide, n_vecs);
#if VEC_BYTES == 64
    __m256d a = _mm256_add_pd(_mm512_castpd512_pd256((__m512d)wide[0]),
                              _mm512_extractf64x4_pd((__m512d)wide[0], 1));
    __m128d b = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(b) + _mm_cvtsd_f64(_mm_unpackhi_pd(b, b));
#elif VEC_BYTES == 32
    __m256d a = (__m256d)wide[0];
    __m128d b = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(b) + _mm_cvtsd_f64(_mm_unpackhi_pd(b, b));
#elif VEC_BYTES == 16
    return wide[0][0] + wide[0][1];
#else
    return wide[0];
#endif
}
#define VF32_WIDE_VECS (16 / VF64_LANES)
#define VF64_WIDE_VECS (8 / VF64_LANES)
#define vf32_sum_wide(wide) vec_sum_wide(wide, VF32_WIDE_VECS)
#define vf64_sum_wide(wide) vec_sum_wide(wide, VF64_WIDE_VECS)

/* ---- single elements of a row ----------------------------------------------------------------------- */

VEC_FN double vf32_get(const vf32 *row, ptrdiff_t i) { return ((const float *)row)[i]; }
VEC_FN double vf64_get(const vf64 *row, ptrdiff_t i) { return ((const double *)row)[i]; }
VEC_FN void vf32_put(vf32 *row, ptrdiff_t i, double v) { ((float *)row)[i] = (float)v; }
VEC_FN void vf64_put(vf64 *row, ptrdiff_t i, double v) { ((double *)row)[i] = v; }

/* ---- half types in memory: float16 (IEEE) and bfloat16 ("brain"), as vectors of float and back, ---- *
 * ---- rounded to nearest, ties to even; a NaN stays one                                       ---- */

/* Of as many halves as a vector has floats, wherever they start. */
typedef struct { uint16_t at[VF32_LANES]; } vhalf;
typedef struct { uint16_t at[VF32_LANES]; } vbrain;

VEC_FN float vhalf_widen_one(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff, bits;
    float f;
    if (rest >= 0x7c00) {                   /* Inf, NaN */
        bits = sign | 0x7f800000 | (rest & 0x3ff) << 13 | (rest > 0x7c00 ? 0x400000 : 0);
    } else if (rest >= 0x400) {
        bits = sign | ((rest << 13) + (112u << 23));
    } else {                                /* subnormal: a multiple of 2**-24 */
        f = (float)rest * 5.9604644775390625e-8f;
        memcpy(&bits, &f, 4);
        bits |= sign;
    }
    memcpy(&f, &bits, 4);
    return f;
}
VEC_FN uint16_t vhalf_narrow_one(float f)
{
    uint32_t bits, sign, rest;
    memcpy(&bits, &f, 4);
    sign = bits >> 16 & 0x8000;
    rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x1ff));
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00);       /* 65520 and more */
    if (rest < 0x38800000) {                /* subnormal: rounded by the addition to 0.5 */
        float size, half = 0.5f;
        uint32_t rounded, base;
        memcpy(&size, &rest, 4);
        size += half;
        memcpy(&rounded, &size, 4);
        memcpy(&base, &half, 4);
        return (uint16_t)(sign | (rounded - base));
    }
    rest += 0xfff + (rest >> 13 & 1);
    return (uint16_t)(sign | (rest - (112u << 23)) >> 13);
}
VEC_FN float vbrain_widen_one(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
VEC_FN uint16_t vbrain_narrow_one(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#if VEC_BYTES == 64
typedef __m256i vec_bits;
VEC_FN vec_bits vec_bits_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
VEC_FN __mmask16 vec_bits_first(ptrdiff_t n)
{
    return (__mmask16)(n <= 0 ? 0 : n < 16 ? (1u << n) - 1 : 0xffff);
}
VEC_FN vec_bits vec_bits_load_first(const void *p, ptrdiff_t n)
{
    return _mm256_maskz_loadu_epi16(vec_bits_first(n), p);
}
VEC_FN void vec_bits_store_first(void *p, vec_bits h, ptrdiff_t n)
{
    _mm256_mask_storeu_epi16(p, vec_bits_first(n), h);
}
VEC_FN void vec_bits_store(void *p, vec_bits h) { _mm256_storeu_si256((__m256i *)p, h); }
VEC_FN void vec_bits_stream(void *p, vec_bits h) { _mm256_stream_si256((__m256i *)p, h); }
VEC_FN vf32 vhalf_widen(vec_bits h) { return (vf32)_mm512_cvtph_ps(h); }
VEC_FN vf32 vbrain_widen(vec_bits h)
{
    return (vf32)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
VEC_FN vec_bits vhalf_narrow(vf32 v)
{
    return _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VEC_FN vec_bits vbrain_narrow(vf32 v)
{
    __m512i odd_words = _mm512_set_epi16(
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    __m512i bits = _mm512_castps_si512((__m512)v);
    __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    __m512i up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    up = _mm512_mask_add_epi32(up, odd, up, _mm512_set1_epi32(1));
    up = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(odd_words, up));
}
#elif VEC_BYTES == 32 && defined(__F16C__)
typedef __m128i vec_bits;
VEC_FN vec_bits vec_bits_load(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
VEC_FN vec_bits vec_bits_load_first(const void *p, ptrdiff_t n)
{
    uint16_t some[8] = {0};
    if (n > 0) memcpy(some, p, (size_t)(n < 8 ? n : 8) * 2);
    return vec_bits_load(some);
}
VEC_FN void vec_bits_store_first(void *p, vec_bits h, ptrdiff_t n)
{
    if (n > 0) memcpy(p, &h, (size_t)(n < 8 ? n : 8) * 2);
}
VEC_FN void vec_bits_store(void *p, vec_bits h) { _mm_storeu_si128((__m128i *)p, h); }
VEC_FN void vec_bits_stream(void *p, vec_bits h) { _mm_stream_si128((__m128i *)p, h); }
VEC_FN vf32 vhalf_widen(vec_bits h) { return (vf32)_mm256_cvtph_ps(h); }
VEC_FN vf32 vbrain_widen(vec_bits h)
{
    return (vf32)_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
VEC_FN vec_bits vhalf_narrow(vf32 v)
{
    return _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VEC_FN vec_bits vbrain_narrow(vf32 v)
{
    __m256i bits = _mm256_castps_si256((__m256)v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q));
    up = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1));
}
#else
typedef struct { uint16_t at[VF32_LANES]; } vec_bits;
VEC_FN vec_bits vec_bits_load_first(const void *p, ptrdiff_t n)
{
    vec_bits h = {{0}};
    if (n > 0) memcpy(&h, p, (size_t)(n < VF32_LANES ? n : VF32_LANES) * 2);
    return h;
}
VEC_FN vec_bits vec_bits_load(const void *p) { return vec_bits_load_first(p, VF32_LANES); }
VEC_FN void vec_bits_store_first(void *p, vec_bits h, ptrdiff_t n)
{
    if (n > 0) memcpy(p, &h, (size_t)(n < VF32_LANES ? n : VF32_LANES) * 2);
}
VEC_FN void vec_bits_store(void *p, vec_bits h) { memcpy(p, &h, sizeof h); }
VEC_FN void vec_bits_stream(void *p, vec_bits h) { vec_bits_store(p, h); }
#define VEC_DEFINE_HALF(V)                                                            \
    VEC_FN vf32 V##_widen(vec_bits h)                                                 \
    {                                                                                 \
        float lanes[VF32_LANES];                                                      \
        vf32 v;                                                                       \
        for (int i = 0; i < VF32_LANES; i++) lanes[i] = V##_widen_one(h.at[i]);       \
        memcpy(&v, lanes, sizeof v);                                                  \
        return v;                                                                     \
    }                                                                                 \
    VEC_FN vec_bits V##_narrow(vf32 v)                                                \
    {                                                                                 \
        float lanes[VF32_LANES];                                                      \
        vec_bits h;                                                                   \
        memcpy(lanes, &v, sizeof v);                                                  \
        for (int i = 0; i < VF32_LANES; i++) h.at[i] = V##_narrow_one(lanes[i]);      \
        return h;                                                                     \
    }
VEC_DEFINE_HALF(vhalf)
VEC_DEFINE_HALF(vbrain)
#endif

#define VEC_DEFINE_STORED(V)                                                          \
    VEC_FN vf32 V##_load(const V *p) { return V##_widen(vec_bits_load(p)); }          \
    VEC_FN vf32 V##_load_first(const V *p, ptrdiff_t n)                               \
    {                                                                                 \
        return V##_widen(vec_bits_load_first(p, n));                                  \
    }                                                                                 \
    VEC_FN void V##_store(V *p, vf32 v) { vec_bits_store(p, V##_narrow(v)); }         \
    /* Past the cache; needs p at a multiple of their size. */                        \
    VEC_FN void V##_stream(V *p, vf32 v) { vec_bits_stream(p, V##_narrow(v)); }       \
    VEC_FN void V##_store_first(V *p, vf32 v, ptrdiff_t n)                            \
    {                                                                                 \
        vec_bits_store_first(p, V##_narrow(v), n);                                    \
    }                                                                                 \
    VEC_FN double V##_get(const V *row, ptrdiff_t i)                                  \
    {                                                                                 \
        return V##_widen_one(((const uint16_t *)row)[i]);                             \
    }                                                                                 \
    VEC_FN void V##_put(V *row, ptrdiff_t i, double v)                                \
    {                                                                                 \
        ((uint16_t *)row)[i] = V##_narrow_one((float)v);                              \
    }                                                                                 \
    VEC_FN ptrdiff_t V##_to_boundary(const V *p)                                      \
    {                                                                                 \
        return (ptrdiff_t)((0 - (uintptr_t)p) / 2 % VF32_LANES);                      \
    }
VEC_DEFINE_STORED(vhalf)
VEC_DEFINE_STORED(vbrain)

#endif
