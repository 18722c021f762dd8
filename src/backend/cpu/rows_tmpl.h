/* Loops of isa_tmpl.c over rows of numbers: norms, activations, quantising, and what loading weights takes. */
#ifndef LS_BACKEND_CPU_ROWS_TMPL_H
#define LS_BACKEND_CPU_ROWS_TMPL_H

#include "backend/cpu/vec_tmpl.h"

/* The floats from x on, `left` of them, in whole vectors: where fewer are left they are copied out, with zeros behind. */
INLINE f32v load_some(const float *x, int64_t left) {
    float some[WIDTH] = {0};
    return left >= WIDTH ? load_f32(x) : load_f32(memcpy(some, x, (size_t)left * sizeof *x));
}

INLINE void store_some(float *to, int64_t left, f32v value) {
    memcpy(to, &value, (size_t)(left < WIDTH ? left : WIDTH) * sizeof *to);
}

/* Of magnitudes as bits: they rise as the numbers do, then come infinity and NaN. */
INLINE i32v larger_bits(i32v most, f32v value) {
    i32v bits = (i32v)value & 0x7fffffff;
    i32v mask = bits > most;
    return (mask & bits) | (~mask & most);
}

INLINE int32_t largest(i32v most) {
    int32_t all = 0;
    for (int i = 0; i < WIDTH; i++) {
        all = most[i] > all ? most[i] : all;
    }
    return all;
}

INLINE void norm_as(ls_dtype dtype, const float *h, const float *w, float scale, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += WIDTH) {
        f32v value = load_some(h + i, n - i) * scale * load_some(w + i, n - i);
        store_some(out + i, n - i, round_v(dtype, value));
    }
}

static void norm(const float *h, const float *w, float scale, int64_t n, ls_dtype dtype, float *out) {
    switch (dtype) {
    case LS_BF16:
        norm_as(LS_BF16, h, w, scale, n, out);
        break;
    case LS_F16:
        norm_as(LS_F16, h, w, scale, n, out);
        break;
    default:
        norm_as(LS_F32, h, w, scale, n, out);
        break;
    }
}

static void silu(const float *gate, const float *up, int64_t n, ls_dtype dtype, float *out) {
    for (int64_t i = 0; i < n; i += WIDTH) {
        f32v g = load_some(gate + i, n - i);
        f32v value = g / (1.0F + exp_v(-g)) * load_some(up + i, n - i);
        store_some(out + i, n - i, round_v(dtype, value));
    }
}

static bool all_finite(const float *x, int64_t n) {
    i32v most = {0};
    for (int64_t i = 0; i < n; i += WIDTH) {
        most = larger_bits(most, load_some(x + i, n - i));
    }
    return largest(most) < 0x7f800000;
}

static float quantize(const float *x, int64_t n, int8_t *q) {
    i32v most = {0};
    for (int64_t i = 0; i < n; i += WIDTH) {
        most = larger_bits(most, load_some(x + i, n - i));
    }
    const float scale = f32_from_bits((uint32_t)largest(most)) / 127.0F;
    if (!(scale > 0.0F && scale < INFINITY)) {
        memset(q, 0, (size_t)n);
        return scale;
    }
    const float round_magic = 12582912.0F; /* as in ls_exp */
    for (int64_t i = 0; i < n; i += WIDTH) {
        f32v value = load_some(x + i, n - i) / scale;
        value = select_v(value > 127.0F, splat(127.0F), value);
        value = select_v(value < -127.0F, splat(-127.0F), value);
        i32v whole = (i32v)(value + round_magic) - (i32v)splat(round_magic);
#if defined(__AVX512F__)
        const __m128i byte = _mm512_cvtepi32_epi8((__m512i)whole);
#else
        const i8v byte = __builtin_convertvector(whole, i8v);
#endif
        memcpy(q + i, &byte, (size_t)(n - i < WIDTH ? n - i : WIDTH));
    }
    return scale;
}

/* ---- Loading ---- */

static bool copy(ls_dtype dtype, const void *from, int64_t n, void *to) {
    const uint32_t exponent = dtype == LS_F32 ? 0x7f800000 : dtype == LS_BF16 ? 0x7f807f80 : 0x7c007c00;
    const size_t bytes = (size_t)n * ls_dtype_bytes(dtype), step = sizeof(u32v);
    const uint8_t *in = from;
    uint8_t *out = to;
    u32v bad = {0};
    for (size_t i = 0; i < bytes; i += step) {
        u32v word = {0};
        const size_t left = bytes - i < step ? bytes - i : step;
        memcpy(&word, in + i, left);
        memcpy(out + i, &word, left);
        if (dtype == LS_F32) {
            bad |= (u32v)((word & exponent) == exponent);
        } else {
            bad |= (u32v)((word & exponent & 0xffff) == (exponent & 0xffff)) |
                   (u32v)((word & exponent & 0xffff0000) == (exponent & 0xffff0000));
        }
    }
    uint32_t any = 0;
    for (int i = 0; i < WIDTH; i++) {
        any |= bad[i];
    }
    return any == 0;
}

#define DEFINE_WIDEN(suffix, type)                                                                                     \
    static void widen_row_##suffix(const uint8_t *from, int64_t n, float *to) {                                        \
        for (int64_t i = 0; i < n; i += WIDTH) {                                                                       \
            type some[WIDTH] = {0}; /* tensors lie at any byte */                                                      \
            memcpy(some, from + (size_t)i * sizeof(type), (size_t)(n - i < WIDTH ? n - i : WIDTH) * sizeof(type));     \
            store_some(to + i, n - i, load_##suffix(some));                                                            \
        }                                                                                                              \
    }
DEFINE_WIDEN(f32, float)
DEFINE_WIDEN(bf16, uint16_t)
DEFINE_WIDEN(f16, uint16_t)
DEFINE_WIDEN(int8, int8_t)

static void widen(ls_dtype dtype, const void *from, int64_t n, float *to) {
    switch (dtype) {
    case LS_F32:
        widen_row_f32(from, n, to);
        break;
    case LS_BF16:
        widen_row_bf16(from, n, to);
        break;
    case LS_F16:
        widen_row_f16(from, n, to);
        break;
    default:
        widen_row_int8(from, n, to);
        break;
    }
}

static bool narrow(ls_dtype dtype, const float *from, int64_t n, void *to) {
    const size_t element = ls_dtype_bytes(dtype);
    i32v most = {0};
    for (int64_t i = 0; i < n; i += WIDTH) {
        float some[WIDTH];
        f32v value = load_some(from + i, n - i);
        store_as_v(dtype, some, 0, value);
        memcpy((uint8_t *)to + (size_t)i * element, some, (size_t)(n - i < WIDTH ? n - i : WIDTH) * element);
        most = larger_bits(most, round_v(dtype, value));
    }
    return largest(most) < 0x7f800000;
}

static void dummy(uint64_t hash, int64_t first, float offset, float scale, ls_dtype dtype, int64_t n, float *to) {
    typedef uint64_t u64v __attribute__((vector_size(8 * WIDTH)));
    const uint64_t golden = 0x9E3779B97F4A7C15;
    u64v lane;
    for (int i = 0; i < WIDTH; i++) {
        lane[i] = (uint64_t)i * golden;
    }
    for (int64_t i = 0; i < n; i += WIDTH) {
        u64v x = lane + (hash + (uint64_t)(first + i + 1) * golden);
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
        x = (x ^ x >> 27) * 0x94D049BB133111EB;
        x ^= x >> 31;
        f32v unit = __builtin_convertvector(__builtin_convertvector(x >> 40, u32v), f32v) * 0x1p-24F;
        store_some(to + i, n - i, round_v(dtype, offset + scale * (2.0F * unit - 1.0F)));
    }
}

#endif
