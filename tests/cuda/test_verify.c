/*
 * `lockstep verify` on a GPU: prompts and decode steps of one and of several sequences agree with the CPU at every border
 * between kernels, in all formats; and what is made wrong there is named: a weight on the device, and each kind of op of a
 * decode step alone.
 */
#include "../e2e/e2e.h"

#include "engine/verify.h"

enum { PROMPT = 24, DECODE = 2, SEQS = 5 };

static ls_engine *open_engine(ls_model *model, const char *device, ls_dtype dtype, ls_quantization quantization) {
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.device = device;
    params.dtype = dtype;
    params.quantization = quantization;
    params.max_num_seqs = SEQS;
    params.max_model_len_tokens = verify_tokens(PROMPT, DECODE, SEQS);
    params.max_num_batched_tokens = verify_rows(PROMPT, SEQS);
    return engine_open(model, &params);
}

static ls_verify_report compare(ls_engine *tested, ls_engine *reference) {
    ls_verify_report report = LS_VERIFY_REPORT_INIT;
    ls_error err = {0};
    const verify_pair pair = {.tested = tested, .reference = reference, .n_seqs = SEQS};
    int32_t prompt[PROMPT];
    for (int i = 0; i < PROMPT; i++) {
        prompt[i] = 5 + 37 * i;
    }
    ASSERT_OK(verify_engines(&pair, prompt, PROMPT, DECODE, &report, &err), &err);
    return report;
}

static void print_first(const ls_verify_report *r) {
    const ls_verify_place *p = &r->first;
    print_error("first: op %s of layer %d, rank %d, buffer %s, step %d, position %d, %s, error %g; kernels %s\n", p->op,
                p->layer, p->rank, p->buffer, p->step, p->position, p->running ? "free run" : "alone", p->error,
                r->first_kernels);
}

static void gpu_agrees_with_the_cpu(void **state) {
    (void)state;
    static const struct {
        ls_dtype dtype;
        ls_quantization quantization;
    } formats[] = {{LS_F32, LS_QUANTIZATION_NONE},
                   {LS_BF16, LS_QUANTIZATION_NONE},
                   {LS_F16, LS_QUANTIZATION_NONE},
                   {LS_BF16, LS_QUANTIZATION_W8A16}};
    ls_model *model = demo_model();
    for (size_t i = 0; i < COUNT(formats); i++) {
        ls_engine *tested = open_engine(model, NULL, formats[i].dtype, formats[i].quantization);
        ls_engine *reference = open_engine(model, "cpu", formats[i].dtype, formats[i].quantization);
        assert_true(tested->config.on_device && tested->backend->run_decode != NULL);
        ls_verify_report report = compare(tested, reference);
        print_message("%-4s %s: logits %.1e\n", ls_dtype_name(formats[i].dtype),
                      ls_quantization_name(formats[i].quantization), report.logits_error);
        for (int kind = 0; kind < OP_KINDS; kind++) {
            const ls_verify_op *op = &report.isolated[kind];
            print_message("     %-9s %5d rows, worst %.1e in step %d\n", op->op, (int)op->n_compared, op->worst.error,
                          op->worst.step);
            assert_true(op->n_compared > 0);
        }
        if (!report.passed) {
            print_first(&report);
        }
        assert_true(report.passed);
        assert_int_equal(report.n_sequences, SEQS);
        ls_engine_close(&tested);
        ls_engine_close(&reference);
    }
    ls_model_close(&model);
}

/* ---- What can be told ---- */

/* The output projection of layer 3, one element of the copy on the device: the prompt's step finds it. */
static void a_corrupted_weight_is_named(void **state) {
    (void)state;
    enum { LAYER = 3 };
    ls_model *model = demo_model();
    ls_engine *tested = open_engine(model, NULL, LS_F32, LS_QUANTIZATION_NONE);
    ls_engine *reference = open_engine(model, "cpu", LS_F32, LS_QUANTIZATION_NONE);
    const ls_program *program = tested->program[0];
    const float wrong = 100.0F;
    ls_error err = {0};
    int i = 0;
    while (program->op[i].kind != OP_OUT || program->op[i].layer != LAYER) {
        i++;
    }
    const float *weight = tested->rank[0].weight[program->op[i].row.weight].data;
    ASSERT_OK(tested->backend->copy_in(tested, (void *)(uintptr_t)(weight + 5), &wrong, sizeof wrong, &err), &err);
    ls_verify_report report = compare(tested, reference);
    assert_false(report.passed);
    print_first(&report);
    assert_string_equal(report.first.op, "out");
    assert_int_equal(report.first.layer, LAYER);
    assert_int_equal(report.first.rank, 0);
    assert_int_equal(report.first.step, 0);
    assert_true(strlen(report.first_kernels) > 4);
    ls_engine_close(&tested);
    ls_engine_close(&reference);
    ls_model_close(&model);
}

/* The launch of a decode step that goes wrong: behind it a word of what it wrote is another. */
static struct {
    const ls_backend *right;
    int index, min_rows;
} planted;

static ls_status wrong_decode(ls_engine *engine, const ls_step *step, int first, int *n_taken, ls_error *err) {
    static const ls_buf buffer[OP_KINDS] = {
        [OP_EMBED] = BUF_PART, [OP_QKV] = BUF_QKV,    [OP_ATTN] = BUF_ATT,     [OP_OUT] = BUF_PART,
        [OP_EXCHANGE] = BUF_H, [OP_FFN_IN] = BUF_ACT, [OP_FFN_OUT] = BUF_PART, [OP_HEAD] = BUF_LOGITS};
    const ls_bind *bind = &engine->rank[0].bind;
    ls_status st = planted.right->run_decode(engine, step, first, n_taken, err);
    if (st != LS_OK || first > planted.index || planted.index >= first + *n_taken || step->n_rows < planted.min_rows) {
        return st;
    }
    const ls_op *op = &engine->program[0]->op[planted.index];
    const int slot = op->kind == OP_EMBED                           ? op->embed.slot
                     : op->kind == OP_OUT || op->kind == OP_FFN_OUT ? op->row.slot
                                                                    : 0;
    const int32_t token = 7;
    const float wrong = 1000.0F;
    uint8_t *at = op->kind == OP_SAMPLE ? (uint8_t *)engine->rank[0].result : bind->buf[buffer[op->kind]];
    at += (size_t)slot * LS_LEAVES * (size_t)bind->m_max * (size_t)bind->d_model * sizeof(float);
    return op->kind == OP_SAMPLE ? planted.right->copy_in(engine, at, &token, sizeof token, err)
                                 : planted.right->copy_in(engine, at, &wrong, sizeof wrong, err);
}

/* In f32, so that a wrong word is a float everywhere. What qkv's matmul leaves is seen in what attention makes of it. */
static void faults_of_decode_kernels_are_named(void **state) {
    (void)state;
    static const char *const kernel[OP_KINDS] = {
        [OP_EMBED] = "decode_embed",        [OP_QKV] = "decode_matmul_f32",    [OP_ATTN] = "decode_attn_f32",
        [OP_OUT] = "decode_matmul_f32",     [OP_EXCHANGE] = "decode_exchange", [OP_FFN_IN] = "decode_matmul_f32",
        [OP_FFN_OUT] = "decode_matmul_f32", [OP_HEAD] = "decode_matmul_f32",   [OP_SAMPLE] = "decode_sample"};
    ls_model *model = demo_model();
    ls_engine *tested = open_engine(model, NULL, LS_F32, LS_QUANTIZATION_NONE);
    ls_engine *reference = open_engine(model, "cpu", LS_F32, LS_QUANTIZATION_NONE);
    const ls_program *program = tested->program[0];
    bool seen[OP_KINDS] = {false};
    planted.right = tested->backend;
    ls_backend wrong = *tested->backend;
    wrong.run_decode = wrong_decode;
    tested->backend = &wrong;
    for (int i = program->n_ops - 1, n = 0; i >= 0; i--) { /* the last of each kind */
        const ls_op *op = &program->op[i];
        if (seen[op->kind]) {
            continue;
        }
        seen[op->kind] = true;
        planted.index = i;
        planted.min_rows = n++ % 2 == 0 ? 1 : SEQS; /* in every decode step, or only in those of several sequences */
        ls_verify_report report = compare(tested, reference);
        const char *name = op_kind_name(op->kind);
        const char *named = report.first.found ? report.first.op : "none";
        /* qkv and attention are one stretch: the cache is qkv's, the rest is attention's */
        bool right = strcmp(named, name) == 0 || (op->kind == OP_QKV && strcmp(named, "attn") == 0);
        if (report.passed || !right || strstr(report.first_kernels, kernel[op->kind]) == NULL) {
            print_error("planted in %s; ", name);
            print_first(&report);
            fail();
        }
        assert_int_equal(report.first.layer, op->layer);
        assert_int_equal(report.first.rank, 0);
        assert_false(report.first.running);
        assert_int_equal(report.first.step, planted.min_rows == 1 ? 1 : DECODE + 2);
    }
    tested->backend = planted.right;
    ls_engine_close(&tested);
    ls_engine_close(&reference);
    ls_model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpu_agrees_with_the_cpu),
        cmocka_unit_test(a_corrupted_weight_is_named),
        cmocka_unit_test(faults_of_decode_kernels_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
