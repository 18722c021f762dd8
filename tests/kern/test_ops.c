/*
 * Every op, every implementation: see harness.h. `make kcheck K=attn` (LS_KERN=attn) runs one op's tests, LS_KBENCH=1
 * times as well.
 *
 * For each op there are three tests: its cases, its faults, and its canary, which passes when the harness finds every
 * implementation that is wrong on purpose. The last test fails if an op was not exercised at odd sizes, at size 1 and at
 * the per-rank sizes of a real model, on every implementation.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "harness.h"
#include "wrong.h"

static kern_coverage coverage;

static const ls_dtype DTYPES[] = {LS_F32, LS_BF16, LS_F16};
enum { N_DTYPES = 3 };

/* ---- Cases: dtypes are filled in by the tests ---- */

static const kern_case embed_cases[] = {
    {.kind = OP_EMBED, .d_model = 1, .n = 1, .seq = {{0, 1}}},
    {.kind = OP_EMBED, .d_model = 97, .n = 131, .seq = {{0, 17}}},
    {.kind = OP_EMBED, .d_model = 100, .n = 1000, .seq = {{0, 3}}},
    {.kind = OP_EMBED, .model = "Qwen3-4B", .d_model = 2560, .n = 500, .seq = {{0, 2}}},
};

static const kern_case qkv_cases[] = {
    {.kind = OP_QKV, .d_model = 1, .n_heads = 1, .n_kv = 1, .d_head = 16, .seq = {{0, 1}}},
    {.kind = OP_QKV,
     .d_model = 97,
     .n_heads = 3,
     .n_kv = 1,
     .d_head = 32,
     .bias = true,
     .seq = {{63, 1}, {5, 1}, {60, 7}}},
    {.kind = OP_QKV, .d_model = 131, .n_heads = 8, .n_kv = 8, .d_head = 48, .qk_norm = true, .seq = {{64, 1}, {0, 2}}},
    {.kind = OP_QKV,
     .d_model = 100,
     .n_heads = 8,
     .n_kv = 4,
     .d_head = 64,
     .bias = true,
     .qk_norm = true,
     .seq = {{127, 1}, {130, 1}, {120, 15}}},
    {.kind = OP_QKV, .d_model = 64, .n_heads = 8, .n_kv = 2, .d_head = 80, .seq = {{200, 1}, {0, 1}, {63, 2}}},
    {.kind = OP_QKV, .d_model = 48, .n_heads = 8, .n_kv = 1, .d_head = 96, .qk_norm = true, .seq = {{3, 3}}},
    {.kind = OP_QKV, .d_model = 33, .n_heads = 2, .n_kv = 1, .d_head = 256, .bias = true, .seq = {{255, 2}}},
    {.kind = OP_QKV,
     .model = "Qwen3-4B, R = 8",
     .d_model = 2560,
     .n_heads = 4,
     .n_kv = 1,
     .d_head = 128,
     .qk_norm = true,
     .seq = {{70, 1}}},
};

static const kern_case attn_cases[] = {
    {.kind = OP_ATTN, .n_heads = 1, .n_kv = 1, .d_head = 32, .seq = {{0, 1}}},
    {.kind = OP_ATTN, .n_heads = 3, .n_kv = 1, .d_head = 48, .seq = {{62, 1}, {256, 1}, {40, 3}}},
    {.kind = OP_ATTN, .n_heads = 3, .n_kv = 3, .d_head = 32, .window = 1, .seq = {{62, 1}, {90, 1}, {0, 1}}},
    {.kind = OP_ATTN, .n_heads = 8, .n_kv = 8, .d_head = 32, .seq = {{255, 1}, {64, 1}, {0, 17}}},
    {.kind = OP_ATTN, .n_heads = 8, .n_kv = 4, .d_head = 64, .window = 8, .seq = {{300, 1}, {8, 1}, {250, 12}}},
    {.kind = OP_ATTN,
     .n_heads = 8,
     .n_kv = 2,
     .d_head = 80,
     .window = 64,
     .seq = {{63, 1}, {64, 1}, {250, 10}, {0, 2}}},
    {.kind = OP_ATTN, .n_heads = 8, .n_kv = 1, .d_head = 96, .window = 300, .seq = {{511, 1}, {320, 1}, {290, 5}}},
    {.kind = OP_ATTN, .n_heads = 8, .n_kv = 4, .d_head = 128, .seq = {{63, 1}, {300, 1}, {0, 5}, {250, 12}}},
    {.kind = OP_ATTN, .n_heads = 4, .n_kv = 4, .d_head = 256, .seq = {{256, 1}, {254, 3}}},
    {.kind = OP_ATTN, .n_heads = 14, .n_kv = 2, .d_head = 64, .seq = {{1030, 1}, {700, 2}}},
    {.kind = OP_ATTN, .model = "Qwen3-4B, R = 8", .n_heads = 4, .n_kv = 1, .d_head = 128, .seq = {{600, 1}, {20, 3}}},
};

static const kern_case row_cases[] = {
    {.kind = OP_OUT, .d_model = 1, .n = 1, .seq = {{0, 1}}},
    {.kind = OP_OUT, .d_model = 97, .n = 131, .seq = {{0, 17}}},
    {.kind = OP_OUT, .d_model = 5, .n = 97, .seq = {{0, 3}}},
    {.kind = OP_OUT, .d_model = 33, .n = 15, .seq = {{0, 3}}},
    {.kind = OP_OUT, .d_model = 64, .n = 1024, .seq = {{0, 1}, {0, 1}}},
    {.kind = OP_OUT, .d_model = 100, .n = 100, .seq = {{0, 2}}},
    {.kind = OP_OUT, .model = "Qwen3-4B, R = 8", .d_model = 2560, .n = 512, .seq = {{0, 2}}},
    {.kind = OP_OUT, .model = "Qwen3-4B, R = 8", .d_model = 2560, .n = 1216, .seq = {{0, 1}}},
};

static const kern_case exchange_cases[] = {
    {.kind = OP_EXCHANGE, .d_model = 1, .seq = {{0, 1}}},
    {.kind = OP_EXCHANGE, .d_model = 97, .bias = true, .seq = {{0, 17}}},
    {.kind = OP_EXCHANGE, .d_model = 131, .init = true, .seq = {{0, 3}}},
    {.kind = OP_EXCHANGE, .d_model = 64, .init = true, .bias = true, .seq = {{0, 2}}},
    {.kind = OP_EXCHANGE, .model = "Qwen3-4B", .d_model = 2560, .seq = {{0, 3}}},
};

static const kern_case ffn_in_cases[] = {
    {.kind = OP_FFN_IN, .d_model = 1, .n = 1, .seq = {{0, 1}}},
    {.kind = OP_FFN_IN, .d_model = 97, .n = 131, .seq = {{0, 17}}},
    {.kind = OP_FFN_IN, .d_model = 131, .n = 97, .bias = true, .seq = {{0, 3}}},
    {.kind = OP_FFN_IN, .d_model = 100, .n = 256, .bias = true, .seq = {{0, 2}}},
    {.kind = OP_FFN_IN, .d_model = 3, .n = 15, .seq = {{0, 18}}},
    {.kind = OP_FFN_IN, .model = "Qwen3-4B, R = 8", .d_model = 2560, .n = 1216, .seq = {{0, 1}}},
};

static const kern_case head_cases[] = {
    {.kind = OP_HEAD, .d_model = 1, .n = 1, .seq = {{0, 1}}},
    {.kind = OP_HEAD, .d_model = 97, .n = 131, .seq = {{0, 17}}},
    {.kind = OP_HEAD, .d_model = 131, .n = 97, .seq = {{0, 3}}},
    {.kind = OP_HEAD, .d_model = 100, .n = 1000, .seq = {{0, 2}}},
    {.kind = OP_HEAD, .d_model = 3, .n = 15, .seq = {{0, 4}}},
    {.kind = OP_HEAD, .model = "Qwen3-4B", .d_model = 2560, .n = 300, .seq = {{0, 2}}},
};

static const kern_case sample_cases[] = {
    {.kind = OP_SAMPLE, .n = 1, .seq = {{0, 1}}},
    {.kind = OP_SAMPLE, .n = 97, .seq = {{0, 17}}},
    {.kind = OP_SAMPLE, .n = 100, .seq = {{0, 7}}},
    {.kind = OP_SAMPLE, .n = 256, .seq = {{0, 7}}},
    {.kind = OP_SAMPLE, .n = 2999, .seq = {{0, 14}}},
    {.kind = OP_SAMPLE, .n = 2999, .seq = {{0, 1}}}, /* fewer rows than threads: in slices */
    {.kind = OP_SAMPLE, .n = 1009, .seq = {{0, 2}}},
    {.kind = OP_SAMPLE, .model = "Qwen3-4B, R = 8", .n = 18992, .seq = {{0, 7}}},
};

/* By op: its cases, and the one for faults and canaries (R = 8 possible, three rows or more, last row filtered). */
static const struct {
    const kern_case *all;
    int n;
    kern_case small;
} cases[OP_KINDS] = {
#define TABLE(table) table, (int)(sizeof table / sizeof *table)
    [OP_EMBED] = {TABLE(embed_cases), {.kind = OP_EMBED, .d_model = 37, .n = 100, .seq = {{0, 5}}}},
    [OP_QKV] =
        {TABLE(qkv_cases),
         {.kind = OP_QKV, .d_model = 70, .n_heads = 8, .n_kv = 2, .d_head = 32, .seq = {{9, 1}, {70, 1}, {61, 6}}}},
    [OP_ATTN] = {TABLE(attn_cases),
                 {.kind = OP_ATTN, .n_heads = 8, .n_kv = 2, .d_head = 32, .seq = {{9, 1}, {260, 1}, {61, 6}}}},
    [OP_OUT] = {TABLE(row_cases), {.kind = OP_OUT, .d_model = 37, .n = 300, .seq = {{0, 5}}}},
    [OP_EXCHANGE] = {TABLE(exchange_cases), {.kind = OP_EXCHANGE, .d_model = 37, .seq = {{0, 5}}}},
    [OP_FFN_IN] = {TABLE(ffn_in_cases), {.kind = OP_FFN_IN, .d_model = 70, .n = 150, .seq = {{0, 5}}}},
    [OP_FFN_OUT] = {TABLE(row_cases), {.kind = OP_FFN_OUT, .d_model = 37, .n = 300, .seq = {{0, 5}}}},
    [OP_HEAD] = {TABLE(head_cases), {.kind = OP_HEAD, .d_model = 70, .n = 150, .seq = {{0, 5}}}},
    [OP_SAMPLE] = {TABLE(sample_cases), {.kind = OP_SAMPLE, .n = 300, .seq = {{0, 6}}}},
#undef TABLE
};

/* ---- Tests: *state is the op kind ---- */

static ls_op_kind kind_of(void **state) {
    return *(const ls_op_kind *)*state;
}

/* Case i is done in this dtype. */
static bool dtype_chosen(int i, int dtype) {
    return !kern_thread_sanitized() || i % N_DTYPES == dtype;
}

static void test_cases(void **state) {
    const ls_op_kind kind = kind_of(state);
    const bool has_cache = kind == OP_QKV || kind == OP_ATTN;
    kern_impl impl[KERN_MAX_IMPLS];
    int n_impls = kern_impls(impl);
    for (int i = 0; i < cases[kind].n; i++) {
        for (int dtype = 0; dtype < N_DTYPES; dtype++) {
            if (!dtype_chosen(i, dtype)) {
                continue;
            }
            /* The KV cache in each of the dtypes in turn; all pairs over three cases, equal ones in the first. */
            kern_case c = cases[kind].all[i];
            c.kind = kind;
            c.dtype = DTYPES[dtype];
            c.kv_dtype = has_cache ? DTYPES[(dtype + i) % N_DTYPES] : c.dtype;
            kern_report report = {""};
            if (!kern_check(&c, impl, n_impls, &coverage, &report)) {
                fail_msg("%s", report.text);
            }
        }
    }
}

/* Ops with a matrix. */
static bool has_matrix(ls_op_kind kind) {
    return kind != OP_ATTN && kind != OP_EXCHANGE && kind != OP_SAMPLE;
}

/* As above with int8 weights, in the dtypes in turn. */
static void test_quantized(void **state) {
    const ls_op_kind kind = kind_of(state);
    kern_impl impl[KERN_MAX_IMPLS];
    int n_impls = kern_impls(impl);
    for (int i = 0; i < 2 * cases[kind].n && has_matrix(kind); i += kern_thread_sanitized() ? 5 : 1) {
        kern_case c = cases[kind].all[i / 2];
        c.kind = kind;
        c.dtype = c.kv_dtype = DTYPES[(i / 2 + i % 2) % N_DTYPES];
        c.quantization = i % 2 == 0 ? LS_QUANTIZATION_W8A16 : LS_QUANTIZATION_W8A8;
        kern_report report = {""};
        if (!kern_check(&c, impl, n_impls, &coverage, &report)) {
            fail_msg("%s", report.text);
        }
    }
    for (int i = 0; i < 2 * n_impls && has_matrix(kind); i++) {
        kern_case c = cases[kind].small;
        c.dtype = c.kv_dtype = LS_BF16;
        c.quantization = i % 2 == 0 ? LS_QUANTIZATION_W8A16 : LS_QUANTIZATION_W8A8;
        kern_report report = {""};
        if (!kern_check_faults(&c, &impl[i / 2], &report)) {
            fail_msg("%s", report.text);
        }
    }
}

static void test_faults(void **state) {
    kern_impl impl[KERN_MAX_IMPLS];
    int n_impls = kern_impls(impl);
    for (int i = 0; i < n_impls; i++) {
        for (int dtype = 0; dtype < N_DTYPES; dtype++) {
            if (!dtype_chosen(i, dtype)) {
                continue;
            }
            kern_case c = cases[kind_of(state)].small;
            c.dtype = DTYPES[dtype];
            c.kv_dtype = DTYPES[(dtype + 1) % N_DTYPES];
            kern_report report = {""};
            if (!kern_check_faults(&c, &impl[i], &report)) {
                fail_msg("%s", report.text);
            }
        }
    }
}

/* The harness finds each wrong implementation, and says the right thing about it. */
static void test_canary(void **state) {
    const ls_op_kind kind = kind_of(state);
    kern_impl known[KERN_MAX_IMPLS];
    int n_impls = kern_impls(known);
    const kern_impl impl = {"wrong", &wrong_ops, known[n_impls - 1].isa, true};
    for (int i = 0; i < WRONG_KINDS; i++) {
        const wrong_info *wrong = &wrong_infos[i];
        if ((wrong->ops & 1u << kind) == 0) {
            continue;
        }
        kern_case c = cases[kind].small;
        c.dtype = i == WRONG_ROUNDING ? LS_BF16 : LS_F32;
        c.kv_dtype = c.dtype;
        c.quantization = i == WRONG_SCALES ? LS_QUANTIZATION_W8A16 : i == WRONG_X_SCALE ? LS_QUANTIZATION_W8A8 : 0;
        kern_report report = {""};
        wrong_set((wrong_kind)i, kind);
        bool good = wrong->in_faults ? kern_check_faults(&c, &impl, &report) : kern_check(&c, &impl, 1, NULL, &report);
        wrong_set(WRONG_NOTHING, kind);
        if (wrong->word == NULL) {
            if (!good) {
                fail_msg("the control was rejected: %s", report.text);
            }
        } else if (good || strstr(report.text, wrong->word) == NULL) {
            fail_msg("%s, wrong in its %s: %s, expected '%s'", op_kind_name(kind), wrong->name,
                     good ? "was not found" : report.text, wrong->word);
        }
    }
}

/* An implementation that promises only the tolerance passes with errors of 4e-6, and not with 1e-3. */
static void test_tolerance(void **state) {
    const ls_op_kind kind = kind_of(state);
    const kern_impl impl = {"wrong", &wrong_ops, "ref", false};
    kern_case c = cases[kind].small;
    c.dtype = c.kv_dtype = LS_F32;
    kern_report report = {""};
    wrong_set(WRONG_BITS, kind);
    bool close = kern_check(&c, &impl, 1, NULL, &report);
    wrong_set(WRONG_VALUE, kind);
    kern_report expected = {""};
    bool far = kern_check(&c, &impl, 1, NULL, &expected);
    wrong_set(WRONG_NOTHING, kind);
    if (!close) {
        fail_msg("%s", report.text);
    }
    assert_false(far);
    assert_non_null(strstr(expected.text, "oracle"));
}

static const char *only_op(void) {
    const char *only = getenv("LS_KERN");
    return only != NULL && only[0] != '\0' ? only : NULL;
}

static bool is_chosen(ls_op_kind kind) {
    return only_op() == NULL || strcmp(only_op(), op_kind_name(kind)) == 0;
}

static void test_coverage(void **state) {
    (void)state;
    static const char *const names[KERN_CLASSES] = {"odd sizes", "size 1", "per-rank sizes"};
    kern_impl impl[KERN_MAX_IMPLS];
    int n_impls = kern_impls(impl), missing = 0;
    for (int kind = 0; kind < OP_KINDS; kind++) {
        for (int i = 0; i < n_impls && is_chosen((ls_op_kind)kind); i++) {
            for (int class = 0; class < KERN_CLASSES; class ++) {
                if (coverage.n[i][kind][class] == 0 ||
                    (has_matrix((ls_op_kind)kind) && coverage.n_quantized[i][kind] == 0)) {
                    print_error("%s on %s was not exercised at %s\n", op_kind_name((ls_op_kind)kind), impl[i].name,
                                names[class]);
                    missing++;
                }
            }
        }
        if (is_chosen((ls_op_kind)kind)) {
            const double *worst = coverage.worst[kind];
            print_message("%-8s largest error against the oracle: f32 %.1e, bf16 %.1e, f16 %.1e\n",
                          op_kind_name((ls_op_kind)kind), worst[LS_F32], worst[LS_BF16], worst[LS_F16]);
        }
    }
    assert_int_equal(missing, 0);
}

static void test_bench(void **state) {
    (void)state;
    kern_bench(only_op());
}

static int destroy_groups(void **state) {
    (void)state;
    kern_groups_destroy();
    return 0;
}

int main(void) {
    static const struct {
        const char *name;
        CMUnitTestFunction function;
    } of_each_op[] = {{"cases", test_cases},
                      {"quantized", test_quantized},
                      {"faults", test_faults},
                      {"canary", test_canary},
                      {"tolerance", test_tolerance}};
    enum { PER_OP = sizeof of_each_op / sizeof *of_each_op };
    static struct CMUnitTest tests[OP_KINDS * PER_OP + 2];
    static char names[OP_KINDS * PER_OP][32];
    static ls_op_kind kinds[OP_KINDS];
    size_t n = 0;
    for (int kind = 0; kind < OP_KINDS; kind++) {
        kinds[kind] = (ls_op_kind)kind;
        for (int i = 0; i < PER_OP && is_chosen((ls_op_kind)kind); i++) {
            snprintf(names[n], sizeof names[n], "%s_%s", op_kind_name((ls_op_kind)kind), of_each_op[i].name);
            tests[n] = (struct CMUnitTest){names[n], of_each_op[i].function, NULL, NULL, &kinds[kind]};
            n++;
        }
    }
    if (n > 0) {
        tests[n++] = (struct CMUnitTest){"coverage", test_coverage, NULL, NULL, NULL};
        const char *bench = getenv("LS_KBENCH");
        if (bench != NULL && strcmp(bench, "1") == 0) {
            tests[n++] = (struct CMUnitTest){"bench", test_bench, NULL, NULL, NULL};
        }
    }
    return _cmocka_run_group_tests("ops", tests, n, NULL, destroy_groups);
}
