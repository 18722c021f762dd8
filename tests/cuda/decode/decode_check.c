/*
 * The decode kernels against the CPU's reference ops, on a GPU: a program that stands alone (no tests/kern harness, no cmocka),
 * so that it can be carried to a machine that has nothing but the driver.
 *
 * A case is a model of one layer with 80 sequences at positions that meet the borders of pages and splits. The reference runs
 * once; each stretch of ops runs on the GPU from the reference's inputs, for M = 1, 2, 3, 7, 8, 9 and 16 rows, and those that
 * prefill uses too for up to 80, and must
 *   - agree with the reference within the tolerance (f32 sums of bf16 and f16: 5e-5, since their inputs are the same bits and
 *     mma rounds its sums towards zero);
 *   - give the bits of the largest M in its first M rows, whatever the bucket, and the same bits again.
 * int8 is checked against the reference on scale * q in f32.
 *
 *     decode_check             checks and timings
 *     decode_check check|time  only these
 *     decode_check small|few   small models in all dtypes, or (for racecheck) in one each and at near positions
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/cpu/cpu.h"
#include "backend/cuda/cuda.h"
#include "decode_device.h"

enum { ROWS = 80, LAYERS = 2, LAYER = 1 };

enum {
    W_TABLE,
    W_NORM_ATTN,
    W_Q,
    W_K,
    W_V,
    W_Q_BIAS,
    W_K_BIAS,
    W_V_BIAS,
    W_Q_NORM,
    W_K_NORM,
    W_OUT,
    W_OUT_BIAS,
    W_NORM_FFN,
    W_GATE,
    W_UP,
    W_GATE_BIAS,
    W_UP_BIAS,
    W_DOWN,
    W_DOWN_BIAS,
    W_NORM_HEAD,
    W_HEAD,
    W_COUNT
};

enum {
    I_EMBED,
    I_EXCHANGE_0,
    I_QKV,
    I_ATTN,
    I_OUT,
    I_EXCHANGE_1,
    I_FFN_IN,
    I_FFN_OUT,
    I_EXCHANGE_2,
    I_HEAD,
    I_SAMPLE,
    N_OPS
};

typedef struct model {
    const char *name;
    int d, f, heads, kv, d_head, vocab, window;
    bool bias, qk_norm, is_far;
} model;

static const model small_models[] = {
    {"tiny", 64, 96, 4, 2, 32, 128, 0, false, true, true},
    {"odd", 97, 131, 6, 2, 80, 1009, 100, true, true, false},
    {"gqa7", 160, 100, 14, 2, 64, 2999, 0, true, false, false},
    {"mha96", 48, 17, 3, 3, 96, 33, 300, false, true, false},
    {"d256", 272, 1000, 8, 1, 256, 515, 0, false, false, false},
    {"mqa128", 520, 1304, 4, 1, 128, 4096, 257, true, true, false},
    {"long", 72, 5000, 2, 1, 64, 130, 0, false, true, false},
};
static const model qwen3_4b = {"Qwen3-4B", 2560, 9728, 32, 8, 128, 20011, 0, false, true, false};
static const model mistral_7b = {"Mistral-7B", 4096, 14336, 32, 8, 128, 8000, 0, false, false, false};

/* Attention cuts them into 1, 2, 3 splits; far ones (of one model, since they take time) into 16 and 32. */
static const int near_positions[ROWS] = {26, 0,  63, 64, 255, 256, 282, 1030, 257, 5,  511, 512, 700, 100, 300, 127,
                                         1,  2,  3,  4,  6,   7,   8,   9,    10,  11, 12,  13,  14,  15,  16,  17,
                                         18, 19, 20, 21, 22,  23,  24,  25,   27,  28, 29,  30,  31,  32,  33,  34,
                                         35, 36, 37, 38, 39,  40,  62,  65,   66,  67, 126, 128, 129, 190, 191, 192};
static const int far_positions[ROWS] = {
    26, 9000, 63, 64, 255, 256, 282, 17000, 257, 8191, 511, 512, 700, 100, 8192, 127, 1,   2,   3,   4,  6,  7,
    8,  9,    10, 11, 12,  13,  14,  15,    16,  17,   18,  19,  20,  21,  22,   23,  24,  25,  27,  28, 29, 30,
    31, 32,   33, 34, 35,  36,  37,  38,    39,  40,   62,  65,  66,  67,  126,  128, 129, 190, 191, 192};

/* ---- Small things ---- */

static uint64_t random_state = 1;

static uint32_t next_u32(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

/* Uniform, mean 0, deviation 1. */
static float next_float(void) {
    return ((float)(next_u32() >> 8) * 0x1p-24F - 0.5F) * 3.4641016F;
}

static void *take(size_t bytes) {
    void *p = calloc(1, bytes + 64);
    if (p == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    return p;
}

static int n_passed, n_failed;

static void count(bool good, const char *what, const char *detail) {
    n_passed += good;
    n_failed += !good;
    if (!good) {
        printf("FAILED %s: %s\n", what, detail);
    }
}

/* ---- A case ---- */

typedef struct side {
    ls_weight weight[W_COUNT];
    ls_bind bind;
} side;

typedef struct check {
    const model *m;
    const int *position; /* [ROWS] */
    int longest;
    ls_dtype dtype, format, kv_dtype; /* run dtype; of matrices: int8 or dtype */
    char name[96];
    ls_op op[N_OPS];
    side cpu, gpu;
    int n_pages;
    int32_t token[ROWS], seq_of[ROWS], out_row[ROWS];
    int32_t *page[ROWS];
    ls_step_seq seq[ROWS];
    ls_sample_params how[ROWS];
    ls_step step;
    float *h_before, *h_after_0, *h_after_1, *h_after_2; /* the reference's */
    float *x_qkv, *x_ffn, *x_head, *part_0;
    size_t cache_bytes;
    void *cache_before[2]; /* K, V */
    device *gpu_device;
    cuda_rank *rank;
} check;

static int64_t cache_elements(const check *c) {
    return (int64_t)LAYERS * c->n_pages * c->m->kv * LS_PAGE_TOKENS * c->m->d_head;
}

static void add_vector(check *c, int which, int n, float mean, float deviation) {
    float *value = take((size_t)n * sizeof *value);
    for (int i = 0; i < n; i++) {
        value[i] = mean + deviation * next_float();
    }
    c->cpu.weight[which] = (ls_weight){.format = LS_F32, .data = value, .rows = 1, .cols = n};
    c->gpu.weight[which] = c->cpu.weight[which];
    c->gpu.weight[which].data = device_copy(c->gpu_device, value, (size_t)n * sizeof *value);
}

/* int8 as ops.h defines it; the reference gets scale * q in f32. */
static void quantize(const float *w, int rows, int cols, int8_t *q, float *scale, float *back) {
    for (int64_t r = 0; r < rows; r++) {
        for (int leaf = 0; leaf < LS_LEAVES; leaf++) {
            int64_t first = r * cols + leaf_border(cols, leaf), last = r * cols + leaf_border(cols, leaf + 1);
            float max = 0;
            for (int64_t i = first; i < last; i++) {
                max = fabsf(w[i]) > max ? fabsf(w[i]) : max;
            }
            float s = max / 127;
            scale[r * LS_LEAVES + leaf] = s;
            for (int64_t i = first; i < last; i++) {
                q[i] = (int8_t)(s == 0 ? 0 : lrintf(w[i] / s));
                back[i] = (float)q[i] * s;
            }
        }
    }
}

static void add_matrix(check *c, int which, int rows, int cols, float deviation) {
    const int64_t n = (int64_t)rows * cols;
    float *value = take((size_t)n * sizeof *value);
    for (int64_t i = 0; i < n; i++) {
        value[i] = deviation * next_float();
    }
    ls_weight *cpu = &c->cpu.weight[which], *gpu = &c->gpu.weight[which];
    if (c->format == LS_INT8) {
        int8_t *q = take((size_t)n);
        float *scale = take((size_t)rows * LS_LEAVES * sizeof *scale);
        quantize(value, rows, cols, q, scale, value);
        *cpu = (ls_weight){.format = LS_F32, .data = value, .rows = rows, .cols = cols};
        *gpu = (ls_weight){.format = LS_INT8,
                           .data = device_copy(c->gpu_device, q, (size_t)n),
                           .scale = device_copy(c->gpu_device, scale, (size_t)rows * LS_LEAVES * sizeof *scale),
                           .rows = rows,
                           .cols = cols};
        free(q);
        free(scale);
        return;
    }
    const size_t element = ls_dtype_bytes(c->dtype);
    void *stored = take((size_t)n * element);
    for (int64_t i = 0; i < n; i++) {
        store_as(c->dtype, stored, i, value[i]);
    }
    free(value);
    *cpu = (ls_weight){.format = c->dtype, .data = stored, .rows = rows, .cols = cols};
    *gpu = *cpu;
    gpu->data = device_copy(c->gpu_device, stored, (size_t)n * element);
}

static void add_weights(check *c) {
    const model *m = c->m;
    const int q = m->heads * m->d_head, kv = m->kv * m->d_head;
    const float in = 1 / sqrtf((float)m->d);
    add_matrix(c, W_TABLE, m->vocab, m->d, 1);
    add_vector(c, W_NORM_ATTN, m->d, 1, 0.3F);
    add_matrix(c, W_Q, q, m->d, 2 * in);
    add_matrix(c, W_K, kv, m->d, 2 * in);
    add_matrix(c, W_V, kv, m->d, in);
    add_matrix(c, W_OUT, m->d, q, 1 / sqrtf((float)q));
    add_vector(c, W_NORM_FFN, m->d, 1, 0.3F);
    add_matrix(c, W_GATE, m->f, m->d, 2 * in);
    add_matrix(c, W_UP, m->f, m->d, 2 * in);
    add_matrix(c, W_DOWN, m->d, m->f, 1 / sqrtf((float)m->f));
    add_vector(c, W_NORM_HEAD, m->d, 1, 0.3F);
    add_matrix(c, W_HEAD, m->vocab, m->d, 2 * in);
    if (m->bias) {
        add_vector(c, W_Q_BIAS, q, 0, 0.5F);
        add_vector(c, W_K_BIAS, kv, 0, 0.5F);
        add_vector(c, W_V_BIAS, kv, 0, 0.5F);
        add_vector(c, W_OUT_BIAS, m->d, 0, 0.5F);
        add_vector(c, W_GATE_BIAS, m->f, 0, 0.5F);
        add_vector(c, W_UP_BIAS, m->f, 0, 0.5F);
        add_vector(c, W_DOWN_BIAS, m->d, 0, 0.5F);
    }
    if (m->qk_norm) {
        add_vector(c, W_Q_NORM, m->d_head, 1, 0.3F);
        add_vector(c, W_K_NORM, m->d_head, 1, 0.3F);
    }
}

void build_ops(const model *m, int layer, ls_op *op);
void build_ops(const model *m, int layer, ls_op *op) {
    const int b = m->bias ? 0 : -1000, n = m->qk_norm ? 0 : -1000;
#define MAYBE(which, flag) ((which) + (flag) < 0 ? -1 : (which))
    const float eps = 1e-6F;
    op[I_EMBED] = (ls_op){.kind = OP_EMBED, .layer = -1, .embed = {W_TABLE, 0, m->vocab, 0}};
    op[I_EXCHANGE_0] = (ls_op){.kind = OP_EXCHANGE, .layer = -1, .exchange = {true, -1, 0}};
    op[I_QKV] = (ls_op){.kind = OP_QKV,
                        .layer = layer,
                        .qkv = {W_NORM_ATTN, W_Q, W_K, W_V, MAYBE(W_Q_BIAS, b), MAYBE(W_K_BIAS, b), MAYBE(W_V_BIAS, b),
                                MAYBE(W_Q_NORM, n), MAYBE(W_K_NORM, n), m->heads, m->kv, m->d_head, eps}};
    op[I_ATTN] = (ls_op){
        .kind = OP_ATTN, .layer = layer, .attn = {m->heads, m->kv, m->d_head, m->window, 1 / sqrtf((float)m->d_head)}};
    op[I_OUT] = (ls_op){.kind = OP_OUT, .layer = layer, .row = {W_OUT, m->heads * m->d_head, 0, LS_LEAVES, 1}};
    op[I_EXCHANGE_1] = (ls_op){.kind = OP_EXCHANGE, .layer = layer, .exchange = {false, MAYBE(W_OUT_BIAS, b), 1}};
    op[I_FFN_IN] = (ls_op){.kind = OP_FFN_IN,
                           .layer = layer,
                           .ffn_in = {W_NORM_FFN, W_GATE, W_UP, MAYBE(W_GATE_BIAS, b), MAYBE(W_UP_BIAS, b), m->f, eps}};
    op[I_FFN_OUT] = (ls_op){.kind = OP_FFN_OUT, .layer = layer, .row = {W_DOWN, m->f, 0, LS_LEAVES, 0}};
    op[I_EXCHANGE_2] = (ls_op){.kind = OP_EXCHANGE, .layer = layer, .exchange = {false, MAYBE(W_DOWN_BIAS, b), 0}};
    op[I_HEAD] = (ls_op){.kind = OP_HEAD, .layer = -1, .head = {W_NORM_HEAD, W_HEAD, 0, m->vocab, eps}};
    op[I_SAMPLE] = (ls_op){.kind = OP_SAMPLE, .layer = -1, .sample = {0, m->vocab, m->vocab, 0, LS_LEAVES}};
}

static void build_step(check *c) {
    int32_t next = 2;
    for (int i = 0; i < ROWS; i++) {
        const int n = c->position[i] / LS_PAGE_TOKENS + 1;
        c->page[i] = take((size_t)n * sizeof(int32_t));
        c->n_pages += n;
        c->seq[i] = (ls_step_seq){i, 1, c->position[i], c->page[i]};
        c->seq_of[i] = i;
        c->out_row[i] = i;
        c->token[i] = (int32_t)(next_u32() % (uint32_t)c->m->vocab);
        const float temperature[] = {0, 1, 0.7F, 2};
        c->how[i] = (ls_sample_params){.temperature = temperature[i % 4],
                                       .top_p = 1,
                                       .seed = 42 + (uint64_t)i * 0x100000001u,
                                       .choice = (uint32_t)i % 3,
                                       .position = c->position[i] + 1,
                                       .n_top = -1};
    }
    c->n_pages += 4;
    for (int j = 0; j < c->longest / LS_PAGE_TOKENS + 1; j++) { /* pages of a sequence lie apart */
        for (int i = 0; i < ROWS; i++) {
            if (j <= c->position[i] / LS_PAGE_TOKENS) {
                c->page[i][j] = next++;
            }
        }
    }
    c->step = (ls_step){.n_rows = ROWS,
                        .n_dec = ROWS,
                        .n_seqs = ROWS,
                        .n_out = ROWS,
                        .token = c->token,
                        .pos = c->position,
                        .seq_of = c->seq_of,
                        .seq = c->seq,
                        .out_row = c->out_row,
                        .sample = c->how};
}

/* The step's first n rows, as the host part of the back end lays it out. out_first: rows from it on have outputs. */
static void upload_step(check *c, int n, int out_first) {
    static uint8_t bytes[1 << 16];
    memset(bytes, 0, sizeof bytes);
    cuda_step *s = (cuda_step *)bytes;
    *s = (cuda_step){.n_rows = n, .n_dec = n, .n_seqs = n, .n_out = n - out_first};
    size_t at = (sizeof *s + 15) / 16 * 16;
    int n_pages = 0;
#define PUT(field, type, count)                                                                                        \
    type *field = (type *)(bytes + at);                                                                                \
    s->field = (int64_t)at;                                                                                            \
    at += ((size_t)(count) * sizeof(type) + 15) / 16 * 16;
    PUT(token, int32_t, n)
    PUT(pos, int32_t, n)
    PUT(seq_of, int32_t, n)
    PUT(out_row, int32_t, n)
    PUT(seq, cuda_seq, n)
    PUT(page, int32_t, c->n_pages)
    PUT(draw, cuda_draw, n)
#undef PUT
    for (int i = 0; i < n; i++) {
        token[i] = c->token[i];
        pos[i] = c->position[i];
        seq_of[i] = i;
        seq[i] = (cuda_seq){i, 1, c->position[i], n_pages};
        for (int j = 0; j <= c->position[i] / LS_PAGE_TOKENS; j++) {
            page[n_pages++] = c->page[i][j];
        }
    }
    /* Every other token is where the step before would have drawn it. */
    int32_t drawn[ROWS] = {0};
    for (int i = 1; i < n; i += 2) {
        drawn[n - 1 - i] = token[i];
        token[i] = LS_TOKEN_DRAWN + (n - 1 - i);
    }
    s->drawn = (int64_t)(c->rank->drawn - c->rank->step);
    device_write(c->gpu_device, (void *)(uintptr_t)c->rank->drawn, drawn, sizeof drawn);
    for (int i = 0; i < n - out_first; i++) {
        const ls_sample_params *how = &c->how[i];
        out_row[i] = i + out_first;
        draw[i] = (cuda_draw){.temperature = how->temperature,
                              .position = how->position,
                              .choice = how->choice,
                              .on_host = i == 5,
                              .seed = how->seed};
    }
    device_write(c->gpu_device, (void *)(uintptr_t)c->rank->step, bytes, at);
}

static void build_buffers(check *c) {
    const model *m = c->m;
    const int64_t qkv = (int64_t)(m->heads + 2 * m->kv) * m->d_head;
    const int64_t columns[BUF_COUNT] = {[BUF_H] = m->d,         [BUF_X] = m->d,
                                        [BUF_QKV] = qkv,        [BUF_ATT] = (int64_t)m->heads * m->d_head,
                                        [BUF_ACT] = m->f,       [BUF_PART] = 2 * CUDA_NODES * m->d,
                                        [BUF_LOGITS] = m->vocab};
    ls_bind *cpu = &c->cpu.bind, *gpu = &c->gpu.bind;
    *cpu = (ls_bind){.group = {0, 1},
                     .dtype = c->dtype,
                     .kv_dtype = c->kv_dtype,
                     .d_model = m->d,
                     .m_max = ROWS,
                     .n_pages = c->n_pages,
                     .isa = cpu_isa_best()};
    *gpu = *cpu;
    cpu->weight = c->cpu.weight;
    gpu->weight = c->gpu.weight;
    for (int i = 0; i < BUF_COUNT; i++) {
        if (columns[i] > 0) {
            cpu->buf[i] = take((size_t)(ROWS * columns[i]) * sizeof(float));
            gpu->buf[i] = device_take(c->gpu_device, (size_t)(ROWS * columns[i]) * sizeof(float));
        }
    }
    cpu->buf[BUF_SAMPLE] = take(ROWS * sizeof(ls_sample_part));
    cpu->buf[BUF_EDITED] = take((size_t)m->vocab * sizeof(float));
    cpu->buf[BUF_SLICE] = take(sizeof(ls_sample_part));
    cpu->peer_part[0] = cpu->buf[BUF_PART];
    gpu->peer_part[0] = gpu->buf[BUF_PART];
    cpu->n_parts = gpu->n_parts = 1;
    cpu->fault = take(ROWS * sizeof(atomic_int));
    gpu->fault = device_take(c->gpu_device, ROWS * sizeof(int32_t));
    const int n_rope = (c->longest + 1) * m->d_head;
    float *rope = take((size_t)n_rope * sizeof *rope);
    for (int i = 0; i < n_rope / 2; i++) {
        float angle =
            (float)(i / (m->d_head / 2)) * powf(10000, -2.0F * (float)(i % (m->d_head / 2)) / (float)m->d_head);
        rope[2 * i] = cosf(angle);
        rope[2 * i + 1] = sinf(angle);
    }
    cpu->rope = rope;
    gpu->rope = device_copy(c->gpu_device, rope, (size_t)n_rope * sizeof *rope);
    c->cache_bytes = (size_t)cache_elements(c) * ls_dtype_bytes(c->kv_dtype);
    for (int kv = 0; kv < 2; kv++) { /* NaN where nothing was appended */
        c->cache_before[kv] = take(c->cache_bytes);
        memset(c->cache_before[kv], 0xff, c->cache_bytes);
        for (int i = 0; i < ROWS; i++) {
            for (int j = 0; j < c->position[i]; j++) {
                for (int head = 0; head < m->kv; head++) {
                    int64_t row = (((int64_t)LAYER * c->n_pages + c->page[i][j / LS_PAGE_TOKENS]) * m->kv + head) *
                                      LS_PAGE_TOKENS +
                                  j % LS_PAGE_TOKENS;
                    for (int e = 0; e < m->d_head; e++) {
                        store_as(c->kv_dtype, c->cache_before[kv], row * m->d_head + e, next_float());
                    }
                }
            }
        }
    }
    cpu->k_cache = take(c->cache_bytes);
    cpu->v_cache = take(c->cache_bytes);
    memcpy(cpu->k_cache, c->cache_before[0], c->cache_bytes);
    memcpy(cpu->v_cache, c->cache_before[1], c->cache_bytes);
    gpu->k_cache = device_take(c->gpu_device, c->cache_bytes);
    gpu->v_cache = device_take(c->gpu_device, c->cache_bytes);
}

/* ---- The reference ---- */

static float *copy_rows(const void *from, int64_t cols) {
    float *to = take((size_t)(ROWS * cols) * sizeof *to);
    memcpy(to, from, (size_t)(ROWS * cols) * sizeof *to);
    return to;
}

/* BUF_PART of the reference is [2][M][D]. */
static void run_reference(check *c) {
    const ls_team team = {0, 1, NULL};
    ls_bind *bind = &c->cpu.bind;
    const int64_t d = c->m->d;
    for (int i = 0; i < N_OPS; i++) {
        if (i == I_SAMPLE) { /* a tie */
            float *logits = bind->buf[BUF_LOGITS];
            int best = 0;
            for (int j = 0; j < c->m->vocab; j++) {
                best = logits[j] > logits[best] ? j : best;
            }
            logits[(best + 7) % c->m->vocab] = logits[best];
        }
        cpu_ref_ops.fn[c->op[i].kind](&c->op[i], i, bind, &c->step, &team);
        switch (i) {
        case I_EMBED:
            c->part_0 = copy_rows(bind->buf[BUF_PART], d);
            break;
        case I_EXCHANGE_0:
            c->h_after_0 = copy_rows(bind->buf[BUF_H], d);
            break;
        case I_QKV:
            c->x_qkv = copy_rows(bind->buf[BUF_X], d);
            break;
        case I_EXCHANGE_1:
            c->h_after_1 = copy_rows(bind->buf[BUF_H], d);
            break;
        case I_FFN_IN:
            c->x_ffn = copy_rows(bind->buf[BUF_X], d);
            break;
        case I_EXCHANGE_2:
            c->h_after_2 = copy_rows(bind->buf[BUF_H], d);
            break;
        case I_HEAD:
            c->x_head = copy_rows(bind->buf[BUF_X], d);
            break;
        default:
            break;
        }
    }
}

/* ---- Between the two ---- */

/* Rows of the GPU's buffer as f32. */
static void get_rows(check *c, ls_buf buf, ls_dtype dtype, int n_rows, int64_t cols, float *out) {
    const size_t bytes = (size_t)(n_rows * cols) * ls_dtype_bytes(dtype);
    void *raw = take(bytes);
    device_read(c->gpu_device, raw, c->gpu.bind.buf[buf], bytes);
    for (int64_t i = 0; i < n_rows * cols; i++) {
        out[i] = load_as(dtype, raw, i);
    }
    free(raw);
}

static void put_rows(check *c, ls_buf buf, ls_dtype dtype, int n_rows, int64_t cols, const float *value) {
    const size_t bytes = (size_t)(n_rows * cols) * ls_dtype_bytes(dtype);
    void *raw = take(bytes);
    for (int64_t i = 0; i < n_rows * cols; i++) {
        store_as(dtype, raw, i, value[i]);
    }
    device_write(c->gpu_device, c->gpu.bind.buf[buf], raw, bytes);
    free(raw);
}

/* Fills a buffer with NaN, so that what is not written shows. */
static void spoil(check *c, ls_buf buf, int64_t cols) {
    device_fill(c->gpu_device, c->gpu.bind.buf[buf], 0xff, (size_t)(ROWS * cols) * sizeof(float));
}

static bool launch(check *c, int first, int count_, int bucket) {
    ls_error err = {0};
    for (int i = first; i < first + count_;) {
        int taken = 0;
        if (decode_launch(c->rank, c->op, N_OPS, i, bucket, &taken, &err) < 0 || taken < 1) {
            count(false, c->name, err.text);
            return false;
        }
        i += taken;
    }
    if (!device_wait(c->gpu_device, c->name)) {
        printf("%d passed, %d failed\n", n_passed, n_failed + 1);
        exit(1);
    }
    return true;
}

/* ---- Stretches of ops: what goes in, what comes out ---- */

typedef struct output {
    const char *name;
    const float *wanted; /* [ROWS][cols] */
    float *first;        /* of the first run */
    int64_t cols;
    double tolerance, worst;
} output;

enum { MAX_OUTPUTS = 3 };

typedef struct stretch {
    const char *name;
    int first, count;
    output out[MAX_OUTPUTS];
} stretch;

static double tolerance_of(ls_dtype dtype) {
    return dtype == LS_F32 ? 1e-5 : dtype == LS_F16 ? 2e-3 : 2e-2;
}

/* KV rows at the sequences' positions, [n][K d]. */
static void get_kv(const check *c, const void *cache, int n, float *out) {
    const model *m = c->m;
    for (int i = 0; i < n; i++) {
        for (int head = 0; head < m->kv; head++) {
            int64_t row = (((int64_t)LAYER * c->n_pages + c->page[i][c->position[i] / LS_PAGE_TOKENS]) * m->kv + head) *
                              LS_PAGE_TOKENS +
                          c->position[i] % LS_PAGE_TOKENS;
            for (int e = 0; e < m->d_head; e++) {
                out[((int64_t)i * m->kv + head) * m->d_head + e] = load_as(c->kv_dtype, cache, row * m->d_head + e);
            }
        }
    }
}

static void put_inputs(check *c, int first, int n) {
    const model *m = c->m;
    const ls_bind *gpu = &c->gpu.bind;
    spoil(c, BUF_PART, 2 * CUDA_NODES * m->d);
    switch (first) {
    case I_EMBED:
        spoil(c, BUF_H, m->d);
        spoil(c, BUF_X, m->d);
        break;
    case I_QKV:
        put_rows(c, BUF_X, c->dtype, n, m->d, c->x_qkv);
        spoil(c, BUF_QKV, (int64_t)(m->heads + 2 * m->kv) * m->d_head);
        spoil(c, BUF_ATT, (int64_t)m->heads * m->d_head);
        device_write(c->gpu_device, gpu->k_cache, c->cache_before[0], c->cache_bytes);
        device_write(c->gpu_device, gpu->v_cache, c->cache_before[1], c->cache_bytes);
        break;
    case I_OUT:
        put_rows(c, BUF_ATT, c->dtype, n, (int64_t)m->heads * m->d_head, c->cpu.bind.buf[BUF_ATT]);
        put_rows(c, BUF_H, LS_F32, n, m->d, c->h_after_0);
        spoil(c, BUF_X, m->d);
        break;
    case I_FFN_IN:
        put_rows(c, BUF_X, c->dtype, n, m->d, c->x_ffn);
        spoil(c, BUF_ACT, m->f);
        break;
    case I_FFN_OUT:
        put_rows(c, BUF_ACT, c->dtype, n, m->f, c->cpu.bind.buf[BUF_ACT]);
        put_rows(c, BUF_H, LS_F32, n, m->d, c->h_after_1);
        spoil(c, BUF_X, m->d);
        break;
    case I_HEAD:
        put_rows(c, BUF_X, c->dtype, n, m->d, c->x_head);
        spoil(c, BUF_LOGITS, m->vocab);
        break;
    default:
        break;
    }
}

static void get_output(check *c, const output *o, int n, float *out) {
    const ls_bind *gpu = &c->gpu.bind;
    if (o->name[0] == 'k' || o->name[0] == 'v') {
        void *cache = take(c->cache_bytes);
        device_read(c->gpu_device, cache, o->name[0] == 'k' ? gpu->k_cache : gpu->v_cache, c->cache_bytes);
        get_kv(c, cache, n, out);
        free(cache);
    } else if (strcmp(o->name, "h") == 0) {
        get_rows(c, BUF_H, LS_F32, n, o->cols, out);
    } else if (strcmp(o->name, "x") == 0) {
        get_rows(c, BUF_X, c->dtype, n, o->cols, out);
    } else if (strcmp(o->name, "att") == 0) {
        get_rows(c, BUF_ATT, c->dtype, n, o->cols, out);
    } else if (strcmp(o->name, "act") == 0) {
        get_rows(c, BUF_ACT, c->dtype, n, o->cols, out);
    } else {
        get_rows(c, BUF_LOGITS, LS_F32, n, o->cols, out);
    }
}

static void compare(check *c, const stretch *s, output *o, int n, int bucket, const float *got) {
    char what[160], detail[200];
    snprintf(what, sizeof what, "%s %s %s M=%d bucket %d", c->name, s->name, o->name, n, bucket);
    if (o->first != NULL && memcmp(got, o->first, (size_t)(n * o->cols) * sizeof *got) != 0) {
        int64_t i = 0;
        while (f32_bits(got[i]) == f32_bits(o->first[i])) {
            i++;
        }
        snprintf(detail, sizeof detail, "row %lld element %lld is %.9g here and %.9g at first",
                 (long long)(i / o->cols), (long long)(i % o->cols), (double)got[i], (double)o->first[i]);
        count(false, what, detail);
        return;
    }
    for (int row = 0; row < n; row++) {
        const float *a = got + row * o->cols, *b = o->wanted + row * o->cols;
        double apart = 0, largest = 0;
        int64_t where = 0;
        for (int64_t i = 0; i < o->cols; i++) {
            double difference = fabs((double)a[i] - b[i]);
            largest = fabs(b[i]) > largest ? fabs(b[i]) : largest;
            if (!(difference <= apart)) {
                apart = difference;
                where = i;
            }
        }
        double error = largest > 0 ? apart / largest : apart;
        o->worst = error > o->worst ? error : o->worst;
        if (!(error <= o->tolerance)) {
            snprintf(detail, sizeof detail, "row %d element %lld is %.9g, not %.9g: error %.2g, allowed %.0g", row,
                     (long long)where, (double)a[where], (double)b[where], error, o->tolerance);
            count(false, what, detail);
            return;
        }
    }
    count(true, what, "");
}

static void run_stretch(check *c, stretch *s, bool by_chains) {
    static const struct {
        int rows, bucket;
    } runs[] = {{80, 80}, {80, 80}, {65, 65}, {64, 64}, {33, 33}, {32, 32}, {31, 31},
                {26, 26}, {24, 24}, {18, 18}, {17, 17}, {17, 64}, {16, 16}, {1, 1},
                {1, 16},  {2, 2},   {3, 4},   {7, 8},   {8, 8},   {8, 16},  {9, 16}};
    for (size_t r = 0; r < sizeof runs / sizeof *runs; r++) {
        const int n = runs[r].rows;
        upload_step(c, n, 0);
        put_inputs(c, s->first, n);
        c->rank->attn_chains = by_chains ? 1 : -1;
        if (!launch(c, s->first, s->count, runs[r].bucket)) {
            return;
        }
        for (int o = 0; o < MAX_OUTPUTS && s->out[o].name != NULL; o++) {
            output *out = &s->out[o];
            float *got = take((size_t)(n * out->cols) * sizeof *got);
            get_output(c, out, n, got);
            compare(c, s, out, n, runs[r].bucket, got);
            if (out->first == NULL) {
                out->first = got;
            } else {
                free(got);
            }
        }
    }
    for (int o = 0; o < MAX_OUTPUTS; o++) {
        free(s->out[o].first);
    }
}

static void check_sample(check *c) {
    const ls_sample_part *part = c->cpu.bind.buf[BUF_SAMPLE];
    for (int bucket = 1; bucket <= CUDA_MAX_DECODE; bucket *= 4) {
        int32_t drawn[CUDA_MAX_DECODE];
        upload_step(c, bucket, 0);
        put_rows(c, BUF_LOGITS, LS_F32, ROWS, c->m->vocab, c->cpu.bind.buf[BUF_LOGITS]);
        device_fill(c->gpu_device, (void *)(uintptr_t)c->rank->drawn, 0x7f, sizeof drawn);
        if (!launch(c, I_SAMPLE, 1, bucket)) {
            return;
        }
        device_read(c->gpu_device, drawn, (void *)(uintptr_t)c->rank->drawn, sizeof drawn);
        for (int i = 0; i < bucket; i++) {
            int wanted = i == 5 ? -1 : c->how[i].temperature == 0 ? part[i].best[0].id : part[i].drawn_id;
            char detail[100];
            snprintf(detail, sizeof detail, "row %d of %d: drew %d, not %d", i, bucket, drawn[i], wanted);
            count(drawn[i] == wanted, c->name, detail);
        }
    }
}

/* Faults, and the head of some rows only. */
static void check_faults(check *c) {
    const model *m = c->m;
    int32_t fault[ROWS] = {0};
    char detail[100];
    float *h = copy_rows(c->h_after_1, m->d), *x = take((size_t)(ROWS * m->d) * sizeof *x);
    h[2 * m->d + m->d / 2] = NAN;
    upload_step(c, 7, 3); /* rows 3 .. 6 have outputs */
    put_inputs(c, I_FFN_OUT, 7);
    put_rows(c, BUF_H, LS_F32, ROWS, m->d, h);
    device_write(c->gpu_device, c->gpu.bind.fault, fault, sizeof fault);
    if (launch(c, I_FFN_OUT, 2, 8)) {
        device_read(c->gpu_device, fault, c->gpu.bind.fault, sizeof fault);
        for (int i = 0; i < ROWS; i++) {
            snprintf(detail, sizeof detail, "faults: row %d has %d", i, fault[i]);
            count(fault[i] == (i == 2 ? I_EXCHANGE_2 + 1 : 0), c->name, detail);
        }
        get_rows(c, BUF_X, c->dtype, 5, m->d, x);
        bool good = true;
        for (int i = 0; i < 4 * m->d; i++) {
            good = good && fabsf(x[i] - c->x_head[3 * m->d + i]) <= 0.05F * (1 + fabsf(x[i]));
        }
        count(good && x[4 * m->d] != x[4 * m->d], c->name, "output rows of the last exchange are not those asked for");
    }
    if (launch(c, I_HEAD, 1, 8)) { /* x of row 4 + 3 is spoiled; 4 rows have outputs, so nothing new shows */
        x[m->d] = INFINITY;
        put_rows(c, BUF_X, c->dtype, 4, m->d, x);
        launch(c, I_HEAD, 1, 8);
        device_read(c->gpu_device, fault, c->gpu.bind.fault, sizeof fault);
        for (int i = 0; i < ROWS; i++) {
            snprintf(detail, sizeof detail, "faults of logits: row %d has %d", i, fault[i]);
            count(fault[i] == (i == 2 ? I_EXCHANGE_2 + 1 : i == 4 ? I_HEAD + 1 : 0), c->name, detail);
        }
    }
    if (launch(c, I_EMBED, 1, 8)) { /* the next step begins without them */
        device_read(c->gpu_device, fault, c->gpu.bind.fault, sizeof fault);
        for (int i = 0; i < ROWS; i++) {
            snprintf(detail, sizeof detail, "faults behind embed: row %d has %d", i, fault[i]);
            count(fault[i] == 0, c->name, detail);
        }
    }
    free(h);
    free(x);
}

static void check_model(device *dev, const model *m, ls_dtype dtype, bool int8, ls_dtype kv_dtype) {
    check *c = take(sizeof *c);
    c->m = m;
    c->position = m->is_far ? far_positions : near_positions;
    c->longest = c->position[7];
    c->dtype = dtype;
    c->format = int8 ? LS_INT8 : dtype;
    c->kv_dtype = kv_dtype;
    c->gpu_device = dev;
    snprintf(c->name, sizeof c->name, "%s %s%s/%s", m->name, int8 ? "int8 " : "", ls_dtype_name(dtype),
             ls_dtype_name(kv_dtype));
    const int passed = n_passed, failed = n_failed;
    random_state = (uint64_t)m->d * 31 + (uint64_t)dtype;
    device_mark(dev);
    build_step(c);
    add_weights(c);
    build_buffers(c);
    build_ops(m, LAYER, c->op);
    c->rank = device_rank(dev, &c->gpu.bind, decode_workspace(&c->op[I_ATTN], ROWS, c->longest + 1, INT32_MAX));
    run_reference(c);

    const double act = tolerance_of(dtype), f32 = dtype == LS_F32 ? 1e-5 : 5e-5, kv = tolerance_of(kv_dtype);
    float *k = take((size_t)(ROWS * m->kv * m->d_head) * sizeof *k),
          *v = take((size_t)(ROWS * m->kv * m->d_head) * sizeof *v);
    get_kv(c, c->cpu.bind.k_cache, ROWS, k);
    get_kv(c, c->cpu.bind.v_cache, ROWS, v);
    const int64_t kv_cols = (int64_t)m->kv * m->d_head;
    const float *const *buf = (const float *const *)c->cpu.bind.buf;
    stretch all[7] = {
        {"embed exchange", I_EMBED, 2, {{"h", c->h_after_0, NULL, m->d, f32, 0}, {"x", c->x_qkv, NULL, m->d, act, 0}}},
        {"qkv attn",
         I_QKV,
         2,
         {{"att", buf[BUF_ATT], NULL, (int64_t)m->heads * m->d_head, act > kv ? act : kv, 0},
          {"k", k, NULL, kv_cols, kv, 0},
          {"v", v, NULL, kv_cols, kv, 0}}},
        {"out exchange", I_OUT, 2, {{"h", c->h_after_1, NULL, m->d, f32, 0}, {"x", c->x_ffn, NULL, m->d, act, 0}}},
        {"ffn_in", I_FFN_IN, 1, {{"act", buf[BUF_ACT], NULL, m->f, act, 0}}},
        {"ffn_out exchange",
         I_FFN_OUT,
         2,
         {{"h", c->h_after_2, NULL, m->d, f32, 0}, {"x", c->x_head, NULL, m->d, act, 0}}},
        {"head", I_HEAD, 1, {{"logits", buf[BUF_LOGITS], NULL, m->vocab, f32, 0}}},
    };
    /* The tie was made after the head. */
    float *logits = copy_rows(buf[BUF_LOGITS], m->vocab);
    for (int n = 0; n < m->vocab; n++) {
        logits[n] = cpu_isa_best()->dot[c->cpu.weight[W_HEAD].format](
            (const uint8_t *)c->cpu.weight[W_HEAD].data +
                (size_t)n * (size_t)m->d * ls_dtype_bytes(c->cpu.weight[W_HEAD].format),
            c->x_head, m->d);
    }
    all[5].out[0].wanted = logits;
    all[6] = all[1];
    all[6].name = "qkv attn by chains";
    char errors[160] = "";
    size_t at = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        run_stretch(c, &all[i], i > 5);
        at += (size_t)snprintf(errors + at, sizeof errors - at, " %.1e", all[i].out[0].worst);
    }
    check_sample(c);
    check_faults(c);
    printf("%-4s %-28s %4d checks; errors:%s\n", n_failed == failed ? "ok" : "BAD", c->name,
           n_passed - passed + n_failed - failed, errors);
    fflush(stdout);

    for (int i = 0; i < W_COUNT; i++) {
        free((void *)(uintptr_t)c->cpu.weight[i].data);
    }
    for (int i = 0; i < BUF_COUNT; i++) {
        free(c->cpu.bind.buf[i]);
    }
    for (int i = 0; i < ROWS; i++) {
        free(c->page[i]);
    }
    void *rest[] = {c->cpu.bind.k_cache,
                    c->cpu.bind.v_cache,
                    c->cache_before[0],
                    c->cache_before[1],
                    c->part_0,
                    c->h_after_0,
                    c->h_after_1,
                    c->h_after_2,
                    c->x_qkv,
                    c->x_ffn,
                    c->x_head,
                    k,
                    v,
                    logits,
                    (void *)(uintptr_t)c->cpu.bind.rope,
                    c->cpu.bind.fault,
                    c};
    device_release(dev);
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) {
        free(rest[i]);
    }
}

/* Each small model once, in another dtype than its neighbours. far: as it is; else all at near positions. */
static void check_few(device *dev, bool far) {
    static const ls_dtype dtypes[] = {LS_BF16, LS_F32, LS_F16};
    for (size_t i = 0; i < sizeof small_models / sizeof *small_models; i++) {
        model m = small_models[i];
        m.is_far = m.is_far && far;
        check_model(dev, &m, dtypes[i % 3], i % 2 != 0, LS_BF16);
    }
}

static void check_all(device *dev, bool small_only) {
    static const ls_dtype dtypes[] = {LS_BF16, LS_F32, LS_F16};
    for (size_t i = 0; i < sizeof small_models / sizeof *small_models; i++) {
        for (size_t j = 0; j < 3; j++) {
            check_model(dev, &small_models[i], dtypes[j], false, dtypes[(i + j) % 3]);
            check_model(dev, &small_models[i], dtypes[j], true, dtypes[(i + j + 1) % 3]);
        }
    }
    if (small_only) {
        return;
    }
    if (device_overlap(dev, true)) {
        printf("again, with kernels that overlap:\n");
        check_few(dev, true);
        check_model(dev, &qwen3_4b, LS_BF16, false, LS_BF16);
        device_overlap(dev, false);
    }
    for (size_t j = 0; j < 3; j++) {
        check_model(dev, &qwen3_4b, dtypes[j], false, dtypes[j]);
    }
    check_model(dev, &qwen3_4b, LS_BF16, true, LS_BF16);
    check_model(dev, &mistral_7b, LS_BF16, false, LS_BF16);
}

/* ---- Timings ---- */

void time_all(device *dev);

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "all";
    device *dev = device_open();
    if (dev == NULL) {
        return 2;
    }
    const bool few = strcmp(what, "few") == 0, small = strcmp(what, "small") == 0;
    if (few) {
        check_few(dev, false);
    } else if (strcmp(what, "time") != 0) {
        check_all(dev, small);
    }
    if (strcmp(what, "time") != 0) {
        printf("%d passed, %d failed\n", n_passed, n_failed);
    }
    if (strcmp(what, "check") != 0 && !few && !small) {
        time_all(dev);
    }
    device_close(dev);
    return n_failed > 0;
}
