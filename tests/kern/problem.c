/* From a case to numbers: seeded by the case, so that each is the same in every run. See harness.h. */
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Random numbers: splitmix64 ---- */

static uint64_t next_u64(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int next_below(uint64_t *state, int n) {
    return (int)(next_u64(state) % (uint64_t)n);
}

/* About normal, mean 0, deviation 1: a sum of 4 uniforms. */
static double next_normal(uint64_t *state) {
    uint64_t bits = next_u64(state);
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += (double)(bits >> 16 * i & 0xffff) / 65536 - 0.5;
    }
    return sum * 1.7320508;
}

static float *fill(uint64_t *state, int64_t n, double mean, double deviation, ls_dtype dtype) {
    float *value = malloc((size_t)(n > 0 ? n : 1) * sizeof *value);
    for (int64_t i = 0; i < n; i++) {
        value[i] = (float)oracle_round(dtype, mean + deviation * next_normal(state));
    }
    return value;
}

const char *kern_case_text(const kern_case *c, char text[256]) {
    int n = snprintf(text, 256, "%s %s%s%s/%s D %d N %d H %d K %d d %d W %d%s%s, sequences (past+rows)",
                     op_kind_name(c->kind), c->quantization ? ls_quantization_name(c->quantization) : "",
                     c->quantization ? " " : "", ls_dtype_name(c->dtype), ls_dtype_name(c->kv_dtype), c->d_model, c->n,
                     c->n_heads, c->n_kv, c->d_head, c->window, c->bias ? " bias" : "", c->qk_norm ? " qk-norm" : "");
    for (int s = 0; s < KERN_MAX_SEQS && c->seq[s].n_rows > 0 && n < 240; s++) {
        n += snprintf(text + n, 256 - (size_t)n, " %d+%d", c->seq[s].n_past, c->seq[s].n_rows);
    }
    return text;
}

/* ---- Weights ---- */

static void matrix(kern_problem *p, kern_weight which, shard_rule rule, int rows, int cols, double deviation,
                   uint64_t *state) {
    p->weight[which] = (kern_tensor){.rows = rows,
                                     .cols = cols,
                                     .format = p->c->dtype,
                                     .rule = rule,
                                     .value = fill(state, (int64_t)rows * cols, 0, deviation, p->c->dtype)};
    kern_tensor *t = &p->weight[which];
    if (p->c->quantization == LS_QUANTIZATION_NONE) {
        return;
    }
    t->format = LS_INT8;
    t->q = malloc((size_t)rows * (size_t)cols);
    t->scale = malloc((size_t)rows * LS_LEAVES * sizeof *t->scale);
    double *leaf = malloc((size_t)cols * sizeof *leaf);
    for (int64_t row = 0; row < rows; row++) {
        for (int i = 0; i < LS_LEAVES; i++) {
            int64_t from = leaf_border(cols, i), n = leaf_border(cols, i + 1) - from;
            for (int64_t k = 0; k < n; k++) {
                leaf[k] = t->value[row * cols + from + k];
            }
            t->scale[row * LS_LEAVES + i] = oracle_quantize(leaf, n, t->q + row * cols + from);
        }
    }
    free(leaf);
}

static void vector(kern_problem *p, kern_weight which, shard_rule rule, int n, double mean, double deviation,
                   uint64_t *state) {
    p->weight[which] = (kern_tensor){.rows = 1,
                                     .cols = n,
                                     .is_vector = true,
                                     .format = LS_F32,
                                     .rule = rule,
                                     .value = fill(state, n, mean, deviation, LS_F32)};
}

static void make_weights(kern_problem *p, uint64_t *state) {
    const kern_case *c = p->c;
    const int q = c->n_heads * c->d_head, kv = c->n_kv * c->d_head;
    const double in = 1 / sqrt(c->d_model);
    bool norms = c->kind == OP_QKV || c->kind == OP_FFN_IN || c->kind == OP_HEAD;
    if (norms) {
        vector(p, KW_NORM, SHARD_REPLICATED, c->d_model, 1, 0.3, state);
    }
    switch (c->kind) {
    case OP_EMBED:
        matrix(p, KW_TABLE, SHARD_VOCAB, c->n, c->d_model, 1, state);
        break;
    case OP_QKV:
        matrix(p, KW_Q, SHARD_COLUMN, q, c->d_model, 2 * in, state);
        matrix(p, KW_K, SHARD_KV_HEADS, kv, c->d_model, 2 * in, state);
        matrix(p, KW_V, SHARD_KV_HEADS, kv, c->d_model, in, state);
        if (c->bias) {
            vector(p, KW_Q_BIAS, SHARD_COLUMN, q, 0, 0.5, state);
            vector(p, KW_K_BIAS, SHARD_KV_HEADS, kv, 0, 0.5, state);
            vector(p, KW_V_BIAS, SHARD_KV_HEADS, kv, 0, 0.5, state);
        }
        if (c->qk_norm) {
            vector(p, KW_Q_NORM, SHARD_REPLICATED, c->d_head, 1, 0.3, state);
            vector(p, KW_K_NORM, SHARD_REPLICATED, c->d_head, 1, 0.3, state);
        }
        break;
    case OP_OUT:
    case OP_FFN_OUT:
        matrix(p, KW_ROW, SHARD_ROW, c->d_model, c->n, 1 / sqrt(c->n), state);
        break;
    case OP_EXCHANGE:
        if (c->bias) {
            vector(p, KW_ROW_BIAS, SHARD_REPLICATED, c->d_model, 0, 0.5, state);
        }
        break;
    case OP_FFN_IN:
        matrix(p, KW_GATE, SHARD_COLUMN, c->n, c->d_model, 2 * in, state);
        matrix(p, KW_UP, SHARD_COLUMN, c->n, c->d_model, 2 * in, state);
        if (c->bias) {
            vector(p, KW_GATE_BIAS, SHARD_COLUMN, c->n, 0, 0.5, state);
            vector(p, KW_UP_BIAS, SHARD_COLUMN, c->n, 0, 0.5, state);
        }
        break;
    case OP_HEAD:
        matrix(p, KW_HEAD, SHARD_VOCAB, c->n, c->d_model, 2 * in, state);
        break;
    default:
        break;
    }
}

/* ---- Inputs ---- */

static void make_sequences(kern_problem *p, uint64_t *state) {
    const kern_case *c = p->c;
    int n_pages = 0;
    for (; p->n_seqs < KERN_MAX_SEQS && c->seq[p->n_seqs].n_rows > 0; p->n_seqs++) {
        int s = p->n_seqs;
        p->seq_first[s] = p->n_rows;
        for (int i = 0; i < c->seq[s].n_rows; i++) {
            p->row_seq[p->n_rows] = s;
            p->row_pos[p->n_rows++] = c->seq[s].n_past + i;
        }
        n_pages += (kern_positions(c, s) + LS_PAGE_TOKENS - 1) / LS_PAGE_TOKENS;
    }
    p->n_pages = n_pages + 3; /* some belong to nobody */
    int32_t *shuffled = malloc((size_t)p->n_pages * sizeof *shuffled);
    for (int i = 0; i < p->n_pages; i++) {
        int j = next_below(state, i + 1);
        shuffled[i] = shuffled[j];
        shuffled[j] = i;
    }
    for (int s = 0, taken = 0; s < p->n_seqs; s++) {
        int n = (kern_positions(c, s) + LS_PAGE_TOKENS - 1) / LS_PAGE_TOKENS;
        p->page[s] = malloc((size_t)n * sizeof *p->page[s]);
        memcpy(p->page[s], shuffled + taken, (size_t)n * sizeof *p->page[s]);
        taken += n;
    }
    free(shuffled);
}

static void make_rope(kern_problem *p) {
    int n_positions = 0, d = p->c->d_head;
    for (int s = 0; s < p->n_seqs; s++) {
        int n = kern_positions(p->c, s);
        n_positions = n > n_positions ? n : n_positions;
    }
    p->rope = malloc((size_t)n_positions * (size_t)d * sizeof *p->rope);
    for (int pos = 0; pos < n_positions; pos++) {
        for (int i = 0; i < d / 2; i++) {
            double angle = pos * pow(10000, -2.0 * i / d);
            p->rope[pos * d + 2 * i] = (float)cos(angle);
            p->rope[pos * d + 2 * i + 1] = (float)sin(angle);
        }
    }
}

/* Every way to sample, in turn. */
static void make_sample(kern_problem *p, int row, uint64_t *state) {
    static const struct {
        float temperature;
        int top_k;
        float top_p;
    } ways[] = {{1, 0, 1}, {0, 0, 1}, {0.7F, 50, 0.9F}, {1.5F, 0, 0.5F}, {0.3F, 0, 1}, {1, 300, 1}, {0, 5, 0.5F}};
    size_t i = (size_t)row % (sizeof ways / sizeof *ways);
    for (int j = 0; j < KERN_EDITS; j++) {
        p->edit[j] = (ls_logit_edit){p->c->n * j / KERN_EDITS, j % 2 ? 1.5F : 0, j % 3 ? 1.25F : 1,
                                     j % 4 == 3 ? -INFINITY : 0.5F};
        p->allowed[j] = p->c->n * j / KERN_EDITS;
    }
    bool edits = p->c->n >= 2 * KERN_EDITS; /* so that ids differ */
    p->sample[row] = (ls_sample_params){.temperature = ways[i].temperature,
                                        .top_k = ways[i].top_k,
                                        .top_p = ways[i].top_p,
                                        .min_p = row % 5 == 4 ? 0.05F : 0,
                                        .edit = p->edit,
                                        .n_edits = edits && row % 3 == 1 ? KERN_EDITS : 0,
                                        .allowed = edits && row % 4 == 3 ? p->allowed : NULL,
                                        .n_allowed = KERN_EDITS,
                                        .n_top = row % 3 - 1 + (row % 3 == 2 ? LS_SAMPLE_TOP - 1 : 0),
                                        .choice = (uint32_t)row,
                                        .seed = next_u64(state),
                                        .position = next_below(state, 100000)};
}

static void make_logits(kern_problem *p, uint64_t *state) {
    p->in = fill(state, (int64_t)p->n_rows * p->in_cols, 0, 4, LS_F32);
    for (int64_t i = 0; i < (int64_t)p->n_rows * p->in_cols; i++) {
        if (i / p->in_cols % 2 == 1) {
            p->in[i] = rintf(p->in[i] * 4) / 4; /* every other row has ties */
        }
    }
}

static void make_inputs(kern_problem *p, uint64_t *state) {
    const kern_case *c = p->c;
    const int64_t m = p->n_rows;
    p->in_cols = c->kind == OP_EMBED                          ? 0
                 : c->kind == OP_ATTN                         ? c->n_heads * c->d_head
                 : c->kind == OP_SAMPLE                       ? c->n
                 : c->kind == OP_OUT || c->kind == OP_FFN_OUT ? c->n
                                                              : c->d_model;
    switch (c->kind) {
    case OP_EMBED:
        p->input_rows = fill(state, m * c->d_model, 0, 1, LS_F32);
        for (int i = 0; i < m; i++) {
            p->token[i] = i % 3 == 1 ? -1 - (int32_t)(m - 1 - i) : i == 0 ? c->n - 1 : next_below(state, c->n);
        }
        break;
    case OP_ATTN:
        p->in = fill(state, m * p->in_cols, 0, 1.5, c->dtype);
        for (int s = 0; s < p->n_seqs; s++) {
            int64_t n = (int64_t)kern_positions(c, s) * c->n_kv * c->d_head;
            p->k[s] = fill(state, n, 0, 1, c->kv_dtype);
            p->v[s] = fill(state, n, 0.2, 1, c->kv_dtype);
        }
        break;
    case OP_OUT:
    case OP_FFN_OUT:
        p->in = fill(state, m * p->in_cols, 0, 1, c->dtype);
        break;
    case OP_SAMPLE:
        make_logits(p, state);
        break;
    case OP_EXCHANGE:
        p->leaf = fill(state, LS_LEAVES * m * c->d_model, 0, 1, LS_F32);
        p->in = fill(state, m * p->in_cols, 0, 3, LS_F32);
        break;
    default:
        p->in = fill(state, m * p->in_cols, 0, 3, LS_F32);
        break;
    }
    for (int i = 0; i < m; i++) {
        p->is_out[i] = c->kind == OP_SAMPLE || (c->kind == OP_HEAD && (m == 1 || i % 3 != 0));
        make_sample(p, i, state);
    }
}

kern_problem *problem_create(const kern_case *c) {
    uint64_t state = 0x6c6f636b73746570;
    char text[256];
    for (const char *at = kern_case_text(c, text); *at != '\0'; at++) {
        state = (state ^ (uint8_t)*at) * 0x100000001b3;
    }
    kern_problem *p = calloc(1, sizeof *p);
    p->c = c;
    make_sequences(p, &state);
    if (c->kind == OP_QKV) {
        make_rope(p);
    }
    make_weights(p, &state);
    make_inputs(p, &state);
    return p;
}

void problem_destroy(kern_problem *p) {
    for (int i = 0; i < KW_COUNT; i++) {
        free(p->weight[i].value);
        free(p->weight[i].q);
        free(p->weight[i].scale);
    }
    for (int s = 0; s < p->n_seqs; s++) {
        free(p->k[s]);
        free(p->v[s]);
        free(p->page[s]);
    }
    free(p->in);
    free(p->input_rows);
    free(p->leaf);
    free(p->rope);
    free(p);
}
