/* Half types in memory, float16 (IEEE) and bfloat16 ("brain"), as vectors of float and back, rounded to
 * nearest, ties to even; a NaN stays one.
 */
#ifndef NORMLIB_HALVES_H
#define NORMLIB_HALVES_H

#include "vec.h"

#if VEC_BYTES == 64
VEC_FN vf32 vf32_from_f16(const uint16_t *p)
{
    return (vf32)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
VEC_FN vf32 vf32_from_bf16(const uint16_t *p)
{
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return (vf32)_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
typedef __m512i vec_halves;
VEC_FN vec_halves vf32_as_f16(vf32 a, vf32 b)
{
    __m256i low = _mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256i high = _mm512_cvtps_ph((__m512)b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
VEC_FN __m512i vec_rounded_bf16(vf32 v)
{
    __m512i bits = _mm512_castps_si512((__m512)v);
    __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    __m512i up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    up = _mm512_mask_add_epi32(up, odd, up, _mm512_set1_epi32(1));
    return _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
}
VEC_FN vec_halves vf32_as_bf16(vf32 a, vf32 b)
{
    static const uint16_t odd_words[32] = {
        1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    __m512i order = _mm512_loadu_si512((const void *)odd_words);
    return _mm512_permutex2var_epi16(vec_rounded_bf16(a), order, vec_rounded_bf16(b));
}
VEC_FN void vec_put_halves(uint16_t *p, vec_halves h) { _mm512_storeu_si512((void *)p, h); }
VEC_FN void vec_stream_halves(uint16_t *p, vec_halves h) { _mm512_stream_si512((void *)p, h); }
#elif VEC_BYTES == 32 && defined(__F16C__)
VEC_FN vf32 vf32_from_f16(const uint16_t *p)
{
    return (vf32)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
VEC_FN vf32 vf32_from_bf16(const uint16_t *p)
{
    __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return (vf32)_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
typedef __m256i vec_halves;
VEC_FN vec_halves vf32_as_f16(vf32 a, vf32 b)
{
    return _mm256_set_m128i(
        _mm256_cvtps_ph((__m256)b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
        _mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC_FN __m256i vec_rounded_bf16(vf32 v)
{
    __m256i bits = _mm256_castps_si256((__m256)v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
}
VEC_FN vec_halves vf32_as_bf16(vf32 a, vf32 b)
{
    __m256i h = _mm256_packus_epi32(vec_rounded_bf16(a), vec_rounded_bf16(b));
    return _mm256_permute4x64_epi64(h, 0xd8);       /* packed by halves of the two */
}
VEC_FN void vec_put_halves(uint16_t *p, vec_halves h) { _mm256_storeu_si256((__m256i *)p, h); }
VEC_FN void vec_stream_halves(uint16_t *p, vec_halves h) { _mm256_stream_si256((__m256i *)p, h); }
#else
VEC_FN float vec_one_from_f16(uint16_t h)
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
VEC_FN uint16_t vec_one_as_f16(float f)
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
VEC_FN float vec_one_from_bf16(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
VEC_FN uint16_t vec_one_as_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
typedef struct { uint16_t at[2 * VF32_LANES]; } vec_halves;
#define VEC_DEFINE_HALF(KIND)                                                         \
    VEC_FN vf32 vf32_from_##KIND(const uint16_t *p)                                   \
    {                                                                                 \
        float lanes[VF32_LANES];                                                      \
        vf32 v;                                                                       \
        for (int i = 0; i < VF32_LANES; i++) lanes[i] = vec_one_from_##KIND(p[i]);    \
        memcpy(&v, lanes, sizeof v);                                                  \
        return v;                                                                     \
    }                                                                                 \
    VEC_FN vec_halves vf32_as_##KIND(vf32 a, vf32 b)                                  \
    {                                                                                 \
        float lanes[2 * VF32_LANES];                                                  \
        vec_halves h;                                                                 \
        memcpy(lanes, &a, sizeof a);                                                  \
        memcpy(lanes + VF32_LANES, &b, sizeof b);                                     \
        for (int i = 0; i < 2 * VF32_LANES; i++) h.at[i] = vec_one_as_##KIND(lanes[i]);\
        return h;                                                                     \
    }
VEC_DEFINE_HALF(f16)
VEC_DEFINE_HALF(bf16)
VEC_FN void vec_put_halves(uint16_t *p, vec_halves h) { memcpy(p, &h, sizeof h); }
VEC_FN void vec_stream_halves(uint16_t *p, vec_halves h) { vec_put_halves(p, h); }
#endif

/* n of them as floats. */
VEC_FN void vec_widen_halves(const uint16_t *x, float *y, ptrdiff_t n, int brain)
{
    ptrdiff_t i = 0;
    uint16_t tail[VF32_LANES] = {0};
    if (brain)
        for (; i + VF32_LANES <= n; i += VF32_LANES) *(vf32 *)(y + i) = vf32_from_bf16(x + i);
    else
        for (; i + VF32_LANES <= n; i += VF32_LANES) *(vf32 *)(y + i) = vf32_from_f16(x + i);
    if (i < n) {
        memcpy(tail, x + i, (size_t)(n - i) * 2);
        vf32_store_first((vf32 *)(y + i), brain ? vf32_from_bf16(tail) : vf32_from_f16(tail), n - i);
    }
}

/* n floats as halves; past the cache if stream, which needs y at a multiple of a vector. */
VEC_FN void vec_narrow_some(const float *x, uint16_t *y, ptrdiff_t n, int brain)
{
    uint16_t some[2 * VF32_LANES];
    vf32 a = vf32_load_first((const vf32 *)x, n);
    vf32 b = vf32_load_first((const vf32 *)(x + VF32_LANES), n - VF32_LANES);
    vec_put_halves(some, brain ? vf32_as_bf16(a, b) : vf32_as_f16(a, b));
    memcpy(y, some, (size_t)n * 2);
}
VEC_FN void vec_narrow_run(const float *x, uint16_t *y, ptrdiff_t n, int brain, int stream)
{
    enum { LANES = VF32_LANES };
    /* Stores that stay in a cache line. */
    ptrdiff_t i = (ptrdiff_t)((0 - (uintptr_t)y) / 2 % (2 * LANES));
    if (i > n) i = n;
    if (i > 0) vec_narrow_some(x, y, i, brain);
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        vf32 a = *(const vf32 *)(x + i), b = *(const vf32 *)(x + i + LANES);
        vec_halves h = brain ? vf32_as_bf16(a, b) : vf32_as_f16(a, b);
        if (stream)
            vec_stream_halves(y + i, h);
        else
            vec_put_halves(y + i, h);
    }
    if (i < n) vec_narrow_some(x + i, y + i, n - i, brain);
}
VEC_FN void vec_narrow_halves(const float *x, uint16_t *y, ptrdiff_t n, int brain, int stream)
{
    if (brain && stream)
        vec_narrow_run(x, y, n, 1, 1);
    else if (brain)
        vec_narrow_run(x, y, n, 1, 0);
    else if (stream)
        vec_narrow_run(x, y, n, 0, 1);
    else
        vec_narrow_run(x, y, n, 0, 0);
}

/* total = x + residual, rounded, past the cache if stream; and y the rounded sums as floats. */
VEC_FN void vec_add_some(const uint16_t *x, const uint16_t *residual, uint16_t *total, float *y,
                         ptrdiff_t n, int brain)
{
    uint16_t a[2 * VF32_LANES] = {0}, b[2 * VF32_LANES] = {0};
    float sums[2 * VF32_LANES];
    memcpy(a, x, (size_t)n * 2);
    memcpy(b, residual, (size_t)n * 2);
    for (int k = 0; k < 2 * VF32_LANES; k += VF32_LANES)
        *(vf32 *)(sums + k) = brain ? vf32_from_bf16(a + k) + vf32_from_bf16(b + k)
                                    : vf32_from_f16(a + k) + vf32_from_f16(b + k);
    vec_narrow_some(sums, total, n, brain);
    vec_widen_halves(total, y, n, brain);
}
VEC_FN void vec_add_run(const uint16_t *x, const uint16_t *residual, uint16_t *total, float *y,
                        ptrdiff_t n, int brain, int stream)
{
    enum { LANES = VF32_LANES };
    ptrdiff_t i = 0;
    uint16_t rounded[2 * LANES];
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        vf32 a[2];
        vec_halves h;
        for (int k = 0; k < 2; k++) {
            const uint16_t *p = x + i + k * LANES, *q = residual + i + k * LANES;
            a[k] = brain ? vf32_from_bf16(p) + vf32_from_bf16(q) : vf32_from_f16(p) + vf32_from_f16(q);
        }
        h = brain ? vf32_as_bf16(a[0], a[1]) : vf32_as_f16(a[0], a[1]);
        vec_put_halves(rounded, h);
        if (stream)
            vec_stream_halves(total + i, h);
        else
            vec_put_halves(total + i, h);
        for (int k = 0; k < 2 * LANES; k += LANES)
            *(vf32 *)(y + i + k) = brain ? vf32_from_bf16(rounded + k) : vf32_from_f16(rounded + k);
    }
    if (i < n) vec_add_some(x + i, residual + i, total + i, y + i, n - i, brain);
}
VEC_FN void vec_add_halves(const uint16_t *x, const uint16_t *residual, uint16_t *total, float *y,
                           ptrdiff_t n, int brain, int stream)
{
    if (brain && stream)
        vec_add_run(x, residual, total, y, n, 1, 1);
    else if (brain)
        vec_add_run(x, residual, total, y, n, 1, 0);
    else if (stream)
        vec_add_run(x, residual, total, y, n, 0, 1);
    else
        vec_add_run(x, residual, total, y, n, 0, 0);
}

#endif
