/*
 * The inner loops, compiled once for each instruction set: DOT_ISA is ref, avx2 or avx512 (see the Makefile).
 *
 * The 16 accumulators of ops.h section 2 are one or two vectors of the compiler's own vector extension.
 * Only the fused multiply-add is spelled out, since it is the one operation compilers do not form under
 * -ffp-contract=off. All versions are bit-equal (tests/kern checks it).
 */
#include "backend/cpu/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define TEXT2(a) #a
#define TEXT(a) TEXT2(a)
#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
enum { WIDTH = 16 };
#else
enum { WIDTH = 8 };
#endif
enum { LANES = 16, REGISTERS = LANES / WIDTH };
typedef float f32v __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t u32v __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t u16v __attribute__((vector_size(2 * WIDTH)));

/* *acc = a * b + *acc, rounded once. */
INLINE void fma_v(f32v *acc, const f32v *a, const f32v *b) {
#if defined(__AVX512F__)
    *acc = (f32v)_mm512_fmadd_ps((__m512)*a, (__m512)*b, (__m512)*acc);
#elif defined(__FMA__)
    *acc = (f32v)_mm256_fmadd_ps((__m256)*a, (__m256)*b, (__m256)*acc);
#else
    for (int i = 0; i < WIDTH; i++) {
        (*acc)[i] = fmaf((*a)[i], (*b)[i], (*acc)[i]);
    }
#endif
}

INLINE void load_f32(f32v *out, const float *w) {
    memcpy(out, w, sizeof *out);
}

INLINE void load_bf16(f32v *out, const uint16_t *w) {
    u16v half;
    memcpy(&half, w, sizeof half);
    *out = (f32v)(__builtin_convertvector(half, u32v) << 16);
}

/* As f32_from_f16. */
INLINE void load_f16(f32v *out, const uint16_t *w) {
    u16v half;
    memcpy(&half, w, sizeof half);
    u32v wide = __builtin_convertvector(half, u32v);
    u32v rest = (wide & 0x7fff) << 13;
    u32v special = (u32v)(rest >= 0x0f800000) & 0x7f800000;
    f32v value = (f32v)rest * 0x1p112F;
    *out = (f32v)((wide & 0x8000) << 16 | special | (u32v)value);
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

/* The tail is padded with zeros: fma(0, 0, acc) is acc, but for the sign of a zero, which no sum can show: acc starts at
 * +0 and +0 + -0 is +0. */
#define DEFINE_LOOPS(suffix, type)                                                                                     \
    INLINE void madd_##suffix(f32v *acc, const type *w, const float *x) {                                              \
        for (int r = 0; r < REGISTERS; r++) {                                                                          \
            f32v a, b;                                                                                                 \
            load_##suffix(&a, w + r * WIDTH);                                                                          \
            load_f32(&b, x + r * WIDTH);                                                                               \
            fma_v(&acc[r], &a, &b);                                                                                    \
        }                                                                                                              \
    }                                                                                                                  \
    static float dot_##suffix(const void *data, const float *x, int64_t n) {                                           \
        const type *w = data;                                                                                          \
        f32v acc[REGISTERS] = {{0}};                                                                                   \
        int64_t i = 0;                                                                                                 \
        for (; i + LANES <= n; i += LANES) {                                                                           \
            madd_##suffix(acc, w + i, x + i);                                                                          \
        }                                                                                                              \
        if (i < n) {                                                                                                   \
            type w_tail[LANES] = {0};                                                                                  \
            float x_tail[LANES] = {0};                                                                                 \
            memcpy(w_tail, w + i, (size_t)(n - i) * sizeof *w);                                                        \
            memcpy(x_tail, x + i, (size_t)(n - i) * sizeof *x);                                                        \
            madd_##suffix(acc, w_tail, x_tail);                                                                        \
        }                                                                                                              \
        return sum_lanes(acc);                                                                                         \
    }                                                                                                                  \
    /* n is a head size: a multiple of 16. */                                                                          \
    static void axpy_##suffix(float *y, const void *data, float scale, int64_t n) {                                    \
        const type *w = data;                                                                                          \
        f32v scales = scale - (f32v){0};                                                                               \
        for (int64_t i = 0; i < n; i += WIDTH) {                                                                       \
            f32v a, acc;                                                                                               \
            load_f32(&acc, y + i);                                                                                     \
            load_##suffix(&a, w + i);                                                                                  \
            fma_v(&acc, &a, &scales);                                                                                  \
            memcpy(y + i, &acc, sizeof acc);                                                                           \
        }                                                                                                              \
    }

DEFINE_LOOPS(f32, float)
DEFINE_LOOPS(bf16, uint16_t)
DEFINE_LOOPS(f16, uint16_t)

static uint64_t read_all(const void *data, size_t bytes) {
    enum { STREAMS = 4 };
    const uint8_t *byte = data;
    u32v acc[STREAMS] = {{0}};
    for (size_t i = 0; i + sizeof acc <= bytes; i += sizeof acc) {
        for (int j = 0; j < STREAMS; j++) {
            u32v block;
            memcpy(&block, byte + i + (size_t)j * sizeof block, sizeof block);
            acc[j] ^= block;
        }
    }
    acc[0] ^= acc[1] ^ acc[2] ^ acc[3];
    uint64_t all = 0;
    for (int j = 0; j < WIDTH; j++) {
        all ^= acc[0][j];
    }
    return all;
}

extern const cpu_isa JOIN(cpu_isa, DOT_ISA);
const cpu_isa JOIN(cpu_isa, DOT_ISA) = {
    .name = TEXT(DOT_ISA),
    .dot = {[LS_F32] = dot_f32, [LS_BF16] = dot_bf16, [LS_F16] = dot_f16},
    .axpy = {[LS_F32] = axpy_f32, [LS_BF16] = axpy_bf16, [LS_F16] = axpy_f16},
    .read = read_all,
};
