/* Half types in memory, float16 (IEEE) and bfloat16 ("brain"), as vectors of float and back, rounded to
 * nearest, ties to even; a NaN stays one.
 */
#ifndef NORMLIB_HALVES_H
#define NORMLIB_HALVES_H

#include "vec.h"

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
