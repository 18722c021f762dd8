/*
 * The inner loops, against the contract's own words (ops.h section 2), bit for bit: 16 accumulators filled in turn by
 * fma, then added up + 8, + 4, + 2, + 1, then the leaf tree. Every instruction set and format, all lengths, rows of w
 * that are no multiple of four, one row of x and many, any alignment. And the loops over rows of numbers, against
 * base/numeric.h.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "backend/cpu/cpu.h"

enum { MAX_N = 600, MAX_HEAD = 256 };

static const char *const ISAS[] = {"ref", "avx2", "avx512"};
enum { N_ISAS = 3 };

static float add_lanes(float acc[16]) {
    for (int half = 8; half > 0; half /= 2) {
        for (int j = 0; j < half; j++) {
            acc[j] += acc[j + half];
        }
    }
    return acc[0];
}

static float contract_dot(const float *w, const float *x, int64_t n) {
    float acc[16] = {0};
    for (int64_t i = 0; i < n; i++) {
        acc[i % 16] = fmaf(w[i], x[i], acc[i % 16]);
    }
    return add_lanes(acc);
}

static uint32_t random_bits(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

/* Bits of a finite number of dtype, of any size: exponents within 2^-20 and 2^10. */
static float random_value(uint64_t *state, ls_dtype dtype) {
    uint32_t bits = random_bits(state);
    uint32_t exponent = 127 - (dtype == LS_F16 ? 13 : 20) + bits % 24;
    return round_to(dtype, f32_from_bits((bits & 0x807fffff) | exponent << 23));
}

/* Exactly n elements behind one that is skipped, so that AddressSanitizer sees any read outside. */
static void *malloc_odd(int64_t n, size_t element) {
    return malloc((size_t)(n + 1) * element);
}

static void check_isa(const cpu_isa *isa, ls_dtype dtype) {
    uint64_t state = 1;
    const size_t element = ls_dtype_bytes(dtype);
    for (int64_t n = 0; n <= MAX_N; n++) {
        uint8_t *stored = malloc_odd(n, element);
        float *x = malloc_odd(n, sizeof *x), *w = malloc_odd(n, sizeof *w);
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

static void assert_same_float(float got, float wanted, const char *isa, const char *what, float of) {
    if (f32_bits(got) != f32_bits(wanted) && !(got != got && wanted != wanted)) {
        fail_msg("%s: %s of %a is %a, not %a", isa, what, (double)of, (double)got, (double)wanted);
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

/* ---- Matmuls ---- */

typedef struct product {
    ls_dtype format;
    bool quantize_x;
    int64_t rows, cols, n_x;
    int n_leaves;
} product;

/* What the contract gives for one element. */
static float contract_element(const product *p, const cpu_leaves *leaves, const float *w, const float *scale,
                              const float *x, const cpu_xq *xq) {
    float leaf[LS_LEAVES];
    for (int i = 0; i < leaves->count; i++) {
        const int64_t from = leaves->border[i], n = leaves->border[i + 1] - from;
        if (p->quantize_x) {
            int64_t sum = 0;
            for (int64_t k = from; k < from + n; k++) {
                sum += (int64_t)w[k] * xq->q[k];
            }
            leaf[i] = (float)sum * (scale[i] * xq->scale[i]);
        } else {
            leaf[i] = contract_dot(w + from, x + from, n);
            leaf[i] *= scale != NULL ? scale[i] : 1.0F;
        }
    }
    return leaf_tree(leaf, leaves->count);
}

static void check_product(const cpu_isa *isa, const product *p, uint64_t *state) {
    const int64_t n_w = p->rows * p->cols, first = p->rows > 2 ? 1 : 0;
    const size_t element = ls_dtype_bytes(p->format);
    uint8_t *stored = malloc_odd(n_w, element);
    float *w = malloc_odd(n_w, sizeof *w), *x = malloc_odd(p->n_x * p->cols, sizeof *x);
    float *scale = malloc_odd(p->rows * p->n_leaves, sizeof *scale);
    float *y = malloc((size_t)(p->n_x * p->rows + 1) * sizeof *y);
    cpu_leaves leaves = {.count = 1, .border = {0, p->cols}};
    if (p->n_leaves > 1) {
        leaves = leaves_of(p->cols * LS_LEAVES / p->n_leaves, 0, p->n_leaves);
        for (int i = 0; i <= p->n_leaves; i++) {
            leaves.border[i] = i == p->n_leaves || leaves.border[i] > p->cols ? p->cols : leaves.border[i];
        }
    }
    for (int64_t i = 0; i <= n_w; i++) {
        if (p->format == LS_INT8) { /* -127 and 127 among them: the largest products */
            int q = (int)(random_bits(state) % 300) - 150;
            w[i] = (float)(q > 127 ? 127 : q < -127 ? -127 : q);
            ((int8_t *)stored)[i] = (int8_t)w[i];
        } else {
            w[i] = random_value(state, p->format);
            store_as(p->format, stored, i, w[i]);
        }
    }
    for (int64_t i = 0; i <= p->rows * p->n_leaves; i++) {
        scale[i] = random_value(state, LS_F32);
    }
    for (int64_t i = 0; i <= p->n_x * p->cols; i++) {
        x[i] = random_value(state, LS_F32);
    }
    uint8_t *xq = p->quantize_x ? malloc((size_t)p->n_x * xq_row_bytes(p->cols)) : NULL;
    for (int64_t m = 0; m < p->n_x && xq != NULL; m++) {
        for (int leaf = 0; leaf < leaves.count; leaf++) {
            ref_quantize(isa, x + 1 + m * p->cols, &leaves, leaf, xq_row(xq, p->cols, m));
        }
    }
    const bool scaled = p->format == LS_INT8;
    const ls_weight weight = {.format = p->format,
                              .data = stored + element,
                              .scale = scaled ? scale + 1 : NULL,
                              .rows = (int)p->rows,
                              .cols = (int)p->cols};
    const cpu_matmul job = {&weight, leaves, first, p->rows, x + 1, p->cols, p->n_x, y, p->rows - first, xq};
    y[p->n_x * (p->rows - first)] = 7; /* behind the end */
    isa->matmul(&job);
    assert_true(y[p->n_x * (p->rows - first)] == 7);
    for (int64_t m = 0; m < p->n_x; m++) {
        for (int64_t n = first; n < p->rows; n++) {
            float got = y[m * (p->rows - first) + n - first];
            float wanted =
                contract_element(p, &leaves, w + 1 + n * p->cols, scaled ? scale + 1 + n * leaves.count : NULL,
                                 x + 1 + m * p->cols, xq == NULL ? NULL : xq_row(xq, p->cols, m));
            if (f32_bits(got) != f32_bits(wanted)) {
                fail_msg("%s %s%s [%d][%d] x %d, %d leaves: row %d of w, %d of x: %a, not %a", isa->name,
                         ls_dtype_name(p->format), p->quantize_x ? " x int8" : "", (int)p->rows, (int)p->cols,
                         (int)p->n_x, p->n_leaves, (int)n, (int)m, (double)got, (double)wanted);
            }
        }
    }
    free(xq);
    free(y);
    free(scale);
    free(x);
    free(w);
    free(stored);
}

static void test_matmul_has_the_contracts_bits(void **state) {
    (void)state;
    static const int64_t COLS[] = {1, 15, 16, 17, 33, 63, 64, 65, 130, 200, 257, 1024, 1100};
    static const int64_t ROWS[] = {1, 2, 3, 4, 5, 8, 11};
    static const int64_t N_X[] = {1, 2, 3, 4, 5, 6, 7, 12, 17, 100};
    static const int LEAVES[] = {1, 2, 4, 8};
    uint64_t seed = 3;
    int turn = 0;
    for (int i = 0; i < N_ISAS; i++) {
        const cpu_isa *isa = cpu_isa_find(ISAS[i]);
        for (size_t c = 0; isa != NULL && c < sizeof COLS / sizeof *COLS; c++) {
            for (size_t m = 0; m < sizeof N_X / sizeof *N_X; m++) {
                for (int kind = LS_F32; kind <= LS_INT8 + 1; kind++, turn++) {
                    const bool int8 = kind >= LS_INT8;
                    const product p = {.format = int8 ? LS_INT8 : (ls_dtype)kind,
                                       .quantize_x = kind > LS_INT8,
                                       .rows = ROWS[turn % 7],
                                       .cols = COLS[c],
                                       .n_x = N_X[m],
                                       .n_leaves = LEAVES[turn / 7 % 4]};
                    check_product(isa, &p, &seed);
                }
            }
        }
    }
}

/* A leaf that is longer than what is turned into f32 at a time. */
static void test_long_leaf(void **state) {
    (void)state;
    uint64_t seed = 4;
    for (int i = 0; i < N_ISAS; i++) {
        const cpu_isa *isa = cpu_isa_find(ISAS[i]);
        for (int n_x = 1; isa != NULL && n_x <= 3; n_x += 2) {
            const product p = {.format = LS_BF16, .rows = 3, .cols = 9001, .n_x = n_x, .n_leaves = 1};
            check_product(isa, &p, &seed);
        }
    }
}

static void test_axpy_is_fma(void **state) {
    (void)state;
    enum { ROWS = 3 };
    uint64_t seed = 2;
    for (int i = 0; i < N_ISAS; i++) {
        const cpu_isa *isa = cpu_isa_find(ISAS[i]);
        for (ls_dtype dtype = LS_F32; isa != NULL && dtype <= LS_F16; dtype++) {
            for (int n = 16; n <= MAX_HEAD; n += 16) {
                float y[MAX_HEAD + 1], wanted[MAX_HEAD + 1], stored[ROWS * MAX_HEAD], a[ROWS];
                y[n] = wanted[n] = 7; /* behind the end */
                for (int j = 0; j < n; j++) {
                    wanted[j] = y[j] = random_value(&seed, LS_F32);
                }
                for (int row = 0; row < ROWS; row++) {
                    a[row] = random_value(&seed, LS_F32);
                    for (int j = 0; j < n; j++) {
                        float w = random_value(&seed, dtype);
                        wanted[j] = fmaf(a[row], w, wanted[j]);
                        store_as(dtype, stored, row * n + j, w);
                    }
                }
                isa->axpy[dtype](y, stored, a, ROWS, n);
                assert_memory_equal(y, wanted, (size_t)(n + 1) * sizeof *y);
            }
        }
    }
}

static void test_softmax_and_divide(void **state) {
    (void)state;
    enum { N = 256 };
    uint64_t seed = 7;
    for (int i = 0; i < N_ISAS; i++) {
        const cpu_isa *isa = cpu_isa_find(ISAS[i]);
        for (int n = 1; isa != NULL && n <= N; n++) {
            float s[N + 1], wanted[N + 1], m = -INFINITY, scale = 0.125F;
            s[n] = 7;
            for (int j = 0; j < n; j++) {
                s[j] = random_value(&seed, LS_F32) * 8;
                s[j] = n % 5 == 0 && j == n / 2 ? (n % 2 ? NAN : -INFINITY) : s[j];
                wanted[j] = s[j] * scale;
                m = wanted[j] > m ? wanted[j] : m;
            }
            assert_same_float(isa->softmax(s, scale, n), m, isa->name, "maximum", m);
            assert_true(s[n] == 7);
            for (int j = 0; j < n; j++) {
                assert_same_float(s[j], ls_exp(wanted[j] - m), isa->name, "softmax", wanted[j]);
            }
            isa->divide(wanted, 3, n, LS_BF16, s);
            assert_true(s[n] == 7);
            for (int j = 0; j < n; j++) {
                assert_same_float(s[j], round_to(LS_BF16, wanted[j] / 3), isa->name, "division", wanted[j]);
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

/* ---- Rows of numbers ---- */

/* Any bits: infinities, NaN and subnormals are among them. */
static void test_rows_are_numeric_h(void **state) {
    (void)state;
    enum { N = 37, TIMES = 3000 };
    uint64_t seed = 5;
    for (int i = 0; i < N_ISAS; i++) {
        const cpu_isa *isa = cpu_isa_find(ISAS[i]);
        for (int t = 0; isa != NULL && t < TIMES; t++) {
            const ls_dtype dtype = LS_F32 + (ls_dtype)(t % 3);
            const int n = 1 + t % N;
            float a[N], b[N], out[N], scale = random_value(&seed, LS_F32);
            uint8_t stored[N * 4];
            bool finite = true, finite_narrow = true;
            for (int j = 0; j < n; j++) {
                a[j] = t % 2 == 0 ? f32_from_bits(random_bits(&seed)) : random_value(&seed, LS_F32) * 8;
                b[j] = random_value(&seed, LS_F32);
                finite = finite && isfinite(a[j]);
                finite_narrow = finite_narrow && isfinite(round_to(dtype, a[j]));
            }
            assert_int_equal(isa->finite(a, n), finite);
            isa->silu(a, b, n, dtype, out);
            for (int j = 0; j < n; j++) {
                assert_same_float(out[j], round_to(dtype, a[j] / (1.0F + ls_exp(-a[j])) * b[j]), isa->name, "silu",
                                  a[j]);
            }
            isa->norm(a, b, scale, n, dtype, out);
            for (int j = 0; j < n; j++) {
                assert_same_float(out[j], round_to(dtype, a[j] * scale * b[j]), isa->name, "norm", a[j]);
            }
            assert_int_equal(isa->narrow(dtype, a, n, stored), finite_narrow);
            isa->widen(dtype, stored, n, out);
            for (int j = 0; j < n; j++) {
                assert_same_float(out[j], round_to(dtype, a[j]), isa->name, "narrow", a[j]);
            }
            uint8_t copied[N * 4];
            assert_int_equal(isa->copy(dtype, stored, n, copied), finite_narrow);
            assert_memory_equal(copied, stored, (size_t)n * ls_dtype_bytes(dtype));
        }
    }
}

static void test_quantize(void **state) {
    (void)state;
    enum { N = 70 };
    static const float SPECIAL[] = {0, -0.0F, 0x1p-149F, 0x1.8p-143F, 0x1p-126F, 3e38F, INFINITY, NAN};
    uint64_t seed = 6;
    for (int i = 0; i < N_ISAS; i++) {
        const cpu_isa *isa = cpu_isa_find(ISAS[i]);
        for (int t = 0; isa != NULL && t < 2000; t++) {
            const int n = t % (N + 1);
            float x[N], most = 0;
            int8_t q[N + 1];
            q[n] = 77; /* behind the end */
            for (int j = 0; j < n; j++) {
                x[j] = t < 800 ? SPECIAL[(t / 71 + (j == n / 2 ? 0 : 1)) % 8] : random_value(&seed, LS_F32);
                most = fabsf(x[j]) > most || isnan(x[j]) ? fabsf(x[j]) : most;
            }
            float scale = isa->quantize(x, n, q);
            assert_int_equal(q[n], 77);
            assert_same_float(scale, most / 127, isa->name, "scale", most);
            for (int j = 0; j < n; j++) {
                double wanted = scale > 0 && isfinite(scale) ? rint((double)(x[j] / scale)) : 0;
                wanted = wanted > 127 ? 127 : wanted < -127 ? -127 : wanted;
                assert_int_equal(q[j], (int)wanted);
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
    const cpu_isa *isa = NULL;
    ls_error err = {0};
    assert_non_null(cpu_isa_find("ref"));
    assert_null(cpu_isa_find("avx"));
    assert_non_null(cpu_isa_best());
    assert_ptr_equal(cpu_isa_find(cpu_isa_best()->name), cpu_isa_best());
    assert_int_equal(cpu_isa_choose(&isa, NULL, &err), LS_OK);
    assert_ptr_equal(isa, cpu_isa_best());
    assert_int_equal(cpu_isa_choose(&isa, "neon", &err), LS_EINVAL);
    assert_non_null(strstr(err.text, "--cpu-isa neon"));
    assert_non_null(strstr(err.text, "ref"));
    assert_ptr_equal(isa, cpu_isa_best());
}

int main(void) {
    const char *only = getenv("LS_KERN");
    if (only != NULL && only[0] != '\0') {
        return 0; /* no op's test */
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dot_has_the_contracts_bits),
        cmocka_unit_test(test_matmul_has_the_contracts_bits),
        cmocka_unit_test(test_long_leaf),
        cmocka_unit_test(test_axpy_is_fma),
        cmocka_unit_test(test_softmax_and_divide),
        cmocka_unit_test(test_special_halves),
        cmocka_unit_test(test_rows_are_numeric_h),
        cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_read_reads_all),
        cmocka_unit_test(test_every_machine_has_ref),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
