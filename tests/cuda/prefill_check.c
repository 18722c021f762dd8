/*
 * The prefill ops on a GPU against the reference ops, op by op: each op of a small layer starts from the same inputs on
 * both sides, for all dtypes, odd sizes and lengths.
 *
 *   prefill_check [quick|few]       some of it; few: little, for racecheck
 *   prefill_check attn              attention in 16 bits alone, by both kernels
 *   prefill_check wide              steps whose sequences have one row each
 *   prefill_check rows              17 to 128 rows, by wide.c's kernels
 *   prefill_check gemm              any number of rows, by gemm.c's kernels
 *
 * Device memory is all 0xFF bytes (NaN, -1) where nothing was written, with zones between buffers that must stay so. Each
 * op runs twice and must give the same bits. One line for each failure; exits 1 if there was one.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cuda/cublaslt.h"
#include "backend/cuda/cuda.h"
#include "backend/cuda/flash.h"
#include "base/clock.h"
#include "base/numeric.h"
#include "prefill/cases.h"

enum { MAX_BUFFERS = 64, ZONE = 256, N_THREADS = 8, BAD_LINES = 60, MAX_ROWS = 2200 };

typedef enum weight {
    W_TABLE,
    W_NORM,
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
    W_FFN_NORM,
    W_GATE,
    W_UP,
    W_GATE_BIAS,
    W_UP_BIAS,
    W_DOWN,
    W_HEAD_NORM,
    W_HEAD,
    W_COUNT
} weight;

typedef struct gpu {
    cuda_driver *driver;
    cuda_rank rank;
    cublaslt *lt;
    CUdeviceptr base;
    size_t bytes, used;
    int n_zones;
    CUdeviceptr zone[MAX_BUFFERS];
} gpu;

typedef struct world {
    const shape *shape;
    const seqs *seqs;
    ls_dtype dtype, kv_dtype;
    bool int8, use_lt, few; /* few: all steps by decode's matmuls, else none */
    bool wide;              /* and where not, by wide.c's, if they serve */
    bool gemm;              /* ... by gemm.c's */
    int engines_few;        /* how many rows an engine would run by them */
    char text[200];
    gpu *gpu;
    int n_seqs, n_rows, m_max, n_pages, n_out, f_loc, n_positions, n_ops;
    int64_t qkv_cols;
    ls_weight cpu_weight[W_COUNT], gpu_weight[W_COUNT];
    ls_bind cpu;
    ls_op op[12];
    ls_step step;
    ls_step_seq seq[MAX_SEQS];
    int32_t token[MAX_ROWS], pos[MAX_ROWS], seq_of[MAX_ROWS], out_row[MAX_ROWS];
    float *input_rows;
    float *rope;
    int n_owned;
    void *owned[256];
} world;

typedef struct tally {
    int cases, ops, bad;
    int turn, every; /* of all cases, those that are checked */
    double worst[5]; /* by tolerance class, an ls_dtype */
    char where[5][240];
} tally;

/* ---- Random numbers ---- */

static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* About normal, mean 0, deviation 1. */
static float normal(uint64_t seed, int64_t i) {
    uint64_t bits = mix(seed + (uint64_t)(i + 1) * 0x9e3779b97f4a7c15);
    float sum =
        (float)(bits & 0xffff) + (float)(bits >> 16 & 0xffff) + (float)(bits >> 32 & 0xffff) + (float)(bits >> 48);
    return (sum - 131070.0F) * (1.7320508F / 65536.0F);
}

/* ---- Memory ---- */

static void die(const char *what, const ls_error *err) {
    printf("FATAL %s: %s\n", what, err == NULL ? "" : err->text);
    exit(2);
}

static void must(gpu *g, CUresult rc, const char *what) {
    ls_error err = {0};
    if (cuda_check(&g->rank, rc, what, &err) != LS_OK) {
        die(what, &err);
    }
}

static void *own(world *w, size_t bytes) {
    void *p = malloc(bytes > 0 ? bytes : 1);
    if (p == NULL || w->n_owned == (int)(sizeof w->owned / sizeof *w->owned)) {
        die("memory", NULL);
    }
    memset(p, 0xff, bytes);
    w->owned[w->n_owned++] = p;
    return p;
}

/* A buffer of 0xFF with a zone behind it. */
static CUdeviceptr device_take(gpu *g, size_t bytes) {
    size_t room = (bytes + 255) / 256 * 256 + ZONE;
    if (g->used + room > g->bytes || g->n_zones == MAX_BUFFERS) {
        die("the test's device memory is full", NULL);
    }
    CUdeviceptr at = g->base + g->used;
    must(g, g->driver->cuMemsetD8Async(at, 0xff, room, g->rank.stream), "memset");
    g->used += room;
    g->zone[g->n_zones++] = at + room - ZONE;
    return at;
}

static void to_device(gpu *g, CUdeviceptr to, const void *from, size_t bytes) {
    must(g, g->driver->cuMemcpyHtoDAsync(to, from, bytes, g->rank.stream), "copy");
}

static void from_device(gpu *g, void *to, CUdeviceptr from, size_t bytes) {
    must(g, g->driver->cuStreamSynchronize(g->rank.stream), "a kernel");
    must(g, g->driver->cuMemcpyDtoH(to, from, bytes), "copy");
}

static CUdeviceptr address(const void *p) {
    return (CUdeviceptr)(uintptr_t)p;
}

static void *device_copy(world *w, const void *from, size_t bytes) {
    CUdeviceptr at = device_take(w->gpu, bytes);
    if (bytes > 0) {
        to_device(w->gpu, at, from, bytes);
    }
    return (void *)(uintptr_t)at;
}

/* ---- Weights ---- */

static void add_vector(world *w, weight which, int n, float mean, float deviation) {
    float *v = own(w, (size_t)n * sizeof *v);
    for (int i = 0; i < n; i++) {
        v[i] = mean + deviation * normal(which, i);
    }
    w->cpu_weight[which] = (ls_weight){.format = LS_F32, .data = v, .rows = 1, .cols = n};
    w->gpu_weight[which] = w->cpu_weight[which];
    w->gpu_weight[which].data = device_copy(w, v, (size_t)n * sizeof *v);
}

/* int8: the GPU has q and scales, the CPU their products in f32. */
static void add_int8(world *w, weight which, float *v, int rows, int cols, int k_total, int leaf_first, int n_leaves) {
    int8_t *q = own(w, (size_t)rows * (size_t)cols);
    float *scale = own(w, (size_t)rows * (size_t)n_leaves * sizeof *scale);
    const int64_t base = leaf_border(k_total, leaf_first);
    for (int64_t n = 0; n < rows; n++) {
        for (int leaf = 0; leaf < n_leaves; leaf++) {
            int64_t from = leaf_border(k_total, leaf_first + leaf) - base;
            int64_t to = leaf_border(k_total, leaf_first + leaf + 1) - base;
            float max = 0;
            for (int64_t k = from; k < to; k++) {
                max = fmaxf(max, fabsf(v[n * cols + k]));
            }
            float s = max / 127.0F;
            scale[n * n_leaves + leaf] = s;
            for (int64_t k = from; k < to; k++) {
                float r = s == 0 ? 0 : rintf(v[n * cols + k] / s);
                q[n * cols + k] = (int8_t)fmaxf(-127, fminf(127, r));
                v[n * cols + k] = (float)q[n * cols + k] * s;
            }
        }
    }
    w->cpu_weight[which] = (ls_weight){.format = LS_F32, .data = v, .rows = rows, .cols = cols};
    w->gpu_weight[which] = (ls_weight){.format = LS_INT8, .rows = rows, .cols = cols};
    w->gpu_weight[which].data = device_copy(w, q, (size_t)rows * (size_t)cols);
    w->gpu_weight[which].scale = device_copy(w, scale, (size_t)rows * (size_t)n_leaves * sizeof *scale);
}

static void add_matrix(world *w, weight which, int rows, int cols, float deviation, int k_total, int leaf_first,
                       int n_leaves) {
    const int64_t n = (int64_t)rows * cols;
    float *v = own(w, (size_t)n * sizeof *v);
    for (int64_t i = 0; i < n; i++) {
        v[i] = deviation * normal(which + 100, i);
    }
    if (w->int8) {
        add_int8(w, which, v, rows, cols, k_total, leaf_first, n_leaves);
        return;
    }
    void *data = v;
    if (w->dtype != LS_F32) {
        data = own(w, (size_t)n * 2);
        for (int64_t i = 0; i < n; i++) {
            store_as(w->dtype, data, i, v[i]);
        }
    }
    w->cpu_weight[which] = (ls_weight){.format = w->dtype, .data = data, .rows = rows, .cols = cols};
    w->gpu_weight[which] = w->cpu_weight[which];
    w->gpu_weight[which].data = device_copy(w, data, (size_t)n * ls_dtype_bytes(w->dtype));
}

static void make_weights(world *w) {
    const shape *s = w->shape;
    const int d = s->d_model, q = s->n_heads * s->d_head, kv = s->n_kv * s->d_head;
    const float in = 1.0F / sqrtf((float)d);
    const int leaves = LS_LEAVES / s->n_ranks;
    add_matrix(w, W_TABLE, s->vocab, d, 1, d, 0, LS_LEAVES);
    add_vector(w, W_NORM, d, 1, 0.3F);
    add_matrix(w, W_Q, q, d, 2 * in, d, 0, LS_LEAVES);
    add_matrix(w, W_K, kv, d, 2 * in, d, 0, LS_LEAVES);
    add_matrix(w, W_V, kv, d, in, d, 0, LS_LEAVES);
    if (s->bias) {
        add_vector(w, W_Q_BIAS, q, 0, 0.5F);
        add_vector(w, W_K_BIAS, kv, 0, 0.5F);
        add_vector(w, W_V_BIAS, kv, 0, 0.5F);
        add_vector(w, W_OUT_BIAS, d, 0, 0.5F);
        add_vector(w, W_GATE_BIAS, w->f_loc, 0, 0.5F);
        add_vector(w, W_UP_BIAS, w->f_loc, 0, 0.5F);
    }
    if (s->qk_norm) {
        add_vector(w, W_Q_NORM, s->d_head, 1, 0.3F);
        add_vector(w, W_K_NORM, s->d_head, 1, 0.3F);
    }
    add_matrix(w, W_OUT, d, q, 1.0F / sqrtf((float)q), q, 0, LS_LEAVES);
    add_vector(w, W_FFN_NORM, d, 1, 0.3F);
    add_matrix(w, W_GATE, w->f_loc, d, 2 * in, d, 0, LS_LEAVES);
    add_matrix(w, W_UP, w->f_loc, d, 2 * in, d, 0, LS_LEAVES);
    add_matrix(w, W_DOWN, d, w->f_loc, 1.0F / sqrtf((float)s->f_total), s->f_total, s->rank * leaves, leaves);
    add_vector(w, W_HEAD_NORM, d, 1, 0.3F);
    add_matrix(w, W_HEAD, s->vocab, d, 2 * in, d, 0, LS_LEAVES);
}

/* ---- The program and its step ---- */

static void make_ops(world *w) {
    const shape *s = w->shape;
    const int b = s->bias ? 0 : -1000, n = s->qk_norm ? 0 : -1000; /* a large negative number: none */
    const int leaves = LS_LEAVES / s->n_ranks, vocab_first = 10;
    const ls_op program[] = {
        {.kind = OP_EMBED, .layer = -1, .embed = {W_TABLE, vocab_first, s->vocab, 0}},
        {.kind = OP_EXCHANGE, .layer = -1, .exchange = {.init = true, .bias = -1, .slot = 0}},
        {.kind = OP_QKV,
         .layer = 1,
         .qkv = {W_NORM, W_Q, W_K, W_V, W_Q_BIAS + b, W_K_BIAS + b, W_V_BIAS + b, W_Q_NORM + n, W_K_NORM + n,
                 s->n_heads, s->n_kv, s->d_head, 1e-6F}},
        {.kind = OP_ATTN,
         .layer = 1,
         .attn = {s->n_heads, s->n_kv, s->d_head, s->window, 1.0F / sqrtf((float)s->d_head)}},
        {.kind = OP_OUT, .layer = 1, .row = {W_OUT, s->n_heads * s->d_head, 0, LS_LEAVES, 1}},
        {.kind = OP_EXCHANGE, .layer = 1, .exchange = {.init = false, .bias = W_OUT_BIAS + b, .slot = 1}},
        {.kind = OP_FFN_IN,
         .layer = 1,
         .ffn_in = {W_FFN_NORM, W_GATE, W_UP, W_GATE_BIAS + b, W_UP_BIAS + b, w->f_loc, 1e-6F}},
        {.kind = OP_FFN_OUT, .layer = 1, .row = {W_DOWN, s->f_total, s->rank * leaves, leaves, 0}},
        {.kind = OP_EXCHANGE, .layer = 1, .exchange = {.init = false, .bias = -1, .slot = 0}},
        {.kind = OP_HEAD, .layer = -1, .head = {W_HEAD_NORM, W_HEAD, vocab_first, s->vocab, 1e-6F}}};
    w->n_ops = sizeof program / sizeof *program;
    memcpy(w->op, program, sizeof program);
}

static void make_step(world *w) {
    const shape *s = w->shape;
    int32_t taken = 0;
    for (w->n_seqs = 0; w->n_seqs < MAX_SEQS && w->seqs->seq[w->n_seqs].n_rows > 0; w->n_seqs++) {
        const int past = w->seqs->seq[w->n_seqs].n_past, rows = w->seqs->seq[w->n_seqs].n_rows;
        const int n_pages = (past + rows + LS_PAGE_TOKENS - 1) / LS_PAGE_TOKENS;
        int32_t *page = own(w, (size_t)n_pages * sizeof *page);
        for (int i = 0; i < n_pages; i++) {
            page[i] = taken++;
        }
        w->seq[w->n_seqs] = (ls_step_seq){.first_row = w->n_rows, .n_rows = rows, .n_past = past, .page = page};
        for (int i = 0; i < rows; i++, w->n_rows++) {
            w->token[w->n_rows] = (int32_t)(mix((uint64_t)w->n_rows * 77 + 5) % (uint64_t)(s->vocab + 20));
            w->pos[w->n_rows] = past + i;
            w->seq_of[w->n_rows] = w->n_seqs;
            if (i == rows - 1 || i % 97 == 5) {
                w->out_row[w->n_out++] = w->n_rows;
            }
        }
        w->n_positions = past + rows > w->n_positions ? past + rows : w->n_positions;
    }
    w->n_pages = taken + 2;
    for (int i = 0; i < w->n_seqs; i++) { /* pages of all sequences lie in reverse order, behind one that nobody has */
        for (int j = 0; j * LS_PAGE_TOKENS < w->seq[i].n_past + w->seq[i].n_rows; j++) {
            ((int32_t *)w->seq[i].page)[j] = taken - w->seq[i].page[j];
        }
    }
    w->input_rows = own(w, 2 * (size_t)s->d_model * sizeof(float));
    for (int i = 0; i < 2 * s->d_model; i++) {
        w->input_rows[i] = normal(999, i);
    }
    w->token[0] = -2;
    if (w->seqs->fault) {
        w->token[w->seq[1].first_row] = -1;
        w->input_rows[3] = INFINITY;
    }
    w->step = (ls_step){.n_rows = w->n_rows,
                        .n_pre = w->n_rows,
                        .n_seqs = w->n_seqs,
                        .n_out = w->n_out,
                        .token = w->token,
                        .pos = w->pos,
                        .seq_of = w->seq_of,
                        .seq = w->seq,
                        .out_row = w->out_row,
                        .input_rows = w->input_rows};
}

static int64_t append(uint8_t *to, size_t *used, const void *from, size_t bytes) {
    size_t at = *used;
    memcpy(to + at, from, bytes);
    *used = (at + bytes + 15) / 16 * 16;
    return (int64_t)at;
}

/* The step as kernels read it. */
static void upload_step(world *w) {
    cuda_step c = {.n_rows = w->n_rows, .n_pre = w->n_rows, .n_seqs = w->n_seqs, .n_out = w->n_out, .epoch = 1};
    cuda_seq seq[MAX_SEQS];
    int32_t page[4096];
    int n_pages = 0;
    for (int i = 0; i < w->n_seqs; i++) {
        seq[i] = (cuda_seq){w->seq[i].first_row, w->seq[i].n_rows, w->seq[i].n_past, n_pages};
        for (int j = 0; j * LS_PAGE_TOKENS < w->seq[i].n_past + w->seq[i].n_rows; j++) {
            page[n_pages++] = w->seq[i].page[j];
        }
    }
    size_t used = (sizeof c + 15) / 16 * 16, rows = (size_t)w->n_rows * sizeof(int32_t);
    uint8_t *host = own(w, 65536 + 6 * rows + 2 * (size_t)w->shape->d_model * sizeof(float));
    c.token = append(host, &used, w->token, rows);
    c.pos = append(host, &used, w->pos, rows);
    c.seq_of = append(host, &used, w->seq_of, rows);
    c.out_row = append(host, &used, w->out_row, (size_t)w->n_out * sizeof(int32_t));
    c.seq = append(host, &used, seq, (size_t)w->n_seqs * sizeof *seq);
    c.page = append(host, &used, page, (size_t)n_pages * sizeof *page);
    cuda_tile *tile = own(w, (size_t)w->n_rows * sizeof *tile);
    c.tile = append(host, &used, tile, (size_t)flash_tiles(&w->op[3].attn, &w->step, tile) * sizeof *tile);
    c.input_rows = append(host, &used, w->input_rows, 2 * (size_t)w->shape->d_model * sizeof(float));
    memcpy(host, &c, sizeof c);
    w->gpu->rank.step = address(device_copy(w, host, used));
}

/* ---- Both sides' buffers ---- */

static void make_cpu(world *w) {
    const shape *s = w->shape;
    const size_t rows = (size_t)w->m_max, f = sizeof(float), d = (size_t)s->d_model;
    const size_t cache = 2 * (size_t)(w->n_pages * s->n_kv * LS_PAGE_TOKENS * s->d_head); /* two layers */
    w->cpu = (ls_bind){.group = {s->rank, s->n_ranks},
                       .dtype = w->dtype,
                       .kv_dtype = w->kv_dtype,
                       .d_model = s->d_model,
                       .m_max = w->m_max,
                       .weight = w->cpu_weight,
                       .n_pages = w->n_pages,
                       .rope = w->rope,
                       .isa = cpu_isa_best()};
    w->cpu.buf[BUF_H] = own(w, rows * d * f);
    w->cpu.buf[BUF_X] = own(w, rows * d * f);
    w->cpu.buf[BUF_QKV] = own(w, rows * (size_t)w->qkv_cols * f);
    w->cpu.buf[BUF_ATT] = own(w, rows * (size_t)(s->n_heads * s->d_head) * f);
    w->cpu.buf[BUF_ACT] = own(w, rows * (size_t)w->f_loc * f);
    w->cpu.buf[BUF_PART] = own(w, 2 * rows * d * f);
    w->cpu.buf[BUF_LOGITS] = own(w, rows * (size_t)s->vocab * f);
    w->cpu.k_cache = own(w, cache * ls_dtype_bytes(w->kv_dtype));
    w->cpu.v_cache = own(w, cache * ls_dtype_bytes(w->kv_dtype));
    w->cpu.fault = own(w, rows * sizeof(atomic_int));
    memset(w->cpu.fault, 0, rows * sizeof(atomic_int));
    for (int r = 0; r < s->n_ranks; r++) {
        w->cpu.peer_part[r] = w->cpu.buf[BUF_PART];
    }
    w->cpu.n_parts = s->n_ranks;
    for (int i = 0; i < w->n_seqs; i++) { /* what earlier steps left in the cache */
        for (int pos = 0; pos < w->seq[i].n_past; pos++) {
            for (int h = 0; h < s->n_kv; h++) {
                int64_t page = (int64_t)w->n_pages + w->seq[i].page[pos / LS_PAGE_TOKENS];
                int64_t at = ((page * s->n_kv + h) * LS_PAGE_TOKENS + pos % LS_PAGE_TOKENS) * s->d_head;
                for (int e = 0; e < s->d_head; e++) {
                    store_as(w->kv_dtype, w->cpu.k_cache, at + e, 1.5F * normal(501, at + e));
                    store_as(w->kv_dtype, w->cpu.v_cache, at + e, normal(502, at + e));
                }
            }
        }
    }
}

static void make_gpu(world *w) {
    const shape *s = w->shape;
    cuda_rank *rank = &w->gpu->rank;
    const size_t rows = (size_t)w->m_max, d = (size_t)s->d_model, act = ls_dtype_bytes(w->dtype);
    const size_t cache = 2 * (size_t)(w->n_pages * s->n_kv * LS_PAGE_TOKENS * s->d_head) * ls_dtype_bytes(w->kv_dtype);
    const size_t bytes[BUF_COUNT] = {[BUF_H] = rows * d * 4,
                                     [BUF_X] = rows * d * act,
                                     [BUF_QKV] = rows * (size_t)w->qkv_cols * 4,
                                     [BUF_ATT] = rows * (size_t)(s->n_heads * s->d_head) * act,
                                     [BUF_ACT] = rows * (size_t)w->f_loc * act,
                                     [BUF_PART] = 2 * CUDA_NODES * rows * d * 4,
                                     [BUF_LOGITS] = rows * (size_t)s->vocab * 4};
    rank->bind = w->cpu;
    rank->bind.weight = w->gpu_weight;
    for (int i = 0; i < BUF_COUNT; i++) {
        rank->bind.buf[i] = bytes[i] == 0 ? NULL : (void *)(uintptr_t)device_take(w->gpu, bytes[i]);
    }
    rank->bind.k_cache = device_copy(w, w->cpu.k_cache, cache);
    rank->bind.v_cache = device_copy(w, w->cpu.v_cache, cache);
    rank->bind.rope = device_copy(w, w->rope, (size_t)w->n_positions * (size_t)s->d_head * sizeof(float));
    rank->bind.fault = device_copy(w, w->cpu.fault, rows * 4);
    for (int r = 0; r < s->n_ranks; r++) {
        rank->bind.peer_part[r] = rank->bind.buf[BUF_PART];
    }
    rank->bind.n_parts = s->n_ranks;
    upload_step(w);
    const size_t of_prefill = prefill_workspace(w->op, w->n_ops, &rank->bind, 4096);
    const size_t of_decode = decode_workspace(&w->op[3], w->m_max, w->n_positions, w->n_pages);
    rank->workspace_bytes = of_prefill > of_decode ? of_prefill : of_decode;
    rank->workspace = device_take(w->gpu, rank->workspace_bytes);
    rank->counters = device_take(w->gpu, CUDA_COUNTERS * sizeof(uint32_t));
    must(w->gpu, w->gpu->driver->cuMemsetD8Async(rank->counters, 0, CUDA_COUNTERS * sizeof(uint32_t), rank->stream),
         "memset");
    ls_error err = {0};
    if ((w->use_lt && cublaslt_open(&rank->cublaslt, &err) != LS_OK) || decode_prepare(rank, &err) != LS_OK ||
        prefill_prepare(rank, w->op, w->n_ops, &err) != LS_OK) {
        die(w->text, &err);
    }
    w->engines_few = rank->few_rows;
    rank->few_rows = rank->few_out = w->few ? MAX_ROWS : 0;
    rank->wide = rank->wide && w->wide;
    rank->gemm = rank->gemm && w->gemm;
    for (int kind = 0; kind < OP_KINDS; kind++) {
        rank->matmul_by[kind] = w->wide ? CUDA_BY_WIDE : w->gemm ? CUDA_BY_GEMM : CUDA_BY_LIBRARY;
    }
}

static void make_world(world *w) {
    const shape *s = w->shape;
    const int leaves = LS_LEAVES / s->n_ranks;
    w->f_loc = (int)(leaf_border(s->f_total, (s->rank + 1) * leaves) - leaf_border(s->f_total, s->rank * leaves));
    w->qkv_cols = (int64_t)(s->n_heads + 2 * s->n_kv) * s->d_head;
    snprintf(w->text, sizeof w->text, "%s %s%s kv %s %s%s, %s", s->name, ls_dtype_name(w->dtype), w->int8 ? " w8" : "",
             ls_dtype_name(w->kv_dtype),
             w->few    ? "few "
             : w->wide ? "wide "
             : w->gemm ? "gemm "
                       : "",
             w->use_lt ? "cublaslt" : "own", w->seqs->name);
    make_step(w);
    w->m_max = w->n_rows + 3;
    w->rope = own(w, (size_t)w->n_positions * (size_t)s->d_head * sizeof(float));
    for (int pos = 0; pos < w->n_positions; pos++) {
        for (int i = 0; i < s->d_head / 2; i++) {
            double angle = pos * pow(10000, -2.0 * i / s->d_head);
            w->rope[pos * s->d_head + 2 * i] = (float)cos(angle);
            w->rope[pos * s->d_head + 2 * i + 1] = (float)sin(angle);
        }
    }
    make_weights(w);
    make_ops(w);
    make_cpu(w);
    make_gpu(w);
}

static void free_world(world *w) {
    for (int i = 0; i < w->n_owned; i++) {
        free(w->owned[i]);
    }
    cublaslt_close(&w->gpu->rank.cublaslt);
    w->gpu->used = 0;
    w->gpu->n_zones = 0;
    free(w);
}

/* ---- The reference, on a team of threads ---- */

typedef struct ref_job {
    const world *w;
    int index;
    ls_team team;
} ref_job;

static void *ref_main(void *job_) {
    const ref_job *job = job_;
    cpu_ref_ops.fn[job->w->op[job->index].kind](&job->w->op[job->index], job->index, &job->w->cpu, &job->w->step,
                                                &job->team);
    return NULL;
}

static void run_ref(const world *w, int index) {
    ref_job job[N_THREADS];
    pthread_t thread[N_THREADS];
    ls_barrier barrier;
    barrier_init(&barrier, N_THREADS, N_THREADS);
    for (int i = 0; i < N_THREADS; i++) {
        job[i] = (ref_job){w, index, {i, N_THREADS, &barrier}};
        if (i > 0 && pthread_create(&thread[i], NULL, ref_main, &job[i]) != 0) {
            die("threads", NULL);
        }
    }
    ref_main(&job[0]);
    for (int i = 1; i < N_THREADS; i++) {
        pthread_join(thread[i], NULL);
    }
}

/* ---- Comparison ---- */

/* What an op writes: rows of the CPU's floats (or KV cache elements), and where they lie on the GPU. */
typedef struct view {
    const char *name;
    void *cpu;
    CUdeviceptr gpu;
    int rows, cols;
    int64_t stride; /* elements between rows, both sides */
    ls_dtype cpu_dtype, gpu_dtype;
    bool is_cache;
} view;

static int views_of(const world *w, const ls_op *op, view v[3]) {
    const shape *s = w->shape;
    const ls_bind *c = &w->cpu, *g = &w->gpu->rank.bind;
    const int d = s->d_model, rows = w->n_rows, q = s->n_heads * s->d_head;
    int slot = op->kind == OP_EMBED ? op->embed.slot : op->kind == OP_OUT || op->kind == OP_FFN_OUT ? op->row.slot : 0;
    const int64_t part = (int64_t)slot * w->m_max * d;
    switch (op->kind) {
    case OP_EMBED:
    case OP_OUT:
    case OP_FFN_OUT:
        v[0] = (view){"part",
                      (float *)c->buf[BUF_PART] + part,
                      address((float *)g->buf[BUF_PART] + CUDA_NODES * part),
                      rows,
                      d,
                      d,
                      LS_F32,
                      LS_F32,
                      false};
        return 1;
    case OP_EXCHANGE:
        v[0] = (view){"h", c->buf[BUF_H], address(g->buf[BUF_H]), rows, d, d, LS_F32, LS_F32, false};
        return 1;
    case OP_QKV: {
        int slots = 2 * w->n_pages * s->n_kv * LS_PAGE_TOKENS;
        v[0] = (view){"q", c->buf[BUF_QKV], address(g->buf[BUF_QKV]), rows, q, w->qkv_cols, LS_F32, w->dtype, false};
        v[1] =
            (view){"k", c->k_cache, address(g->k_cache), slots, s->d_head, s->d_head, w->kv_dtype, w->kv_dtype, true};
        v[2] =
            (view){"v", c->v_cache, address(g->v_cache), slots, s->d_head, s->d_head, w->kv_dtype, w->kv_dtype, true};
        return 3;
    }
    case OP_ATTN:
        v[0] = (view){"att", c->buf[BUF_ATT], address(g->buf[BUF_ATT]), rows, q, q, LS_F32, w->dtype, false};
        return 1;
    case OP_FFN_IN:
        v[0] =
            (view){"act", c->buf[BUF_ACT], address(g->buf[BUF_ACT]), rows, w->f_loc, w->f_loc, LS_F32, w->dtype, false};
        return 1;
    case OP_HEAD:
        v[0] = (view){
            "logits", c->buf[BUF_LOGITS], address(g->buf[BUF_LOGITS]), w->n_out, s->vocab, s->vocab, LS_F32, LS_F32,
            false};
        return 1;
    default:
        return 0;
    }
}

static bool bad_line(tally *t, const world *w, int index, const char *name, const char *what) {
    if (t->bad++ < BAD_LINES) {
        printf("FAIL %s: op %d %s %s: %s\n", w->text, index, op_kind_name(w->op[index].kind), name, what);
        fflush(stdout);
    }
    return false;
}

/* Row `row` belongs to the sequence that has failed. */
static bool has_failed(const world *w, const view *v, const ls_op *op, int row) {
    return w->seqs->fault && (v->is_cache || w->seq_of[op->kind == OP_HEAD ? w->out_row[row] : row] == 1);
}

/* `running`: on results of the ops before it, whose errors have added up. */
static bool compare(tally *t, const world *w, int index, const view *v, const uint8_t *got, bool running) {
    static const double allowed[] = {[LS_F32] = 1e-4, [LS_BF16] = 2e-2, [LS_F16] = 2e-3, [LS_INT8] = 5e-2};
    const ls_op *op = &w->op[index];
    /* With int8 the CPU has the products of q and scale in f32: what is left is the run dtype's error. */
    const ls_dtype class = allowed[w->dtype] > allowed[v->gpu_dtype] ? w->dtype : v->gpu_dtype;
    const double most = running ? 2 * fmax(allowed[class], allowed[w->kv_dtype]) : allowed[class];
    char what[160];
    for (int row = 0; row < v->rows; row++) {
        double apart = 0, largest = 0;
        int where = -1;
        if (has_failed(w, v, op, row)) {
            continue;
        }
        for (int i = 0; i < v->cols; i++) {
            double a = load_as(v->gpu_dtype, got, row * v->stride + i),
                   b = load_as(v->cpu_dtype, v->cpu, row * v->stride + i);
            if (isnan(a) && isnan(b)) {
                continue; /* an unused slot of the cache, or a mistake that the next op's numbers show */
            }
            double difference = fabs(a - b);
            largest = fmax(largest, fabs(b));
            if (!(difference <= apart)) {
                apart = difference;
                where = i;
            }
            if (isnan(difference)) {
                break;
            }
        }
        double error = apart == 0 ? 0 : apart / largest;
        if (error > t->worst[class] && !running) {
            t->worst[class] = error;
            snprintf(t->where[class], sizeof t->where[class], "%s %s", w->text, v->name);
        }
        if (!(error <= most)) {
            snprintf(what, sizeof what, "%srow %d of %d, element %d is %.7g, not %.7g: error %.2g",
                     running ? "all ops: " : "", row, v->rows, where,
                     (double)load_as(v->gpu_dtype, got, row * v->stride + where),
                     (double)load_as(v->cpu_dtype, v->cpu, row * v->stride + where), error);
            return bad_line(t, w, index, v->name, what);
        }
    }
    return true;
}

static bool check_faults(tally *t, const world *w, int index) {
    int32_t fault[MAX_ROWS + 3];
    from_device(w->gpu, fault, address((void *)w->gpu->rank.bind.fault), (size_t)w->m_max * sizeof *fault);
    for (int i = 0; i < w->m_max; i++) {
        bool is_mine = i < w->n_rows && w->seqs->fault && w->seq_of[i] == 1;
        if (is_mine ? i == w->seq[1].first_row && fault[i] != w->cpu.fault[i] : fault[i] != w->cpu.fault[i]) {
            char what[80];
            snprintf(what, sizeof what, "row %d has %d, not %d", i, fault[i], w->cpu.fault[i]);
            return bad_line(t, w, index, "fault", what);
        }
    }
    return true;
}

static size_t view_bytes(const view *v) {
    return (size_t)v->rows * (size_t)v->stride * ls_dtype_bytes(v->gpu_dtype);
}

/* The CPU's result becomes the input of the next op. */
static void synchronise(const world *w, const view *v, uint8_t *buffer) {
    if (!v->is_cache) {
        for (int row = 0; row < v->rows; row++) {
            for (int i = 0; i < v->cols; i++) {
                store_as(v->gpu_dtype, buffer, row * v->stride + i, load_as(v->cpu_dtype, v->cpu, row * v->stride + i));
            }
        }
    }
    to_device(w->gpu, v->gpu, v->is_cache ? v->cpu : buffer, view_bytes(v));
}

static void launch_op(world *w, int index) {
    ls_error err = {0};
    int taken = 0;
    if (prefill_launch(&w->gpu->rank, w->op, w->n_ops, index, &w->step, true, &taken, &err) != LS_OK || taken != 1) {
        die(w->text, &err);
    }
}

static void check_op(tally *t, world *w, int index) {
    view v[3];
    uint8_t *first[3], *second[3];
    const int n = views_of(w, &w->op[index], v);
    bool again = w->op[index].kind != OP_EXCHANGE, good = true;
    launch_op(w, index);
    for (int i = 0; i < n; i++) {
        first[i] = malloc(view_bytes(&v[i]) + 1);
        second[i] = malloc(view_bytes(&v[i]) + 1);
        from_device(w->gpu, first[i], v[i].gpu, view_bytes(&v[i]));
    }
    if (again) {
        launch_op(w, index);
    }
    for (int i = 0; i < n; i++) {
        from_device(w->gpu, second[i], v[i].gpu, view_bytes(&v[i]));
        if (memcmp(first[i], second[i], view_bytes(&v[i])) != 0) {
            good = bad_line(t, w, index, v[i].name, "the second run gave other bits");
        }
    }
    run_ref(w, index);
    for (int i = 0; i < n; i++) {
        good = compare(t, w, index, &v[i], first[i], false) && good;
        synchronise(w, &v[i], second[i]);
        free(first[i]);
        free(second[i]);
    }
    check_faults(t, w, index);
    t->ops++;
}

/* All ops one after another as the engine launches them, exchanges with the norms behind them. In steps of few rows, and by
 * cuBLASLt where K is long, `out` leaves several nodes of the leaf tree in BUF_PART: nothing else writes there. */
static bool next_ops(world *w, bool decode_only, int first, int *taken, ls_error *err) {
    return (decode_only
                ? prefill_launch_decode(&w->gpu->rank, w->op, w->n_ops, first, w->m_max, w->n_out, taken, err)
                : prefill_launch(&w->gpu->rank, w->op, w->n_ops, first, &w->step, false, taken, err)) == LS_OK &&
           *taken >= 1;
}

/* decode_only: as the engine captures steps whose sequences have one row each, for a bucket that they do not fill. */
static void check_running(tally *t, world *w, bool decode_only) {
    const ls_bind *bind = &w->gpu->rank.bind;
    const ls_op *out = &w->op[4];
    const size_t node = (size_t)w->m_max * (size_t)bind->d_model * sizeof(float);
    const CUdeviceptr second = address(bind->buf[BUF_PART]) + (size_t)out->row.slot * CUDA_NODES * node + node;
    const bool small = (w->shape->d_model + 15) / 16 < w->gpu->rank.facts.sm_count;
    ls_error err = {0};
    uint32_t word = 0;
    view v[3];
    must(w->gpu, w->gpu->driver->cuMemsetD8Async(second, 0xff, node, w->gpu->rank.stream), "memset");
    for (int i = 0, taken = 0; i < w->n_ops; i += taken) {
        if (!next_ops(w, decode_only, i, &taken, &err)) {
            die(w->text, &err);
        }
    }
    for (int i = w->n_ops - 2; i < w->n_ops; i++) {
        views_of(w, &w->op[i], v);
        uint8_t *got = malloc(view_bytes(&v[0]) + 1);
        from_device(w->gpu, got, v[0].gpu, view_bytes(&v[0]));
        compare(t, w, i, &v[0], got, true);
        free(got);
    }
    from_device(w->gpu, &word, second, sizeof word);
    const bool by_lt = w->use_lt && !w->few && !w->int8, is_long = w->gpu_weight[W_OUT].cols >= 4096;
    const bool wanted = w->few || (by_lt && is_long);
    const bool unsure =
        w->few ? !small : w->gpu->rank.wide || w->gpu->rank.gemm || (by_lt && !is_long); /* wide.c: by the shape */
    if (!unsure && (word != UINT32_MAX) != wanted) {
        bad_line(t, w, 4, "part", wanted ? "there is one node where there should be more" : "a second node is written");
    }
    check_faults(t, w, w->n_ops - 1);
}

/* Where an engine's steps count on cuBLASLt, it serves. It need not for fewer rows: in f32 it refuses one. */
static void check_library(tally *t, world *w) {
    const ls_bind *bind = &w->gpu->rank.bind;
    const ls_weight *out = &w->gpu_weight[W_OUT];
    const cublaslt_shape wanted = {w->dtype, out->rows, out->cols, out->rows, 1, 0};
    if (w->use_lt && !w->int8 && w->n_rows > w->engines_few && out->rows % 8 == 0 && out->cols % 8 == 0 &&
        !cublaslt_matmul(w->gpu->rank.cublaslt, wanted, w->n_rows, address(bind->buf[BUF_ATT]), address(out->data),
                         address(bind->buf[BUF_PART]), w->gpu->rank.workspace, w->gpu->rank.stream)) {
        bad_line(t, w, 4, "cuBLASLt", "it has no algorithm");
    }
}

/* The widths that short prompts are fast by. */
static void check_limits(tally *t, const world *w) {
    const int least = w->dtype == LS_F32 ? 1 : !w->int8 ? CUDA_MAX_DECODE : w->use_lt ? 64 : 256;
    if (w->engines_few < least) {
        bad_line(t, w, 0, "few rows", "an engine would not run them by decode's kernels");
    }
}

static void check_zones(tally *t, const world *w) {
    uint8_t zone[ZONE];
    for (int i = 0; i < w->gpu->n_zones; i++) {
        from_device(w->gpu, zone, w->gpu->zone[i], ZONE);
        for (int j = 0; j < ZONE; j++) {
            if (zone[j] != 0xff) {
                bad_line(t, w, 0, "zone", "something was written behind a buffer");
                return;
            }
        }
    }
}

static void check_case(gpu *g, tally *t, const shape *s, const seqs *q, ls_dtype dtype, ls_dtype kv, how way) {
    if (t->turn++ % t->every != 0) {
        return;
    }
    world *w = calloc(1, sizeof *w);
    if (w == NULL) {
        die("memory", NULL);
    }
    w->gpu = g;
    w->shape = s;
    w->seqs = q;
    w->dtype = dtype;
    w->kv_dtype = kv;
    w->int8 = way.int8;
    w->use_lt = way.lt;
    w->few = way.few;
    w->wide = way.wide;
    w->gemm = way.gemm;
    make_world(w);
    check_library(t, w);
    check_limits(t, w);
    for (int i = 0; i < (way.only_attn ? 4 : w->n_ops); i++) {
        check_op(t, w, i);
        if (w->op[i].kind == OP_ATTN && g->rank.flash) { /* the kernel that other chips run */
            g->rank.flash = false;
            check_op(t, w, i);
            g->rank.flash = true;
        }
    }
    if (!way.only_attn) {
        check_running(t, w, false);
        if (w->n_seqs == w->n_rows) {
            check_running(t, w, true);
        }
    }
    check_zones(t, w);
    t->cases++;
    free_world(w);
}

/* ---- All ---- */

static const ls_dtype dtypes[] = {LS_F32, LS_BF16, LS_F16};

static void check_few(gpu *g, tally *t, bool quick) {
    int turn = 0;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (size_t l = 0; l < sizeof few_lengths / sizeof *few_lengths; l++) {
            for (int i = 0; i < 6; i++, turn++) {
                ls_dtype kv = turn % 5 == 2 ? dtypes[(i + 1 + turn / 5 % 2) % 3] : dtypes[i % 3];
                if (!quick || turn % 7 == 0) {
                    check_case(g, t, &shapes[s], &few_lengths[l], dtypes[i % 3], kv,
                               (how){.int8 = i >= 3, .few = true});
                }
            }
        }
    }
}

static void check_all(gpu *g, tally *t, bool quick) {
    int turn = 0;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
            for (int i = 0; i < 3; i++) {
                for (int way = g->lt == NULL; way < 3; way++, turn++) { /* cuBLASLt, own kernel, int8 */
                    ls_dtype kv = turn % 3 == 2 ? dtypes[(i + 1 + turn / 3 % 2) % 3] : dtypes[i];
                    if (!quick || turn % 5 == 0) {
                        check_case(g, t, &shapes[s], &lengths[l], dtypes[i], kv,
                                   (how){.int8 = way == 2,
                                         .lt = way == 0 || (way == 2 && g->lt != NULL && turn / 3 % 2 == 0),
                                         .few = turn % 4 == 3});
                    }
                }
            }
        }
    }
    for (int i = 0; i < 3 && !quick; i++) {
        for (int way = g->lt == NULL; way < 3; way++) {
            check_case(g, t, &layer, layer_lengths, dtypes[i], dtypes[i], (how){.int8 = way == 2, .lt = way == 0});
            check_case(g, t, &layer, layer_lengths, dtypes[i], dtypes[i],
                       (how){.int8 = way == 2, .lt = way == 0, .few = true});
        }
    }
    check_few(g, t, quick);
}

static void check_attention(gpu *g, tally *t) {
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
            for (ls_dtype dtype = LS_BF16; dtype <= LS_F16; dtype++) {
                check_case(g, t, &shapes[s], &lengths[l], dtype, dtype, (how){.only_attn = true});
            }
        }
    }
}

static void check_wide(gpu *g, tally *t) {
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (ls_dtype dtype = LS_F32; dtype <= LS_F16; dtype++) {
            for (int way = g->lt == NULL; way < 3 + (g->lt != NULL); way++) {
                how by = {.int8 = way >= 2, .lt = way % 3 == 0};
                check_case(g, t, &shapes[s], &single_rows, dtype, dtype, by);
                by.few = true;
                check_case(g, t, &shapes[s], &single_rows, dtype, dtype, by);
            }
        }
    }
}

/* way: by wide.c or by gemm.c. Some of it where kernels are emulated, or where few cases are asked for. */
static void check_rows(gpu *g, tally *t, bool few, how way) {
    const bool emulated = g->rank.facts.sm_count < 16 || few;
    const seqs *lengths_of = way.gemm ? gemm_lengths : wide_lengths;
    const shape *shapes_of = way.gemm ? gemm_shapes : wide_shapes;
    const size_t n_lengths =
        way.gemm ? sizeof gemm_lengths / sizeof *gemm_lengths - emulated : sizeof wide_lengths / sizeof *wide_lengths;
    const size_t n_shapes =
        way.gemm ? sizeof gemm_shapes / sizeof *gemm_shapes : sizeof wide_shapes / sizeof *wide_shapes;
    int turn = 0;
    for (ls_dtype dtype = LS_BF16; dtype <= LS_F16; dtype++) {
        for (size_t l = 0; l < n_lengths; l++) {
            const bool is_long = lengths_of[l].seq[0].n_rows > 1000; /* slow on the CPU: one shape */
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes && !emulated && !is_long; s++) {
                check_case(g, t, &shapes[s], &lengths_of[l], dtype, dtype, way);
            }
            for (size_t s = 0; s < n_shapes; s++, turn++) {
                if (is_long ? s == 0 : !emulated || turn % 4 == 0) {
                    check_case(g, t, &shapes_of[s], &lengths_of[l], dtype, way.gemm && turn % 7 == 5 ? LS_F32 : dtype,
                               way);
                }
            }
        }
        for (size_t s = 0; s < n_shapes && !(emulated && dtype == LS_F16); s++) {
            check_case(g, t, &shapes_of[s], &single_rows, dtype, dtype, way);
        }
        for (size_t i = 0; i < 2 && !emulated; i++) {
            check_case(g, t, &layer, layer_lengths + 1 + i, dtype, dtype, way);
        }
    }
}

static void open_gpu(gpu *g) {
    const bool generic = getenv("LS_KERNELS") != NULL;
    ls_error err = {0};
    if (cuda_driver_open(&g->driver, &err) != LS_OK || cuda_rank_open(&g->rank, g->driver, 0, generic, &err) != LS_OK) {
        die("opening the GPU", &err);
    }
    if (!generic && cublaslt_open(&g->lt, &err) != LS_OK) {
        printf("NOTE no cuBLASLt, its cases are left out: %s\n", err.text);
    }
    g->bytes = (size_t)3 << 30;
    must(g, g->driver->cuMemAlloc(&g->base, g->bytes), "memory");
}

int main(int argc, char **argv) {
    bool quick = false, few = false, attn = false, wide = false, rows = false, gemm = false;
    for (int i = 1; i < argc; i++) {
        attn = attn || strcmp(argv[i], "attn") == 0;
        wide = wide || strcmp(argv[i], "wide") == 0;
        rows = rows || strcmp(argv[i], "rows") == 0;
        gemm = gemm || strcmp(argv[i], "gemm") == 0;
        few = few || strcmp(argv[i], "few") == 0;
        quick = quick || few || strcmp(argv[i], "quick") == 0;
    }
    static gpu the_gpu;
    gpu *g = &the_gpu;
    tally t = {.every = few ? 7 : 1};
    open_gpu(g);
    int64_t start = clock_ns();
    if (attn) {
        check_attention(g, &t);
    }
    if (wide) {
        check_wide(g, &t);
    }
    if (rows) {
        check_rows(g, &t, few, (how){.wide = true});
    }
    if (gemm) {
        check_rows(g, &t, few, (how){.gemm = true});
    }
    if (!attn && !wide && !rows && !gemm) {
        check_all(g, &t, quick);
        check_wide(g, &t);
        t.every = 1;
        check_rows(g, &t, few, (how){.wide = true});
        check_rows(g, &t, few, (how){.gemm = true});
    }
    printf("prefill_check: %s: %d cases, %d ops, %d failures; worst error f32 %.1e, bf16 %.1e, f16 %.1e; %.1f s\n",
           g->rank.facts.name, t.cases, t.ops, t.bad, t.worst[LS_F32], t.worst[LS_BF16], t.worst[LS_F16],
           (double)(clock_ns() - start) / 1e9);
    for (int i = LS_F32; i <= LS_F16; i++) {
        printf("  worst of %s: %s\n", ls_dtype_name((ls_dtype)i), t.where[i]);
    }
    printf("%d passed, %d failed\n", t.ops > t.bad ? t.ops - t.bad : 0, t.bad);
    fflush(stdout);
    must(g, g->driver->cuMemFree(g->base), "memory");
    cublaslt_close(&g->lt);
    cuda_rank_close(&g->rank);
    cuda_driver_close(&g->driver);
    return t.bad > 0;
}
