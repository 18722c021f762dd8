/*
 * Vectors of the compiler's own extension, as wide as the instruction set has them; for isa_tmpl.c.
 *
 * Only what compilers do not form by themselves is spelled out: the fused multiply-add (-ffp-contract=off) and the
 * conversions of f16. The rest is the arithmetic of base/numeric.h, element by element, and gives its bits.
 */
#ifndef LS_BACKEND_CPU_VEC_TMPL_H
#define LS_BACKEND_CPU_VEC_TMPL_H

#include "backend/cpu/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
enum { WIDTH = 16 };
#else
enum { WIDTH = 8 };
#endif
enum { LANES = 16, REGISTERS = LANES / WIDTH };
typedef float f32v __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t u32v __attribute__((vector_size(4 * WIDTH)));
typedef int32_t i32v __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t u16v __attribute__((vector_size(2 * WIDTH)));
typedef int8_t i8v __attribute__((vector_size(WIDTH)));
typedef float f32x4 __attribute__((vector_size(16)));

INLINE f32v splat(float value) {
    return value - (f32v){0};
}

/* a * b + c, rounded once. */
INLINE f32v fma_v(f32v a, f32v b, f32v c) {
#if defined(__AVX512F__)
    return (f32v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (f32v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < WIDTH; i++) {
        c[i] = fmaf(a[i], b[i], c[i]);
    }
    return c;
#endif
}

/* ---- Loads and stores of each format ---- */

INLINE f32v load_f32(const float *from) {
    f32v out;
    memcpy(&out, from, sizeof out);
    return out;
}

INLINE f32v load_bf16(const uint16_t *from) {
    u16v half;
    memcpy(&half, from, sizeof half);
    return (f32v)(__builtin_convertvector(half, u32v) << 16);
}

/* As f32_from_f16. */
INLINE f32v load_f16(const uint16_t *from) {
    u16v half;
    memcpy(&half, from, sizeof half);
#if defined(__AVX512F__)
    return (f32v)_mm512_cvtph_ps((__m256i)half);
#elif defined(__F16C__)
    return (f32v)_mm256_cvtph_ps((__m128i)half);
#else
    u32v wide = __builtin_convertvector(half, u32v);
    u32v rest = (wide & 0x7fff) << 13;
    u32v special = (u32v)(rest >= 0x0f800000) & 0x7f800000;
    f32v value = (f32v)rest * 0x1p112F;
    return (f32v)((wide & 0x8000) << 16 | special | (u32v)value);
#endif
}

INLINE f32v load_int8(const int8_t *from) {
    i8v byte;
    memcpy(&byte, from, sizeof byte);
#if defined(__AVX512F__)
    i32v wide = (i32v)_mm512_cvtepi8_epi32((__m128i)byte);
#elif defined(__AVX2__)
    i32v wide = (i32v)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)&byte));
#else
    i32v wide = __builtin_convertvector(byte, i32v);
#endif
    return __builtin_convertvector(wide, f32v);
}

INLINE void store_f32(float *to, f32v value) {
    memcpy(to, &value, sizeof value);
}

/* As bf16_from_f32. */
INLINE void store_bf16(uint16_t *to, f32v value) {
    u32v bits = (u32v)value;
    u32v is_nan = (u32v)((bits & 0x7fffffff) > 0x7f800000);
    u32v rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    u16v half = __builtin_convertvector((is_nan & (bits >> 16 | 0x40)) | (~is_nan & rounded), u16v);
    memcpy(to, &half, sizeof half);
}

/* As f16_from_f32. */
INLINE void store_f16(uint16_t *to, f32v value) {
#if defined(__AVX512F__)
    __m256i half = _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    memcpy(to, &half, sizeof half);
#elif defined(__F16C__)
    __m128i half = _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
    memcpy(to, &half, sizeof half);
#else
    for (int i = 0; i < WIDTH; i++) {
        to[i] = f16_from_f32(value[i]);
    }
#endif
}

/* As round_to. */
INLINE f32v round_v(ls_dtype dtype, f32v value) {
    uint16_t half[WIDTH];
    if (dtype == LS_BF16) {
        store_bf16(half, value);
        return load_bf16(half);
    }
    if (dtype == LS_F16) {
        store_f16(half, value);
        return load_f16(half);
    }
    return value;
}

INLINE void store_as_v(ls_dtype dtype, void *array, int64_t i, f32v value) {
    if (dtype == LS_F32) {
        store_f32((float *)array + i, value);
    } else if (dtype == LS_BF16) {
        store_bf16((uint16_t *)array + i, value);
    } else {
        store_f16((uint16_t *)array + i, value);
    }
}

/* ---- Arithmetic ---- */

/* a where the mask is set, else b. */
INLINE f32v select_v(i32v mask, f32v a, f32v b) {
    return (f32v)((mask & (i32v)a) | (~mask & (i32v)b));
}

/* As ls_exp. */
INLINE f32v exp_v(f32v x) {
    f32v n = (x * 1.44269504F + 12582912.0F) - 12582912.0F;
    f32v r = x - n * 0.693359375F;
    r = r - n * -2.12194440e-4F;
    f32v p = r * 1.9875691500e-4F + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    f32v y = (p * (r * r) + r) + 1.0F;
    i32v whole = __builtin_convertvector(n, i32v);
    i32v half = (whole + (i32v)((u32v)whole >> 31)) >> 1; /* whole / 2 */
    y = y * (f32v)((half + 127) << 23) * (f32v)((whole - half + 127) << 23);
    y = select_v(x > 88.7F, splat(INFINITY), y);
    y = select_v(x > -87.3F, y, splat(0));
    return select_v(x == x, y, x);
}

/* Whether no exponent is all ones. */
INLINE bool finite_v(f32v value) {
    i32v bad = (i32v)(((u32v)value & 0x7f800000) == 0x7f800000);
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)bad, (__m512i)bad) == 0;
#else
    int any = 0;
    for (int i = 0; i < WIDTH; i++) {
        any |= bad[i];
    }
    return any == 0;
#endif
}

/* acc[j] += acc[j + 8], + 4, + 2, + 1, for four sums at once: lanes[i] are the 16 accumulators of sum i. */
INLINE f32x4 sum_lanes_4(f32v lanes[4][REGISTERS]) {
#if defined(__AVX512F__)
    const __m512 a = (__m512)lanes[0][0], b = (__m512)lanes[1][0], c = (__m512)lanes[2][0], d = (__m512)lanes[3][0];
    const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4e));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xb1));
    const __m512i firsts = _mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12));
    return (f32x4)_mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, all));
#else
    f32x4 a[4];
    for (int i = 0; i < 4; i++) {
        f32x4 part[4];
        memcpy(part, lanes[i], sizeof part);
        a[i] = (part[0] + part[2]) + (part[1] + part[3]);
    }
    f32x4 low01 = __builtin_shufflevector(a[0], a[1], 0, 1, 4, 5),
          high01 = __builtin_shufflevector(a[0], a[1], 2, 3, 6, 7);
    f32x4 low23 = __builtin_shufflevector(a[2], a[3], 0, 1, 4, 5),
          high23 = __builtin_shufflevector(a[2], a[3], 2, 3, 6, 7);
    f32x4 sum01 = low01 + high01, sum23 = low23 + high23;
    return __builtin_shufflevector(sum01, sum23, 0, 2, 4, 6) + __builtin_shufflevector(sum01, sum23, 1, 3, 5, 7);
#endif
}

INLINE float sum_lanes(const f32v *lanes) {
    float acc[LANES];
    memcpy(acc, lanes, sizeof acc);
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int j = 0; j < half; j++) {
            acc[j] += acc[j + half];
        }
    }
    return acc[0];
}

#endif
