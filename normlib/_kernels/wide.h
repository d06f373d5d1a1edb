/* Vectors of float as vectors of double, and sums in a fixed order.
 *
 * Design
 * ------
 * A sum runs in the lanes of one BLOCK of 256 bytes (64 floats or 32 doubles), that is in BLOCK_VECS
 * vectors, whatever their width; lanes are then folded by four, widened to double, and added by
 * halves. Every CPU level with fused multiply-add so gives the same bits.
 */
#ifndef NORMLIB_WIDE_H
#define NORMLIB_WIDE_H

#include "vec.h"

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

#endif
