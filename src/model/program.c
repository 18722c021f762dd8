/* See program.h. */
#include "model/program.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/family.h"

struct program_builder {
    ls_program *program;
    int op_capacity, weight_capacity;
};

enum {
    OPS_PER_LAYER = 8, /* qkv attn out exchange ffn_in ffn_out exchange, and room for one more */
    OPS_AROUND = 4,    /* embed exchange head sample */
    WEIGHTS_PER_LAYER = 16,
    WEIGHTS_AROUND = 3 /* embedding, last norm, head */
};

const ls_spec *builder_spec(const program_builder *builder) {
    return builder->program->spec;
}

/* ---- Weights ---- */

static void shard_slot(weight_slot *slot, ls_group group, const ls_spec *spec) {
    slot->row = (shard_range){0, slot->rows};
    slot->col = (shard_range){0, slot->cols};
    /* A 1-D weight is one row: what a rule splits of its outputs lies along its columns. */
    shard_range *outputs = slot->n_dims == 1 ? &slot->col : &slot->row;
    switch (slot->rule) {
    case SHARD_REPLICATED:
        break;
    case SHARD_COLUMN:
    case SHARD_VOCAB:
        *outputs = shard_leaves(outputs->count, group);
        break;
    case SHARD_ROW:
        slot->col = shard_leaves(slot->cols, group);
        break;
    case SHARD_KV_HEADS: {
        shard_range heads = shard_kv_heads(spec->n_kv_heads, group);
        *outputs = (shard_range){heads.first * spec->d_head, heads.count * spec->d_head};
        break;
    }
    }
}

/* Adds a weight and returns its index; a tensor that is asked for again (a tied head) is the same weight. rows = 0: 1-D.
 * i_layer < 0: the name stands alone. */
static ls_status add_weight(program_builder *builder, int *out, int i_layer, const char *name, shard_rule rule,
                            int64_t rows, int64_t cols, ls_error *err) {
    ls_program *program = builder->program;
    weight_slot slot = {.rule = rule, .n_dims = rows > 0 ? 2 : 1, .rows = rows > 0 ? rows : 1, .cols = cols};
    bool quantized = slot.n_dims == 2 && program->quantization != LS_QUANTIZATION_NONE;
    slot.format = quantized ? LS_INT8 : slot.n_dims == 2 ? program->dtype : LS_F32;
    slot.n_leaves = !quantized ? 0 : rule == SHARD_ROW ? shard_leaf_count(program->group) : LS_LEAVES;
    if (i_layer < 0) {
        snprintf(slot.name, sizeof slot.name, "%s", name);
    } else {
        snprintf(slot.name, sizeof slot.name, "model.layers.%d.%s", i_layer, name);
    }
    for (int i = 0; i < program->n_weights; i++) {
        if (strcmp(program->weight[i].name, slot.name) == 0) {
            *out = i;
            return LS_OK;
        }
    }
    if (program->n_weights == builder->weight_capacity) {
        return error_set(err, LS_EINTERNAL, "program: more than %d weights", builder->weight_capacity);
    }
    shard_slot(&slot, program->group, program->spec);
    program->weight[program->n_weights] = slot;
    program->weight_bytes += slot_bytes(&slot);
    *out = program->n_weights++;
    return LS_OK;
}

static ls_status add_bias(program_builder *builder, int *out, bool wanted, int i_layer, const char *name,
                          shard_rule rule, int64_t cols, ls_error *err) {
    *out = -1;
    return wanted ? add_weight(builder, out, i_layer, name, rule, 0, cols, err) : LS_OK;
}

/* ---- Ops ---- */

static int64_t bytes_of(const ls_program *program, int i_weight) {
    return i_weight < 0 ? 0 : slot_bytes(&program->weight[i_weight]);
}

static int64_t flops_of(const ls_program *program, int i_weight) {
    const weight_slot *slot = &program->weight[i_weight];
    return 2 * slot->row.count * slot->col.count;
}

static ls_status add_op(program_builder *builder, const ls_op *op, ls_error *err) {
    ls_program *program = builder->program;
    if (program->n_ops == builder->op_capacity) {
        return error_set(err, LS_EINTERNAL, "program: more than %d ops", builder->op_capacity);
    }
    program->op[program->n_ops++] = *op;
    program->n_exchanges += op->kind == OP_EXCHANGE;
    program->read_bytes += op->weight_bytes;
    program->flops_per_row += op->flops_per_row;
    return LS_OK;
}

/* Slots of BUF_PART alternate by exchange, also across the border between two layers. */
static int next_slot(const program_builder *builder) {
    return builder->program->n_exchanges & 1;
}

static ls_status add_exchange(program_builder *builder, int i_layer, bool init, int bias, ls_error *err) {
    const ls_program *program = builder->program;
    ls_op op = {.kind = OP_EXCHANGE,
                .layer = i_layer,
                .reads = 1u << BUF_PART | 1u << BUF_H,
                .writes = 1u << BUF_H,
                .weight_bytes = bytes_of(program, bias),
                .exchange_bytes_per_row = program->group.size > 1 ? 4 * (int64_t)program->spec->d_model : 0,
                .exchange = {.init = init, .bias = bias, .slot = next_slot(builder)}};
    return add_op(builder, &op, err);
}

ls_status build_qkv(program_builder *builder, int i_layer, bool bias, bool qk_norm, ls_error *err) {
    const ls_program *program = builder->program;
    const ls_spec *spec = program->spec;
    int64_t q_rows = (int64_t)spec->n_heads * spec->d_head;
    int64_t kv_rows = (int64_t)spec->n_kv_heads * spec->d_head;
    int n_kv_loc = (int)shard_kv_heads(spec->n_kv_heads, program->group).count;
    op_qkv a = {.n_heads_loc = spec->n_heads / program->group.size,
                .n_kv_loc = n_kv_loc,
                .d_head = spec->d_head,
                .eps = (float)spec->norm_eps};
    TRY(add_weight(builder, &a.norm, i_layer, "input_layernorm.weight", SHARD_REPLICATED, 0, spec->d_model, err));
    TRY(add_weight(builder, &a.q, i_layer, "self_attn.q_proj.weight", SHARD_COLUMN, q_rows, spec->d_model, err));
    TRY(add_weight(builder, &a.k, i_layer, "self_attn.k_proj.weight", SHARD_KV_HEADS, kv_rows, spec->d_model, err));
    TRY(add_weight(builder, &a.v, i_layer, "self_attn.v_proj.weight", SHARD_KV_HEADS, kv_rows, spec->d_model, err));
    TRY(add_bias(builder, &a.q_bias, bias, i_layer, "self_attn.q_proj.bias", SHARD_COLUMN, q_rows, err));
    TRY(add_bias(builder, &a.k_bias, bias, i_layer, "self_attn.k_proj.bias", SHARD_KV_HEADS, kv_rows, err));
    TRY(add_bias(builder, &a.v_bias, bias, i_layer, "self_attn.v_proj.bias", SHARD_KV_HEADS, kv_rows, err));
    TRY(add_bias(builder, &a.q_norm, qk_norm, i_layer, "self_attn.q_norm.weight", SHARD_REPLICATED, spec->d_head, err));
    TRY(add_bias(builder, &a.k_norm, qk_norm, i_layer, "self_attn.k_norm.weight", SHARD_REPLICATED, spec->d_head, err));
    ls_op op = {.kind = OP_QKV,
                .layer = i_layer,
                .reads = 1u << BUF_H,
                .writes = 1u << BUF_X | 1u << BUF_QKV,
                .flops_per_row = flops_of(program, a.q) + flops_of(program, a.k) + flops_of(program, a.v),
                .qkv = a};
    int read[] = {a.norm, a.q, a.k, a.v, a.q_bias, a.k_bias, a.v_bias, a.q_norm, a.k_norm};
    for (size_t i = 0; i < sizeof read / sizeof *read; i++) {
        op.weight_bytes += bytes_of(program, read[i]);
    }
    return add_op(builder, &op, err);
}

ls_status build_attn(program_builder *builder, int i_layer, int window_tokens, ls_error *err) {
    const ls_program *program = builder->program;
    const ls_spec *spec = program->spec;
    ls_op op = {.kind = OP_ATTN,
                .layer = i_layer,
                .reads = 1u << BUF_QKV,
                .writes = 1u << BUF_ATT,
                .attn = {.n_heads_loc = spec->n_heads / program->group.size,
                         .n_kv_loc = (int)shard_kv_heads(spec->n_kv_heads, program->group).count,
                         .d_head = spec->d_head,
                         .window_tokens = window_tokens,
                         .scale = 1.0F / sqrtf((float)spec->d_head)}};
    return add_op(builder, &op, err);
}

static ls_status build_row(program_builder *builder, ls_op_kind kind, ls_buf input, int i_layer, const char *weight,
                           const char *bias, int64_t k_total, ls_error *err) {
    const ls_program *program = builder->program;
    int d_model = program->spec->d_model;
    op_row a = {.k_total = (int)k_total,
                .leaf_first = shard_leaf_first(program->group),
                .leaf_count = shard_leaf_count(program->group),
                .slot = next_slot(builder)};
    int i_bias;
    TRY(add_weight(builder, &a.weight, i_layer, weight, SHARD_ROW, d_model, k_total, err));
    TRY(add_bias(builder, &i_bias, bias != NULL, i_layer, bias, SHARD_REPLICATED, d_model, err));
    ls_op op = {.kind = kind,
                .layer = i_layer,
                .reads = 1u << input,
                .writes = 1u << BUF_PART,
                .weight_bytes = bytes_of(program, a.weight),
                .flops_per_row = flops_of(program, a.weight),
                .row = a};
    TRY(add_op(builder, &op, err));
    return add_exchange(builder, i_layer, false, i_bias, err);
}

ls_status build_out(program_builder *builder, int i_layer, bool bias, ls_error *err) {
    const ls_spec *spec = builder_spec(builder);
    return build_row(builder, OP_OUT, BUF_ATT, i_layer, "self_attn.o_proj.weight",
                     bias ? "self_attn.o_proj.bias" : NULL, (int64_t)spec->n_heads * spec->d_head, err);
}

ls_status build_ffn_out(program_builder *builder, int i_layer, bool bias, ls_error *err) {
    return build_row(builder, OP_FFN_OUT, BUF_ACT, i_layer, "mlp.down_proj.weight", bias ? "mlp.down_proj.bias" : NULL,
                     builder_spec(builder)->d_ffn, err);
}

ls_status build_ffn_in(program_builder *builder, int i_layer, bool bias, ls_error *err) {
    const ls_program *program = builder->program;
    const ls_spec *spec = program->spec;
    op_ffn_in a = {.d_ffn_loc = (int)shard_leaves(spec->d_ffn, program->group).count, .eps = (float)spec->norm_eps};
    TRY(add_weight(builder, &a.norm, i_layer, "post_attention_layernorm.weight", SHARD_REPLICATED, 0, spec->d_model,
                   err));
    TRY(add_weight(builder, &a.gate, i_layer, "mlp.gate_proj.weight", SHARD_COLUMN, spec->d_ffn, spec->d_model, err));
    TRY(add_weight(builder, &a.up, i_layer, "mlp.up_proj.weight", SHARD_COLUMN, spec->d_ffn, spec->d_model, err));
    TRY(add_bias(builder, &a.gate_bias, bias, i_layer, "mlp.gate_proj.bias", SHARD_COLUMN, spec->d_ffn, err));
    TRY(add_bias(builder, &a.up_bias, bias, i_layer, "mlp.up_proj.bias", SHARD_COLUMN, spec->d_ffn, err));
    ls_op op = {.kind = OP_FFN_IN,
                .layer = i_layer,
                .reads = 1u << BUF_H,
                .writes = 1u << BUF_X | 1u << BUF_ACT,
                .flops_per_row = flops_of(program, a.gate) + flops_of(program, a.up),
                .ffn_in = a};
    int read[] = {a.norm, a.gate, a.up, a.gate_bias, a.up_bias};
    for (size_t i = 0; i < sizeof read / sizeof *read; i++) {
        op.weight_bytes += bytes_of(program, read[i]);
    }
    return add_op(builder, &op, err);
}

static ls_status build_embed(program_builder *builder, ls_error *err) {
    const ls_program *program = builder->program;
    const ls_spec *spec = program->spec;
    shard_range vocab = shard_leaves(spec->n_vocab, program->group);
    op_embed a = {.vocab_first = (int)vocab.first, .vocab_count = (int)vocab.count, .slot = next_slot(builder)};
    TRY(add_weight(builder, &a.table, -1, "model.embed_tokens.weight", SHARD_VOCAB, spec->n_vocab, spec->d_model, err));
    ls_op op = {.kind = OP_EMBED, .layer = -1, .writes = 1u << BUF_PART, .embed = a};
    TRY(add_op(builder, &op, err));
    return add_exchange(builder, -1, true, -1, err);
}

static ls_status build_head(program_builder *builder, ls_error *err) {
    const ls_program *program = builder->program;
    const ls_spec *spec = program->spec;
    shard_range vocab = shard_leaves(spec->n_vocab, program->group);
    op_head a = {.vocab_first = (int)vocab.first, .vocab_count = (int)vocab.count, .eps = (float)spec->norm_eps};
    const char *head = spec->tied ? "model.embed_tokens.weight" : "lm_head.weight";
    TRY(add_weight(builder, &a.norm, -1, "model.norm.weight", SHARD_REPLICATED, 0, spec->d_model, err));
    TRY(add_weight(builder, &a.weight, -1, head, SHARD_VOCAB, spec->n_vocab, spec->d_model, err));
    ls_op op = {.kind = OP_HEAD,
                .layer = -1,
                .reads = 1u << BUF_H,
                .writes = 1u << BUF_X | 1u << BUF_LOGITS,
                .weight_bytes = bytes_of(program, a.norm) + bytes_of(program, a.weight),
                .flops_per_row = flops_of(program, a.weight),
                .head = a};
    TRY(add_op(builder, &op, err));
    ls_op sample = {.kind = OP_SAMPLE,
                    .layer = -1,
                    .reads = 1u << BUF_LOGITS,
                    .writes = 1u << BUF_SAMPLE,
                    .sample = {.vocab_first = a.vocab_first,
                               .vocab_count = a.vocab_count,
                               .n_vocab = spec->n_vocab,
                               .leaf_first = shard_leaf_first(program->group),
                               .leaf_count = shard_leaf_count(program->group)}};
    return add_op(builder, &sample, err);
}

ls_status program_build(ls_program **out, const ls_spec *spec, ls_group group, ls_dtype dtype,
                        ls_quantization quantization, ls_error *err) {
    TRY(shard_check(group.size, spec->n_heads, spec->n_kv_heads, err));
    program_builder builder = {.op_capacity = OPS_PER_LAYER * spec->n_layers + OPS_AROUND,
                               .weight_capacity = WEIGHTS_PER_LAYER * spec->n_layers + WEIGHTS_AROUND};
    ls_program *program = calloc(1, sizeof *program);
    ls_status st = LS_OK;
    if (program == NULL) {
        return error_set(err, LS_ENOMEM, "program: out of memory");
    }
    builder.program = program;
    program->spec = spec;
    program->group = group;
    program->dtype = dtype;
    program->quantization = quantization;
    program->op = calloc((size_t)builder.op_capacity, sizeof *program->op);
    program->weight = calloc((size_t)builder.weight_capacity, sizeof *program->weight);
    if (program->op == NULL || program->weight == NULL) {
        TRY_GOTO(error_set(err, LS_ENOMEM, "program: out of memory"), fail);
    }
    TRY_GOTO(build_embed(&builder, err), fail);
    for (int i = 0; i < spec->n_layers; i++) {
        TRY_GOTO(spec->family->layer(&builder, i, err), fail);
    }
    TRY_GOTO(build_head(&builder, err), fail);
    *out = program;
    return LS_OK;
fail:
    program_destroy(&program);
    return st;
}

void program_destroy(ls_program **program) {
    if (*program != NULL) {
        free((*program)->op);
        free((*program)->weight);
        free(*program);
        *program = NULL;
    }
}
