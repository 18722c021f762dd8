/* See measure.h. Twelve chains hide the latency of a fused multiply-add (4 or 5 cycles on two ports). */
#include "backend/cpu/measure.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { CHAINS = 12 };
#define EACH_CHAIN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

/* x = x a + b goes to b / (1 - a): it stays a normal number for ever. */
static const float START = 1.0F, FACTOR = 0.5F, SUMMAND = 0.25F;

static float run_ref(int64_t n) {
#define DECLARE(i) float x##i = START + (i);
#define STEP(i) x##i = fmaf(x##i, FACTOR, SUMMAND);
#define ADD(i) +x##i
    EACH_CHAIN(DECLARE)
    for (int64_t k = 0; k < n; k++) {
        EACH_CHAIN(STEP)
    }
    return 0.0F EACH_CHAIN(ADD);
#undef DECLARE
#undef STEP
#undef ADD
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static float run_avx2(int64_t n) {
    const __m256 a = _mm256_set1_ps(FACTOR), b = _mm256_set1_ps(SUMMAND);
#define DECLARE(i) __m256 x##i = _mm256_set1_ps(START + (i));
#define STEP(i) x##i = _mm256_fmadd_ps(x##i, a, b);
#define ADD(i) +_mm256_cvtss_f32(x##i)
    EACH_CHAIN(DECLARE)
    for (int64_t k = 0; k < n; k++) {
        EACH_CHAIN(STEP)
    }
    return 0.0F EACH_CHAIN(ADD);
#undef DECLARE
#undef STEP
#undef ADD
}

__attribute__((target("avx512f"))) static float run_avx512(int64_t n) {
    const __m512 a = _mm512_set1_ps(FACTOR), b = _mm512_set1_ps(SUMMAND);
#define DECLARE(i) __m512 x##i = _mm512_set1_ps(START + (i));
#define STEP(i) x##i = _mm512_fmadd_ps(x##i, a, b);
#define ADD(i) +_mm512_cvtss_f32(x##i)
    EACH_CHAIN(DECLARE)
    for (int64_t k = 0; k < n; k++) {
        EACH_CHAIN(STEP)
    }
    return 0.0F EACH_CHAIN(ADD);
#undef DECLARE
#undef STEP
#undef ADD
}
#endif

int64_t cpu_multiply_add(const cpu_isa *isa, int64_t n, float *sink) {
#if defined(__x86_64__)
    if (strcmp(isa->name, "avx512") == 0) {
        *sink = run_avx512(n);
        return (int64_t)2 * CHAINS * 16;
    }
    if (strcmp(isa->name, "avx2") == 0) {
        *sink = run_avx2(n);
        return (int64_t)2 * CHAINS * 8;
    }
#endif
    (void)isa;
    *sink = run_ref(n);
    return (int64_t)2 * CHAINS;
}
