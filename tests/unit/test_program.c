/*
 * The program of every family: its ops in order with the weights they read, what it costs against a count from the
 * config's sizes, slots of exchanges, buffers written before they are read, and shards that tile the whole at R = 1, 2,
 * 4, 8. Specs are those of tests/golden.
 */
#include "model/program.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/family.h"

static ls_spec read_spec(const char *name) {
    ls_spec spec;
    ls_error err = {0};
    char folder[300];
    snprintf(folder, sizeof folder, "tests/golden/%s", name);
    if (spec_read(&spec, folder, &err) != LS_OK) {
        fail_msg("%s: %s", folder, err.text);
    }
    return spec;
}

static ls_program *build(const ls_spec *spec, int rank, int size, ls_dtype dtype) {
    ls_program *program = NULL;
    ls_error err = {0};
    if (program_build(&program, spec, (ls_group){rank, size}, dtype, LS_QUANTIZATION_NONE, &err) != LS_OK) {
        fail_msg("%s", err.text);
    }
    return program;
}

/* Calls check for every golden spec. */
static void for_each_spec(void (*check)(const ls_spec *spec)) {
    DIR *dir = opendir("tests/golden");
    assert_non_null(dir);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char config[400];
        snprintf(config, sizeof config, "tests/golden/%s/config.json", entry->d_name);
        if (entry->d_name[0] != '.' && file_exists(config)) {
            ls_spec spec = read_spec(entry->d_name);
            check(&spec);
            n++;
        }
    }
    closedir(dir);
    assert_true(n >= 23);
}

/* ---- Ops and the weights they read ---- */

static const char *weight_name(const ls_program *program, int i) {
    assert_in_range(i, 0, program->n_weights - 1);
    return program->weight[i].name;
}

/* Weight i is model.layers.<layer>.<name>, or there is none where `wanted` is false. */
static void assert_weight(const ls_program *program, int i, bool wanted, int layer, const char *name, shard_rule rule) {
    char full[128];
    if (!wanted) {
        assert_int_equal(i, -1);
        return;
    }
    snprintf(full, sizeof full, "model.layers.%d.%s", layer, name);
    assert_string_equal(weight_name(program, i), full);
    assert_int_equal(program->weight[i].rule, rule);
}

static void check_layer(const ls_program *program, int layer, const ls_op *op) {
    const ls_spec *s = program->spec;
    const op_qkv *q = &op[0].qkv;
    assert_weight(program, q->norm, true, layer, "input_layernorm.weight", SHARD_REPLICATED);
    assert_weight(program, q->q, true, layer, "self_attn.q_proj.weight", SHARD_COLUMN);
    assert_weight(program, q->k, true, layer, "self_attn.k_proj.weight", SHARD_KV_HEADS);
    assert_weight(program, q->v, true, layer, "self_attn.v_proj.weight", SHARD_KV_HEADS);
    assert_weight(program, q->q_bias, s->qkv_bias, layer, "self_attn.q_proj.bias", SHARD_COLUMN);
    assert_weight(program, q->k_bias, s->qkv_bias, layer, "self_attn.k_proj.bias", SHARD_KV_HEADS);
    assert_weight(program, q->v_bias, s->qkv_bias, layer, "self_attn.v_proj.bias", SHARD_KV_HEADS);
    assert_weight(program, q->q_norm, s->qk_norm, layer, "self_attn.q_norm.weight", SHARD_REPLICATED);
    assert_weight(program, q->k_norm, s->qk_norm, layer, "self_attn.k_norm.weight", SHARD_REPLICATED);
    assert_weight(program, op[2].row.weight, true, layer, "self_attn.o_proj.weight", SHARD_ROW);
    assert_weight(program, op[3].exchange.bias, s->out_bias, layer, "self_attn.o_proj.bias", SHARD_REPLICATED);
    assert_weight(program, op[4].ffn_in.norm, true, layer, "post_attention_layernorm.weight", SHARD_REPLICATED);
    assert_weight(program, op[4].ffn_in.gate, true, layer, "mlp.gate_proj.weight", SHARD_COLUMN);
    assert_weight(program, op[4].ffn_in.up, true, layer, "mlp.up_proj.weight", SHARD_COLUMN);
    assert_weight(program, op[4].ffn_in.gate_bias, s->mlp_bias, layer, "mlp.gate_proj.bias", SHARD_COLUMN);
    assert_weight(program, op[4].ffn_in.up_bias, s->mlp_bias, layer, "mlp.up_proj.bias", SHARD_COLUMN);
    assert_weight(program, op[5].row.weight, true, layer, "mlp.down_proj.weight", SHARD_ROW);
    assert_weight(program, op[6].exchange.bias, s->mlp_bias, layer, "mlp.down_proj.bias", SHARD_REPLICATED);
    const op_attn *a = &op[1].attn;
    int kv = s->n_kv_heads > program->group.size ? s->n_kv_heads / program->group.size : 1;
    assert_int_equal(a->window_tokens, s->layer_windowed[layer] ? s->window_tokens : 0);
    assert_true(a->scale == (float)(1 / sqrt(s->d_head)));
    assert_true(a->d_head == s->d_head && a->n_heads_loc == s->n_heads / program->group.size && a->n_kv_loc == kv);
    assert_true(q->d_head == s->d_head && q->n_heads_loc == a->n_heads_loc && q->n_kv_loc == kv);
    assert_true(q->eps == (float)s->norm_eps && op[4].ffn_in.eps == q->eps);
    assert_false(op[3].exchange.init || op[6].exchange.init);
}

static void check_ops(const ls_spec *spec) {
    static const ls_op_kind LAYER[] = {OP_QKV, OP_ATTN, OP_OUT, OP_EXCHANGE, OP_FFN_IN, OP_FFN_OUT, OP_EXCHANGE};
    enum { LAYER_OPS = sizeof LAYER / sizeof *LAYER };
    for (int size = 1; size <= (spec->n_heads == 4 ? 4 : 8); size *= 2) {
        ls_program *p = build(spec, size - 1, size, LS_BF16);
        assert_int_equal(p->n_ops, 2 + LAYER_OPS * spec->n_layers + 2);
        assert_int_equal(p->n_exchanges, 1 + 2 * spec->n_layers);
        assert_int_equal(p->op[0].kind, OP_EMBED);
        assert_int_equal(p->op[1].kind, OP_EXCHANGE);
        assert_true(p->op[1].exchange.init && p->op[1].exchange.bias == -1);
        for (int layer = 0; layer < spec->n_layers; layer++) {
            const ls_op *op = p->op + 2 + LAYER_OPS * layer;
            for (int i = 0; i < LAYER_OPS; i++) {
                assert_int_equal(op[i].kind, LAYER[i]);
                assert_int_equal(op[i].layer, layer);
            }
            check_layer(p, layer, op);
        }
        const ls_op *head = &p->op[p->n_ops - 2], *sample = &p->op[p->n_ops - 1];
        assert_true(head->kind == OP_HEAD && sample->kind == OP_SAMPLE);
        assert_true(head->layer == -1 && sample->layer == -1 && p->op[0].layer == -1);
        assert_string_equal(weight_name(p, head->head.norm), "model.norm.weight");
        assert_string_equal(weight_name(p, p->op[0].embed.table), "model.embed_tokens.weight");
        assert_string_equal(weight_name(p, head->head.weight),
                            spec->tied ? "model.embed_tokens.weight" : "lm_head.weight");
        assert_int_equal(head->head.weight == p->op[0].embed.table, spec->tied); /* one copy */
        assert_int_equal(sample->sample.n_vocab, spec->n_vocab);
        assert_int_equal(sample->sample.vocab_first, head->head.vocab_first);
        assert_int_equal(sample->sample.vocab_count, p->weight[head->head.weight].row.count);
        program_destroy(&p);
        assert_null(p);
    }
}

static void ops_in_order_with_their_weights(void **state) {
    (void)state;
    for_each_spec(check_ops);
}

static void families_have_their_features(void **state) {
    (void)state;
    static const struct {
        const char *golden, *family;
        bool qkv_bias, out_bias, mlp_bias, qk_norm, windowed[2];
    } expected[] = {
        {"llama_plain", "llama", false, false, false, false, {false, false}},
        {"llama_bias", "llama", true, true, true, false, {false, false}},
        {"mistral_window", "mistral", false, false, false, false, {true, true}},
        {"mistral_nemo", "mistral", false, false, false, false, {false, false}},
        {"qwen2_older", "qwen2", true, false, false, false, {false, false}},
        {"qwen2_window_yarn_older", "qwen2", true, false, false, false, {false, true}},
        {"qwen3_gqa2", "qwen3", false, false, false, true, {false, false}},
        {"qwen3_bias", "qwen3", true, true, false, true, {false, false}},
    };
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        ls_spec spec = read_spec(expected[i].golden);
        ls_program *p = build(&spec, 0, 1, LS_F32);
        assert_string_equal(spec.family->model_type, expected[i].family);
        for (int layer = 0; layer < 2; layer++) {
            const ls_op *op = p->op + 2 + 7 * layer;
            assert_int_equal(op[0].qkv.q_bias >= 0, expected[i].qkv_bias);
            assert_int_equal(op[0].qkv.v_bias >= 0, expected[i].qkv_bias);
            assert_int_equal(op[0].qkv.q_norm >= 0, expected[i].qk_norm);
            assert_int_equal(op[1].attn.window_tokens > 0, expected[i].windowed[layer]);
            assert_int_equal(op[3].exchange.bias >= 0, expected[i].out_bias);
            assert_int_equal(op[4].ffn_in.gate_bias >= 0, expected[i].mlp_bias);
            assert_int_equal(op[6].exchange.bias >= 0, expected[i].mlp_bias);
        }
        program_destroy(&p);
    }
}

/* ---- Costs ---- */

/* Elements of matrices and of vectors in the whole model, the embedding apart. */
static void count_parameters(const ls_spec *s, int64_t *matrices, int64_t *vectors) {
    int64_t q = (int64_t)s->n_heads * s->d_head, kv = (int64_t)s->n_kv_heads * s->d_head, D = s->d_model, F = s->d_ffn;
    *matrices = s->n_layers * (2 * q * D + 2 * kv * D + 3 * F * D) + (int64_t)s->n_vocab * D;
    int64_t biases = (s->qkv_bias ? q + 2 * kv : 0) + (s->out_bias ? D : 0) + (s->mlp_bias ? 2 * F + D : 0);
    *vectors = s->n_layers * (2 * D + (s->qk_norm ? 2 * s->d_head : 0) + biases) + D;
}

static void check_costs(const ls_spec *spec) {
    int64_t matrices, vectors, embedding = spec->tied ? 0 : (int64_t)spec->n_vocab * spec->d_model;
    count_parameters(spec, &matrices, &vectors);
    for (int dtype = LS_F32; dtype <= LS_F16; dtype++) {
        int64_t bytes = dtype == LS_F32 ? 4 : 2;
        ls_program *p = build(spec, 0, 1, (ls_dtype)dtype);
        assert_int_equal(p->weight_bytes, (matrices + embedding) * bytes + vectors * 4);
        assert_int_equal(p->read_bytes, matrices * bytes + vectors * 4);
        assert_int_equal(p->flops_per_row, 2 * matrices);
        int64_t sum = 0, flops = 0;
        for (int i = 0; i < p->n_ops; i++) {
            sum += p->op[i].weight_bytes;
            flops += p->op[i].flops_per_row;
            assert_int_equal(p->op[i].exchange_bytes_per_row, 0); /* a rank alone sends nothing */
        }
        assert_int_equal(sum, p->read_bytes);
        assert_int_equal(flops, p->flops_per_row);
        program_destroy(&p);
    }
}

static void costs_equal_a_count_of_parameters(void **state) {
    (void)state;
    for_each_spec(check_costs);
    ls_spec spec;
    ls_error err = {0};
    assert_int_equal(spec_by_name(&spec, "Qwen/Qwen3-4B", &err), LS_OK);
    check_costs(&spec);
    ls_program *p = build(&spec, 0, 1, LS_BF16);
    assert_true(fabs((double)p->read_bytes / 8.04e9 - 1) < 2e-3); /* design section 5: 8.04 GB a token */
    program_destroy(&p);
}

/* All ranks together compute the whole model once, but for norms, biases and KV heads that several hold. */
static void check_rank_sums(const ls_spec *spec) {
    ls_program *whole = build(spec, 0, 1, LS_F16);
    for (int size = 2; size <= (spec->n_heads == 4 ? 4 : 8); size *= 2) {
        int copies = size > spec->n_kv_heads ? size / spec->n_kv_heads : 1;
        int64_t flops = 0, kv_flops = 4LL * spec->n_layers * spec->n_kv_heads * spec->d_head * spec->d_model;
        for (int rank = 0; rank < size; rank++) {
            ls_program *p = build(spec, rank, size, LS_F16);
            flops += p->flops_per_row;
            assert_int_equal(p->n_ops, whole->n_ops);
            assert_int_equal(p->n_weights, whole->n_weights);
            for (int i = 0; i < p->n_ops; i++) {
                const ls_op *a = &p->op[i], *b = &whole->op[i];
                assert_true(a->kind == b->kind && a->layer == b->layer && a->reads == b->reads &&
                            a->writes == b->writes);
                int64_t words = a->kind == OP_EXCHANGE ? 4LL * spec->d_model : 0;
                assert_int_equal(a->exchange_bytes_per_row, words);
            }
            program_destroy(&p);
        }
        assert_int_equal(flops, whole->flops_per_row + (copies - 1) * kv_flops);
    }
    program_destroy(&whole);
}

static void ranks_share_the_work(void **state) {
    (void)state;
    for_each_spec(check_rank_sums);
}

/* ---- Buffers and slots ---- */

static void check_flow(const ls_spec *spec) {
    ls_program *p = build(spec, 0, 2, LS_F32);
    uint32_t written = 1u << BUF_H; /* the first exchange starts h anew */
    int n_exchanges = 0;
    for (int i = 0; i < p->n_ops; i++) {
        const ls_op *op = &p->op[i];
        assert_int_equal(op->reads & ~written, 0);
        assert_true(op->writes != 0 && op->writes < 1u << BUF_COUNT);
        written |= op->writes;
        if (op->kind == OP_EXCHANGE) {
            const ls_op *before = op - 1;
            int slot = before->kind == OP_EMBED ? before->embed.slot : before->row.slot;
            assert_int_equal(before->writes, 1u << BUF_PART);
            assert_int_equal(op->exchange.slot, n_exchanges % 2); /* they alternate, across layers too */
            assert_int_equal(slot, op->exchange.slot);
            n_exchanges++;
        } else {
            assert_int_equal(op->writes >> BUF_H & 1, 0);
        }
    }
    assert_int_equal(n_exchanges, p->n_exchanges);
    program_destroy(&p);
}

static void buffers_flow_and_slots_alternate(void **state) {
    (void)state;
    for_each_spec(check_flow);
}

/* ---- Shards ---- */

/* Marks what a rank holds of [0, n). */
static void mark(uint8_t *held, int64_t n, shard_range range) {
    assert_true(range.first >= 0 && range.count >= 0 && range.first + range.count <= n);
    for (int64_t i = range.first; i < range.first + range.count; i++) {
        held[i]++;
    }
}

static void check_slot_tiles(const ls_spec *spec, ls_program *const *rank, int size, int i_weight) {
    const weight_slot *slot = &rank[0]->weight[i_weight];
    int64_t outputs = slot->n_dims == 1 ? slot->cols : slot->rows;
    int64_t n = slot->rule == SHARD_ROW ? slot->cols : outputs;
    int copies = slot->rule == SHARD_REPLICATED                            ? size
                 : slot->rule == SHARD_KV_HEADS && size > spec->n_kv_heads ? size / spec->n_kv_heads
                                                                           : 1;
    uint8_t *held = calloc((size_t)n, 1);
    assert_non_null(held);
    int64_t next = 0;
    for (int r = 0; r < size; r++) {
        const weight_slot *s = &rank[r]->weight[i_weight];
        assert_string_equal(s->name, slot->name);
        bool along_cols = s->n_dims == 1 || s->rule == SHARD_ROW;
        shard_range range = along_cols ? s->col : s->row, other = along_cols ? s->row : s->col;
        assert_true(other.first == 0 && other.count == (along_cols ? s->rows : s->cols));
        mark(held, n, range);
        if (copies == 1) {
            assert_true(range.first == next || range.count == 0); /* in rank order, without a hole */
            next += range.count;
        }
        if (s->rule == SHARD_KV_HEADS) {
            int64_t head = (int64_t)r * spec->n_kv_heads / size; /* that of the rank's first query head's group */
            assert_int_equal(range.first, head * spec->d_head);
        }
        if (s->rule == SHARD_ROW || s->rule == SHARD_COLUMN || s->rule == SHARD_VOCAB) {
            assert_int_equal(range.first, leaf_border(n, r * (8 / size))); /* leaf borders */
        }
    }
    for (int64_t i = 0; i < n; i++) {
        assert_int_equal(held[i], copies);
    }
    free(held);
}

static void check_tiles(const ls_spec *spec) {
    for (int size = 1; size <= (spec->n_heads == 4 ? 4 : 8); size *= 2) {
        ls_program *rank[LS_MAX_RANKS];
        for (int r = 0; r < size; r++) {
            rank[r] = build(spec, r, size, LS_BF16);
        }
        for (int i = 0; i < rank[0]->n_weights; i++) {
            check_slot_tiles(spec, rank, size, i);
        }
        for (int r = 0; r < size; r++) {
            const ls_op *op = rank[r]->op;
            const weight_slot *table = &rank[r]->weight[op[0].embed.table];
            assert_true(op[0].embed.vocab_first == table->row.first && op[0].embed.vocab_count == table->row.count);
            assert_true(op[4].row.leaf_first == r * (8 / size) && op[4].row.leaf_count == 8 / size);
            assert_int_equal(op[4].row.k_total, spec->n_heads * spec->d_head);
            assert_int_equal(op[7].row.k_total, spec->d_ffn);
            assert_int_equal(op[6].ffn_in.d_ffn_loc, rank[r]->weight[op[6].ffn_in.gate].row.count);
            program_destroy(&rank[r]);
        }
    }
}

static void shards_tile_the_whole(void **state) {
    (void)state;
    for_each_spec(check_tiles);
}

static void counts_that_do_not_split_are_refused(void **state) {
    (void)state;
    static const struct {
        int size, heads, kv_heads;
        const char *words;
    } bad[] = {{3, 12, 12, "must be 1, 2, 4 or 8"},
               {0, 8, 8, "must be"},
               {16, 16, 16, "must be"},
               {-2, 8, 8, "must be"},
               {8, 4, 2, "4 query heads and 2 KV heads do not split so; it runs with 1, 2, 4"},
               {2, 9, 3, "runs with 1"},
               {4, 6, 6, "runs with 1, 2"},
               {8, 40, 20, "runs with 1, 2, 4"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ls_error err = {0};
        ls_status expected = bad[i].words[0] == 'm' ? LS_EINVAL : LS_EUNSUPPORTED;
        assert_int_equal(shard_check(bad[i].size, bad[i].heads, bad[i].kv_heads, &err), expected);
        assert_non_null(strstr(err.text, "--tensor-parallel-size"));
        if (strstr(err.text, bad[i].words) == NULL) {
            fail_msg("%s", err.text);
        }
    }
    ls_spec spec = read_spec("ckpt_f32");
    ls_program *program = NULL;
    ls_error err = {0};
    assert_int_equal(program_build(&program, &spec, (ls_group){0, 8}, LS_F32, LS_QUANTIZATION_NONE, &err),
                     LS_EUNSUPPORTED);
    assert_null(program);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ops_in_order_with_their_weights),      cmocka_unit_test(families_have_their_features),
        cmocka_unit_test(costs_equal_a_count_of_parameters),    cmocka_unit_test(ranks_share_the_work),
        cmocka_unit_test(buffers_flow_and_slots_alternate),     cmocka_unit_test(shards_tile_the_whole),
        cmocka_unit_test(counts_that_do_not_split_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
