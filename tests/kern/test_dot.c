/*
 * The inner loops, against the contract's own words (ops.h section 2), bit for bit: 16 accumulators filled in turn by
 * fma, then added up + 8, + 4, + 2, + 1. Every instruction set, every dtype, all lengths up to 600, any alignment.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "backend/cpu/cpu.h"

enum { MAX_N = 600, MAX_HEAD = 256 };

static const char *const ISAS[] = {"ref", "avx2", "avx512"};
enum { N_ISAS = 3 };

static float contract_dot(const float *w, const float *x, int64_t n) {
    float acc[16] = {0};
    for (int64_t i = 0; i < n; i++) {
        acc[i % 16] = fmaf(w[i], x[i], acc[i % 16]);
    }
    for (int half = 8; half > 0; half /= 2) {
        for (int j = 0; j < half; j++) {
            acc[j] += acc[j + half];
        }
    }
    return acc[0];
}

/* Bits of a finite number of dtype, of any size: exponents within 2^-20 and 2^10. */
static float random_value(uint64_t *state, ls_dtype dtype) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    uint32_t bits = (uint32_t)(*state >> 32);
    uint32_t exponent = 127 - (dtype == LS_F16 ? 13 : 20) + bits % 24;
    return round_to(dtype, f32_from_bits((bits & 0x807fffff) | exponent << 23));
}

/* w is stored right before x's first element's cache line is over: no alignment but the element's. */
static void check_isa(const cpu_isa *isa, ls_dtype dtype) {
    uint64_t state = 1;
    const size_t element = ls_dtype_bytes(dtype);
    for (int64_t n = 0; n <= MAX_N; n++) {
        /* Exactly n elements behind one that is skipped, so that AddressSanitizer sees any read outside. */
        uint8_t *stored = malloc((size_t)(n + 1) * element);
        float *x = malloc((size_t)(n + 1) * sizeof *x), *w = malloc((size_t)(n + 1) * sizeof *w);
        for (int64_t i = 0; i <= n; i++) {
            w[i] = random_value(&state, dtype);
            x[i] = random_value(&state, LS_F32);
            store_as(dtype, stored, i, w[i]);
        }
        float got = isa->dot[dtype](stored + element, x + 1, n);
        float wanted = contract_dot(w + 1, x + 1, n);
        if (f32_bits(got) != f32_bits(wanted)) {
            fail_msg("%s %s n = %d: %a, not %a", isa->name, ls_dtype_name(dtype), (int)n, (double)got, (double)wanted);
        }
        free(stored);
        free(x);
        free(w);
    }
}

static void test_dot_has_the_contracts_bits(void **state) {
    (void)state;
    for (int i = 0; i < N_ISAS; i++) {
        const cpu_isa *isa = cpu_isa_find(ISAS[i]);
        for (ls_dtype dtype = LS_F32; isa != NULL && dtype <= LS_F16; dtype++) {
            check_isa(isa, dtype);
        }
    }
}

static void test_axpy_is_fma(void **state) {
    (void)state;
    uint64_t seed = 2;
    for (int i = 0; i < N_ISAS; i++) {
        const cpu_isa *isa = cpu_isa_find(ISAS[i]);
        for (ls_dtype dtype = LS_F32; isa != NULL && dtype <= LS_F16; dtype++) {
            for (int n = 16; n <= MAX_HEAD; n += 16) {
                float y[MAX_HEAD + 1], wanted[MAX_HEAD + 1], stored[MAX_HEAD];
                float a = random_value(&seed, LS_F32);
                y[n] = wanted[n] = 7; /* behind the end */
                for (int j = 0; j < n; j++) {
                    float w = random_value(&seed, dtype);
                    y[j] = random_value(&seed, LS_F32);
                    wanted[j] = fmaf(a, w, y[j]);
                    store_as(dtype, stored, j, w);
                }
                isa->axpy[dtype](y, stored, a, n);
                assert_memory_equal(y, wanted, (size_t)(n + 1) * sizeof *y);
            }
        }
    }
}

/* Subnormal halves, infinity and NaN reach the sum as they are. */
static void test_special_halves(void **state) {
    (void)state;
    for (int i = 0; i < N_ISAS; i++) {
        const cpu_isa *isa = cpu_isa_find(ISAS[i]);
        for (int n = 1; isa != NULL && n <= 17; n += 16) {
            uint16_t w[17] = {0};
            float x[17] = {0};
            x[n - 1] = 1;
            for (uint32_t half = 0; half < 0x10000; half++) {
                w[n - 1] = (uint16_t)half;
                float f16 = isa->dot[LS_F16](w, x, n), bf16 = isa->dot[LS_BF16](w, x, n);
                float f16_wanted = f32_from_f16((uint16_t)half), bf16_wanted = f32_from_bf16((uint16_t)half);
                assert_true(f16 == f16_wanted || (f16 != f16 && f16_wanted != f16_wanted));
                assert_true(bf16 == bf16_wanted || (bf16 != bf16 && bf16_wanted != bf16_wanted));
            }
        }
    }
}

/* read() must touch every cache line: changing one byte of it changes the result. */
static void test_read_reads_all(void **state) {
    (void)state;
    enum { BYTES = 64 * 64 };
    uint8_t *data = calloc(1, BYTES);
    for (int i = 0; i < N_ISAS; i++) {
        const cpu_isa *isa = cpu_isa_find(ISAS[i]);
        for (int at = 0; isa != NULL && at < BYTES; at += 64) {
            uint64_t before = isa->read(data, BYTES);
            data[at] ^= 1;
            assert_int_not_equal(before, isa->read(data, BYTES));
        }
    }
    free(data);
}

static void test_every_machine_has_ref(void **state) {
    (void)state;
    assert_non_null(cpu_isa_find("ref"));
    assert_null(cpu_isa_find("avx"));
    assert_non_null(cpu_isa_best());
    assert_ptr_equal(cpu_isa_find(cpu_isa_best()->name), cpu_isa_best());
}

int main(void) {
    const char *only = getenv("LS_KERN");
    if (only != NULL && only[0] != '\0') {
        return 0; /* no op's test */
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dot_has_the_contracts_bits),
        cmocka_unit_test(test_axpy_is_fma),
        cmocka_unit_test(test_special_halves),
        cmocka_unit_test(test_read_reads_all),
        cmocka_unit_test(test_every_machine_has_ref),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
