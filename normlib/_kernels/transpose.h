/* Transposing a square of vectors, in registers: log2(lanes) passes, each of which exchanges the bit
 * of an element's row for the same bit of its lane. */
#ifndef NORMLIB_TRANSPOSE_H
#define NORMLIB_TRANSPOSE_H

#include "vec.h"

#if VEC_BYTES
#if defined(__clang__)
#define VEC_SHUFFLE(I, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define VEC_SHUFFLE(I, a, b, ...) __builtin_shuffle(a, b, (I){__VA_ARGS__})
#endif

/* Rows a and b, whose numbers differ in that bit alone. */
#define VEC_DEFINE_EXCHANGE(V, I, BIT, LOW, HIGH)                                     \
    VEC_FN void V##_exchange_##BIT(V *a, V *b)                                        \
    {                                                                                 \
        V low = VEC_SHUFFLE(I, *a, *b, LOW);                                          \
        *b = VEC_SHUFFLE(I, *a, *b, HIGH);                                            \
        *a = low;                                                                     \
    }
#define VEC_LIST(...) __VA_ARGS__

#define VEC_DEFINE_EXCHANGES_2(V, I)                                                  \
    VEC_DEFINE_EXCHANGE(V, I, 1, VEC_LIST(0, 2), VEC_LIST(1, 3))
#define VEC_DEFINE_EXCHANGES_4(V, I)                                                  \
    VEC_DEFINE_EXCHANGE(V, I, 1, VEC_LIST(0, 4, 2, 6), VEC_LIST(1, 5, 3, 7))          \
    VEC_DEFINE_EXCHANGE(V, I, 2, VEC_LIST(0, 1, 4, 5), VEC_LIST(2, 3, 6, 7))
#define VEC_DEFINE_EXCHANGES_8(V, I)                                                  \
    VEC_DEFINE_EXCHANGE(V, I, 1, VEC_LIST(0, 8, 2, 10, 4, 12, 6, 14),                 \
                        VEC_LIST(1, 9, 3, 11, 5, 13, 7, 15))                          \
    VEC_DEFINE_EXCHANGE(V, I, 2, VEC_LIST(0, 1, 8, 9, 4, 5, 12, 13),                  \
                        VEC_LIST(2, 3, 10, 11, 6, 7, 14, 15))                         \
    VEC_DEFINE_EXCHANGE(V, I, 4, VEC_LIST(0, 1, 2, 3, 8, 9, 10, 11),                  \
                        VEC_LIST(4, 5, 6, 7, 12, 13, 14, 15))
#define VEC_DEFINE_EXCHANGES_16(V, I)                                                 \
    VEC_DEFINE_EXCHANGE(V, I, 1,                                                      \
                        VEC_LIST(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30), \
                        VEC_LIST(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)) \
    VEC_DEFINE_EXCHANGE(V, I, 2,                                                      \
                        VEC_LIST(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29), \
                        VEC_LIST(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)) \
    VEC_DEFINE_EXCHANGE(V, I, 4,                                                      \
                        VEC_LIST(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27), \
                        VEC_LIST(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31)) \
    VEC_DEFINE_EXCHANGE(V, I, 8,                                                      \
                        VEC_LIST(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23), \
                        VEC_LIST(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))

#define VEC_PASS(V, LANES, BIT)                                                       \
    for (int i = 0; i < LANES; i++)                                                   \
        if (!(i & BIT)) V##_exchange_##BIT(rows + i, rows + i + BIT);
#define VEC_PASSES_2(V, LANES) VEC_PASS(V, LANES, 1)
#define VEC_PASSES_4(V, LANES) VEC_PASSES_2(V, LANES) VEC_PASS(V, LANES, 2)
#define VEC_PASSES_8(V, LANES) VEC_PASSES_4(V, LANES) VEC_PASS(V, LANES, 4)
#define VEC_PASSES_16(V, LANES) VEC_PASSES_8(V, LANES) VEC_PASS(V, LANES, 8)

/* Sums over lanes, by halves: of each of as many rows as there are lanes, which are overwritten, that
 * of row r in lane r; or of one row, in every lane. The bits are the same. */
#define VEC_HALVE(V, BIT)                                                             \
    for (int i = 0; i < BIT; i++) {                                                   \
        V##_exchange_##BIT(rows + i, rows + i + BIT);                                 \
        rows[i] = rows[i] + rows[i + BIT];                                            \
    }
#define VEC_HALVES_2(V) VEC_HALVE(V, 1)
#define VEC_HALVES_4(V) VEC_HALVE(V, 2) VEC_HALVES_2(V)
#define VEC_HALVES_8(V) VEC_HALVE(V, 4) VEC_HALVES_4(V)
#define VEC_HALVES_16(V) VEC_HALVE(V, 8) VEC_HALVES_8(V)
#define VEC_HALVE_ONE(V, BIT)                                                         \
    other = row;                                                                      \
    V##_exchange_##BIT(&row, &other);                                                 \
    row = row + other;
#define VEC_HALVES_ONE_2(V) VEC_HALVE_ONE(V, 1)
#define VEC_HALVES_ONE_4(V) VEC_HALVE_ONE(V, 2) VEC_HALVES_ONE_2(V)
#define VEC_HALVES_ONE_8(V) VEC_HALVE_ONE(V, 4) VEC_HALVES_ONE_4(V)
#define VEC_HALVES_ONE_16(V) VEC_HALVE_ONE(V, 8) VEC_HALVES_ONE_8(V)
#define VEC_DEFINE_TRANSPOSE(V, I, LANES)                                             \
    VEC_DEFINE_EXCHANGES_##LANES(V, I)                                                \
    VEC_FN void V##_transpose(V *rows) { VEC_PASSES_##LANES(V, LANES) }               \
    VEC_FN V V##_sum_rows(V *rows) { VEC_HALVES_##LANES(V) return rows[0]; }          \
    VEC_FN V V##_sum_row(V row) { V other; VEC_HALVES_ONE_##LANES(V) return row; }

#if VEC_BYTES == 64
VEC_DEFINE_TRANSPOSE(vf32, vi32, 16)
VEC_DEFINE_TRANSPOSE(vf64, vi64, 8)
#elif VEC_BYTES == 32
VEC_DEFINE_TRANSPOSE(vf32, vi32, 8)
VEC_DEFINE_TRANSPOSE(vf64, vi64, 4)
#else
VEC_DEFINE_TRANSPOSE(vf32, vi32, 4)
VEC_DEFINE_TRANSPOSE(vf64, vi64, 2)
#endif

#else
VEC_FN void vf32_transpose(vf32 *rows) { (void)rows; }
VEC_FN void vf64_transpose(vf64 *rows) { (void)rows; }
VEC_FN vf32 vf32_sum_rows(vf32 *rows) { return rows[0]; }
VEC_FN vf64 vf64_sum_rows(vf64 *rows) { return rows[0]; }
VEC_FN vf32 vf32_sum_row(vf32 row) { return row; }
VEC_FN vf64 vf64_sum_row(vf64 row) { return row; }
#endif

#endif
