/*
 * Numbers whose bits are part of a promise: conversions between f32, bf16 and f16, and the exponential.
 *
 * Everything here is plain mul, add and integer work with contraction off, so scalar and vector versions of any width
 * give the same bits.
 */
#ifndef LS_BASE_NUMERIC_H
#define LS_BASE_NUMERIC_H

#include <math.h>
#include <string.h>

#include "lockstep.h"

static inline uint32_t f32_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float f32_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float f32_from_bf16(uint16_t half) {
    return f32_from_bits((uint32_t)half << 16);
}

/* Exact for every f16, subnormals too: the exponent is moved by a multiplication. */
static inline float f32_from_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t rest = (uint32_t)(half & 0x7fff) << 13;
    uint32_t special = rest >= 0x0f800000 ? 0x7f800000 : 0; /* infinity and NaN keep all exponent bits set */
    float value = f32_from_bits(rest) * 0x1p112F;
    return f32_from_bits(sign | special | f32_bits(value));
}

/* To nearest, ties to even; NaN stays NaN, overflow becomes infinity. */
static inline uint16_t bf16_from_f32(float value) {
    uint32_t bits = f32_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline uint16_t f16_from_f32(float value) {
    uint32_t bits = f32_bits(value);
    uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x7f800000) {
        return (uint16_t)(sign | 0x7c00 | (bits > 0x7f800000 ? 0x200 : 0));
    }
    if (bits >= 0x47800000) {
        return (uint16_t)(sign | 0x7c00); /* 65536 and more; what lies between 65520 and it rounds up below */
    }
    if (bits < 0x38800000) { /* subnormal: adding 0.5 leaves the value rounded to units of 2^-24 in the low bits */
        return (uint16_t)(sign | (f32_bits(f32_from_bits(bits) + 0.5F) - 0x3f000000));
    }
    return (uint16_t)(sign | (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

/* The value as it would be after a store to dtype and a load. */
static inline float round_to(ls_dtype dtype, float value) {
    return dtype == LS_BF16  ? f32_from_bf16(bf16_from_f32(value))
           : dtype == LS_F16 ? f32_from_f16(f16_from_f32(value))
                             : value;
}

/* Stores and loads element i of an array of dtype. */
static inline void store_as(ls_dtype dtype, void *array, int64_t i, float value) {
    if (dtype == LS_F32) {
        ((float *)array)[i] = value;
    } else {
        ((uint16_t *)array)[i] = dtype == LS_BF16 ? bf16_from_f32(value) : f16_from_f32(value);
    }
}

static inline float load_as(ls_dtype dtype, const void *array, int64_t i) {
    if (dtype == LS_F32) {
        return ((const float *)array)[i];
    }
    uint16_t half = ((const uint16_t *)array)[i];
    return dtype == LS_BF16 ? f32_from_bf16(half) : f32_from_f16(half);
}

/* exp within 1 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial of degree 7 in r (Cephes' expf coefficients; ln 2 in
 * two parts so that n times the first is exact). Below -87.3 it is 0 (no subnormals), above 88.7 infinity. */
static inline float ls_exp(float x) {
    if (!(x > -87.3F)) {
        return x != x ? x : 0.0F;
    }
    if (x > 88.7F) {
        return INFINITY;
    }
    const float round_magic = 12582912.0F; /* 1.5 * 2^23: adding it rounds to an integer */
    float n = (x * 1.44269504F + round_magic) - round_magic;
    float r = x - n * 0.693359375F;
    r = r - n * -2.12194440e-4F;
    float p = 1.9875691500e-4F;
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    float y = (p * (r * r) + r) + 1.0F;
    /* 2^n in two factors: n reaches 128. */
    int32_t half = (int32_t)n / 2;
    return y * f32_from_bits((uint32_t)(half + 127) << 23) * f32_from_bits((uint32_t)((int32_t)n - half + 127) << 23);
}

#endif
