/*
 * Verify: engines of the same formats agree to the bit whatever their ranks, threads and inner loops; engines of other
 * formats within the tolerance; and every kind of op, made wrong on one rank in one layer of the tested engine, is named
 * with that rank and layer, as is a single corrupted weight and a single wrong bit.
 */
#include <math.h>

#include "tool.h"

#include "engine/verify.h"

enum { PROMPT = 5, DECODE = 1 };

static const int32_t prompt[PROMPT] = {5, 300, 17, 4000, 2};

static ls_engine *open_engine(ls_model *model, int n_ranks, int n_threads, ls_dtype dtype, ls_dtype kv_dtype) {
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.tensor_parallel_size = n_ranks;
    params.threads = n_threads;
    params.dtype = dtype;
    params.kv_cache_dtype = kv_dtype;
    params.max_num_seqs = 1;
    params.max_model_len_tokens = PROMPT + DECODE;
    params.max_num_batched_tokens = PROMPT;
    return engine_open(model, &params);
}

static ls_verify_report compare(ls_engine *tested, ls_engine *reference) {
    ls_verify_report report = LS_VERIFY_REPORT_INIT;
    ls_error err = {0};
    const verify_pair pair = {.tested = tested, .reference = reference};
    ASSERT_OK(verify_engines(&pair, prompt, PROMPT, DECODE, &report, &err), &err);
    assert_int_equal(report.n_prompt_tokens, PROMPT);
    assert_int_equal(report.n_logits_rows, PROMPT + DECODE);
    for (int kind = 0; kind < OP_KINDS; kind++) {
        assert_string_equal(report.isolated[kind].op, op_kind_name((ls_op_kind)kind));
        assert_true(report.isolated[kind].n_compared >= PROMPT + DECODE);
        assert_int_equal(report.isolated[kind].n_compared, report.running[kind].n_compared);
    }
    return report;
}

static void print_place(const ls_verify_place *p) {
    print_error("found %d: op %s buffer %s layer %d rank %d step %d position %d running %d error %g\n", p->found,
                p->found ? p->op : "", p->found ? p->buffer : "", p->layer, p->rank, p->step, p->position, p->running,
                p->error);
}

static void assert_equal_bits(const ls_verify_report *report) {
    if (!report->passed) {
        print_place(&report->first);
    }
    assert_true(report->bits_expected && report->passed && !report->first.found);
    assert_true(report->logits_error == 0);
    assert_int_equal(report->n_other_choices, 0);
    for (int kind = 0; kind < OP_KINDS; kind++) {
        assert_true(report->isolated[kind].bits_equal && report->running[kind].bits_equal);
        assert_false(report->isolated[kind].first_bits.found);
        assert_true(report->isolated[kind].worst.error == 0);
    }
}

/* ---- What agrees ---- */

static void same_formats_same_bits(void **state) {
    (void)state;
    static const struct {
        int ranks[2], threads[2];
        ls_dtype dtype, kv_dtype;
        const char *isa; /* of the tested engine; NULL: the best */
    } pairs[] = {
        {{1, 1}, {1, 1}, LS_BF16, LS_BF16, "ref"}, {{1, 1}, {3, 1}, LS_F32, LS_F16, NULL},
        {{4, 1}, {1, 2}, LS_BF16, LS_BF16, NULL},  {{2, 8}, {1, 1}, LS_F16, LS_F32, NULL},
        {{8, 2}, {1, 1}, LS_F32, LS_F32, "ref"},   {{2, 2}, {2, 1}, LS_F32, LS_BF16, "avx2"},
    };
    ls_model *model = demo_model();
    for (size_t i = 0; i < COUNT(pairs); i++) {
        if (sanitized() && i != 2) {
            continue;
        }
        ls_engine *tested =
            open_engine(model, pairs[i].ranks[0], pairs[i].threads[0], pairs[i].dtype, pairs[i].kv_dtype);
        ls_engine *reference =
            open_engine(model, pairs[i].ranks[1], pairs[i].threads[1], pairs[i].dtype, pairs[i].kv_dtype);
        const cpu_isa *isa = pairs[i].isa == NULL ? NULL : cpu_isa_find(pairs[i].isa);
        for (int r = 0; r < tested->config.n_ranks && isa != NULL; r++) {
            tested->rank[r].bind.isa = isa;
        }
        ls_verify_report report = compare(tested, reference);
        assert_equal_bits(&report);
        ls_engine_close(&tested);
        ls_engine_close(&reference);
    }
    ls_model_close(&model);
}

/* Every shape in tests/golden, in a 16-bit format on R ranks against f32 on one. */
static void other_formats_within_tolerance(void **state) {
    (void)state;
    golden_list list;
    golden_open(&list);
    for (size_t i = 0; i < list.n; i++) {
        if (sanitized() && i % 8 != 0) {
            continue;
        }
        ls_model *model = golden_model(&list.item[i]);
        ls_engine_params tested = LS_ENGINE_PARAMS_INIT, reference = LS_ENGINE_PARAMS_INIT;
        ls_verify_params params = LS_VERIFY_PARAMS_INIT;
        ls_verify_report report = LS_VERIFY_REPORT_INIT;
        ls_error err = {0};
        tested.tensor_parallel_size = model->spec.n_heads % 2 == 0 ? 2 : 1;
        tested.threads = reference.threads = 1;
        tested.dtype = i % 2 == 0 ? LS_BF16 : LS_F16;
        reference.dtype = LS_F32;
        params.tested = &tested;
        params.reference = &reference;
        params.n_prompt_tokens = 12;
        ASSERT_OK(ls_verify(model, &params, &report, &err), &err);
        if (!report.passed) {
            print_error("%s: ", list.item[i].name);
            print_place(&report.first);
        }
        assert_true(report.passed && !report.bits_expected);
        assert_true(report.tolerance == (i % 2 == 0 ? 2e-2 : 2e-3));
        assert_true(report.logits_error > 0 && report.logits_error < report.logits_tolerance);
        assert_false(report.isolated[OP_FFN_IN].bits_equal);
        assert_true(report.isolated[OP_EXCHANGE].bits_equal); /* f32 in, f32 out, on the same inputs */
        assert_false(report.running[OP_EXCHANGE].bits_equal);
        ls_model_close(&model);
    }
    golden_close(&list);
}

/* ---- What differs ---- */

/* The op that goes wrong, where, and how much: added to one word of its output. */
static struct {
    int index, rank;
    float by;
} planted;

static float *first_output(const ls_op *op, const ls_bind *bind) {
    static const ls_buf buf[OP_KINDS] = {
        [OP_EMBED] = BUF_PART, [OP_QKV] = BUF_QKV,    [OP_ATTN] = BUF_ATT,     [OP_OUT] = BUF_PART,
        [OP_EXCHANGE] = BUF_H, [OP_FFN_IN] = BUF_ACT, [OP_FFN_OUT] = BUF_PART, [OP_HEAD] = BUF_LOGITS};
    int slot = op->kind == OP_EMBED ? op->embed.slot : op->kind == OP_OUT || op->kind == OP_FFN_OUT ? op->row.slot : 0;
    return (float *)bind->buf[buf[op->kind]] + (int64_t)slot * bind->m_max * bind->d_model;
}

static void wrong_op(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    cpu_ref_ops.fn[op->kind](op, index, bind, step, team);
    team_wait(team);
    if (index != planted.index || bind->group.rank != planted.rank || team->thread != 0) {
        return;
    }
    if (op->kind == OP_SAMPLE) {
        ls_sample_part *part = bind->buf[BUF_SAMPLE];
        part->best[0].z += planted.by;
    } else if (planted.by == 0) { /* one bit */
        float *word = first_output(op, bind);
        *word = f32_from_bits(f32_bits(*word) ^ 1);
    } else {
        *first_output(op, bind) += planted.by;
    }
}

static ls_op_table wrong_table(void) {
    ls_op_table table = {.name = "wrong"};
    for (int kind = 0; kind < OP_KINDS; kind++) {
        table.fn[kind] = wrong_op;
    }
    return table;
}

static const char *const BUFFER[OP_KINDS] = {"part", "q", "att", "part", "h", "act", "part", "logits", "sample"};

static void assert_first(const ls_verify_report *report, const ls_op *op, int rank) {
    const ls_verify_place *first = &report->first;
    if (!first->found || strcmp(first->op, op_kind_name(op->kind)) != 0 || first->layer != op->layer ||
        first->rank != rank || first->running) {
        print_error("planted in %s of layer %d on rank %d; ", op_kind_name(op->kind), op->layer, rank);
        print_place(first);
        fail();
    }
    assert_false(report->passed);
    assert_string_equal(first->buffer, BUFFER[op->kind]);
    assert_int_equal(first->step, 0);
    for (int kind = 0; kind < OP_KINDS; kind++) { /* alone, no other op is touched by it */
        assert_int_equal(report->isolated[kind].bits_equal, kind != (int)op->kind);
    }
}

/* A large fault in each kind of op. With other ranks in the reference, sums are compared as a whole. */
static void faults_are_named(void **state) {
    (void)state;
    const ls_op_table table = wrong_table();
    ls_model *model = demo_model();
    for (int with_same = 1; with_same >= 0; with_same--) {
        ls_engine *tested = open_engine(model, 2, 1, LS_F32, LS_F32);
        ls_engine *reference = open_engine(model, with_same ? 2 : 1, 1, LS_F32, LS_F32);
        tested->plans.table = &table;
        for (int kind = 0; kind < OP_KINDS; kind++) {
            if (sanitized() && kind % 4 != 2 * with_same) {
                continue;
            }
            const ls_program *program = tested->program[0];
            int in_layer = 5;
            planted.index = 0;
            while (program->op[planted.index].kind != (ls_op_kind)kind ||
                   (program->op[planted.index].layer >= 0 && program->op[planted.index].layer != in_layer)) {
                planted.index++;
            }
            const ls_op *op = &program->op[planted.index];
            bool whole =
                kind == OP_SAMPLE || (!with_same && (kind == OP_EMBED || kind == OP_OUT || kind == OP_FFN_OUT));
            planted.rank = kind == OP_EMBED || kind == OP_SAMPLE ? 0 : 1;
            planted.by = 1e6F;
            ls_verify_report report = compare(tested, reference);
            assert_first(&report, op, whole ? -1 : planted.rank);
            assert_int_equal(report.logits_error > 0, kind != OP_SAMPLE); /* it shows in the free run too */
        }
        planted.index = -1;
        ls_verify_report report = compare(tested, reference);
        assert_equal_bits(&report); /* the table itself is right */
        ls_engine_close(&tested);
        ls_engine_close(&reference);
    }
    ls_model_close(&model);
}

static void one_bit_is_named(void **state) {
    (void)state;
    const ls_op_table table = wrong_table();
    ls_model *model = demo_model();
    ls_engine *tested = open_engine(model, 2, 2, LS_BF16, LS_BF16),
              *reference = open_engine(model, 2, 1, LS_BF16, LS_BF16);
    tested->plans.table = &table;
    planted.by = 0;
    planted.rank = 1;
    for (int i = 0; i < tested->program[0]->n_ops; i += sanitized() ? 23 : 11) {
        const ls_op *op = &tested->program[0]->op[i];
        if (op->kind != OP_SAMPLE && op->kind != OP_EMBED) {
            planted.index = i;
            ls_verify_report report = compare(tested, reference);
            assert_first(&report, op, 1);
            assert_true(report.first.error < 1e-5); /* far below the tolerance: only bits tell */
        }
    }
    ls_engine_close(&reference);
    reference = open_engine(model, 2, 1, LS_F32, LS_BF16); /* between formats one bit is nothing */
    ls_verify_report report = compare(tested, reference);
    assert_true(report.passed && !report.bits_expected);
    ls_engine_close(&tested);
    ls_engine_close(&reference);
    ls_model_close(&model);
}

static void a_corrupted_weight_is_named(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine *tested = open_engine(model, 4, 1, LS_BF16, LS_BF16),
              *reference = open_engine(model, 4, 1, LS_F32, LS_F32);
    const ls_program *program = tested->program[3];
    int i = 0;
    while (strcmp(program->weight[i].name, "model.layers.6.mlp.down_proj.weight") != 0) {
        i++;
    }
    uint16_t *weight = (uint16_t *)tested->rank[3].weight[i].data;
    weight[5] = bf16_from_f32(300.0F);
    ls_verify_report report = compare(tested, reference);
    assert_false(report.passed);
    assert_string_equal(report.first.op, "ffn_out");
    assert_int_equal(report.first.layer, 6);
    assert_int_equal(report.first.rank, 3);
    assert_true(report.first.error > report.tolerance && report.first.error < 1e6);
    weight[5] = 0x7f80; /* infinity, and NaN behind it */
    report = compare(tested, reference);
    assert_string_equal(report.first.op, "ffn_out");
    assert_int_equal(report.first.layer, 6);
    assert_int_equal(report.first.rank, 3);
    assert_true(isinf(report.first.error) && isinf(report.logits_error));
    ls_engine_close(&tested);
    ls_engine_close(&reference);
    ls_model_close(&model);
}

/* ---- The command ---- */

static void command(void **state) {
    (void)state;
    if (sanitized()) {
        skip(); /* breaches_exit_1 runs the same */
    }
    EXPECT_TOOL("verify demo -t 1 --against dtype=f32,t=1", 0, "tolerance of an op 0.02", "ffn_out",
                "then 5 sequences together", "verified");
    json_t *report = tool_json("verify demo -t 1 -tp 2 --against tensor-parallel-size=1", 0);
    assert_true(json_is_true(json_object_get(report, "passed")));
    assert_true(json_is_true(json_object_get(report, "bits_expected")));
    assert_int_equal(json_number(report, "prompt_tokens"), 40);
    assert_int_equal(json_number(report, "sequences"), 5);
    assert_int_equal(json_number(report, "logits_rows"), 40 + 4 + 4 + 2 * 5);
    assert_string_equal(json_string_value(json_object_get(report, "first_kernels")), "");
    assert_int_equal(json_array_size(json_object_get(report, "isolated")), OP_KINDS);
    assert_true(json_is_null(json_object_get(report, "first")));
    json_decref(report);
}

/* A checkpoint whose keys are so large that 16 bits of a query move the attention elsewhere: exit code 1, by name. */
static void breaches_exit_1(void **state) {
    (void)state;
    char folder[PATH_BYTES], args[1024];
    size_t n;
    folder_make(folder);
    for (size_t i = 0; i < 3; i++) {
        static const char *const names[] = {"config.json", "tokenizer.json", "generation_config.json"};
        file_copy("demo", folder, names[i]);
    }
    for (int i = 1; i <= 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "model-0000%d-of-00003.safetensors", i);
        uint8_t *bytes = file_read("demo", name, &n);
        uint64_t header;
        memcpy(&header, bytes, sizeof header);
        json_t *tensors = json_loadb((const char *)bytes + 8, (size_t)header, 0, NULL);
        const json_t *tensor = json_object_get(tensors, "model.layers.2.self_attn.k_norm.weight");
        if (tensor != NULL) {
            const json_t *offsets = json_object_get(tensor, "data_offsets");
            json_int_t first = json_integer_value(json_array_get(offsets, 0));
            json_int_t last = json_integer_value(json_array_get(offsets, 1));
            for (json_int_t at = first; at < last; at += 2) { /* bf16: another 8 in the exponent */
                bytes[8 + header + (size_t)at + 1] = (uint8_t)(bytes[8 + header + (size_t)at + 1] + 4);
            }
        }
        json_decref(tensors);
        file_write(folder, name, bytes, n);
        free(bytes);
    }
    file_copy("demo", folder, "model.safetensors.index.json");
    snprintf(args, sizeof args, "verify %s -t 1 --against dtype=f32", folder);
    EXPECT_TOOL(args, 1, "DIFFERENT: first in an op alone, op attn of layer 2, rank 0, buffer att, position ");
    if (!sanitized()) {
        json_t *report = tool_json(args, 1);
        const json_t *first = json_object_get(report, "first");
        assert_string_equal(json_string_value(json_object_get(first, "op")), "attn");
        assert_int_equal(json_number(first, "layer"), 2);
        assert_true(json_number(first, "error") > json_number(report, "tolerance"));
        json_decref(report);
    }
    folder_remove(folder);
}

static void errors_by_name(void **state) {
    (void)state;
    EXPECT_TOOL("verify", 2, "verify needs a model");
    EXPECT_TOOL("verify demo --against typo=1", 2, "--against: 'typo' is no setting", "kv-cache-dtype");
    EXPECT_TOOL("verify demo --against dtype", 2, "'dtype' has no value");
    EXPECT_TOOL("verify demo --against dtype=f64", 2, "--against: --dtype f64", "auto|f32|bf16|f16");
    EXPECT_TOOL("verify demo --against model=x", 2, "'model' is no setting");
    EXPECT_TOOL("verify demo --against tp=3", 2, "the reference engine", "--tensor-parallel-size 3");
    EXPECT_TOOL("verify /nowhere", 1, "/nowhere");
    ls_model *model = demo_model();
    ls_engine_params engine = LS_ENGINE_PARAMS_INIT;
    ls_verify_params params = LS_VERIFY_PARAMS_INIT;
    ls_verify_report report = LS_VERIFY_REPORT_INIT;
    ls_error err = {0};
    ASSERT_FAILS(ls_verify(model, &params, &report, &err), &err, LS_EINVAL, "tested or reference is missing");
    params.tested = params.reference = &engine;
    params.n_prompt_tokens = 0;
    ASSERT_FAILS(ls_verify(model, &params, &report, &err), &err, LS_EINVAL, "prompt of 0 tokens");
    params.n_prompt_tokens = 2045;
    ASSERT_FAILS(ls_verify(model, &params, &report, &err), &err, LS_ETOOLONG, "2045", "2048 positions");
    params.n_prompt_tokens = 2;
    params.prompt_tokens = (const int32_t[]){1, 4096};
    ASSERT_FAILS(ls_verify(model, &params, &report, &err), &err, LS_EINVAL, "prompt token 1 has id 4096");
    params.struct_size = sizeof params + 1;
    ASSERT_FAILS(ls_verify(model, &params, &report, &err), &err, LS_EINVAL, "newer header");
    assert_false(report.passed);
    ls_model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_formats_same_bits),
        cmocka_unit_test(other_formats_within_tolerance),
        cmocka_unit_test(faults_are_named),
        cmocka_unit_test(one_bit_is_named),
        cmocka_unit_test(a_corrupted_weight_is_named),
        cmocka_unit_test(command),
        cmocka_unit_test(breaches_exit_1),
        cmocka_unit_test(errors_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
