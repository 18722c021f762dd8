/*
 * Times of prefill's kernels on random data, ops alone, one sequence; at most 30 lines a part.
 *
 *   prefill_bench attn     attention by both kernels, causal, bf16, 32 query heads: TFLOP/s, and memory besides q, k, v, out
 *   prefill_bench rows     a layer's matmuls in decode-only steps of 17 to 256 rows by decode's kernels, by cuBLASLt (int8: or
 *                          our own), by wide.c and by gemm.c: what prefill.c's few_rows and *_is_faster state; of the best
 *                          layer, % of reading its weights
 *   prefill_bench step     a layer's ops on 192 to 2048 rows, one sequence, matmuls by cuBLASLt, as an engine has it, and by
 *                          gemm.c; then gemm.c's choices of tiles and nodes for each matmul, in the order of cost_of;
 *                          and cuBLASLt's 8192^3, to compare with
 *   prefill_bench decode   a layer of decode-only steps of 32 to 256 rows (a page of context), several of them in one graph: every way
 *                          to have each matmul run by the library (l), wide.c (w) or gemm.c (g), in the order qkv, out, ffn_in,
 *                          ffn_out; then what wide.c's choices and the slim exchange do
 *   prefill_bench layer [CONTEXT]   a layer of steps of 1 to 256 rows (16 behind more than 1000 tokens; 540), several of them in one
 *                          graph, as an engine has it; what it takes less where one of its ops is left out; up to 16 rows also with
 *                          longer splits of attention, and with attention by chains
 *   prefill_bench gemm     cuBLASLt's choices for the shapes of two models, and 8192^3 for comparison: TFLOP/s of each
 *
 * Whole layers are timed, weights larger than L2, so that no matmul finds its weights there.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/cublaslt.h"
#include "backend/cuda/flash.h"
#include "backend/cuda/kern/decode_args.h"
#include "backend/cuda/kern/wide_args.h"
#include "backend/cuda/measure.h"

typedef struct bench {
    cuda_driver *driver;
    cuda_rank rank;
    CUdeviceptr base;
    size_t bytes, used;
    int context; /* tokens of each row of decode steps */
    CUevent start, stop;
} bench;

static void must(bench *b, ls_status st, const ls_error *err) {
    (void)b;
    if (st != LS_OK) {
        printf("FATAL %s\n", err->text);
        exit(2);
    }
}

static void cuda(bench *b, CUresult rc, const char *what) {
    ls_error err = {0};
    must(b, cuda_check(&b->rank, rc, what, &err), &err);
}

static void *device(CUdeviceptr at) {
    return (void *)(uintptr_t)at; // NOLINT(performance-no-int-to-ptr)
}

static CUdeviceptr take(bench *b, size_t bytes) {
    CUdeviceptr at = b->base + b->used;
    b->used += (bytes + 255) / 256 * 256;
    if (b->used > b->bytes) {
        printf("FATAL the bench's device memory is full\n");
        exit(2);
    }
    return at;
}

/* All of the memory, for another layout: bf16 numbers between -1 and 1, as int8 any, as f32 finite ones. What an older layout
 * left there is none of that, and an infinity costs the exchange a note of each element. */
static void start_over(bench *b) {
    b->used = 0;
    enum { BLOCK = 16 << 20 };
    uint16_t *block = malloc(BLOCK);
    uint64_t z = 88172645463325252;
    if (block == NULL) {
        printf("FATAL out of memory\n");
        exit(2);
    }
    for (size_t i = 0; i < BLOCK / 2; i++) {
        z ^= z << 13;
        z ^= z >> 7;
        z ^= z << 17;
        float x = (float)(int32_t)(uint32_t)z / 2147483648.0F;
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        block[i] = (uint16_t)(bits >> 16);
    }
    cuda(b, b->driver->cuMemcpyHtoDAsync(b->base, block, BLOCK, b->rank.stream), "copy");
    for (size_t at = BLOCK; at + BLOCK <= b->bytes; at += BLOCK) {
        cuda(b, b->driver->cuMemcpyDtoDAsync(b->base + at, b->base, BLOCK, b->rank.stream), "copy");
    }
    cuda(b, b->driver->cuStreamSynchronize(b->rank.stream), "copies");
    free(block);
}

/* One sequence of n_rows rows behind n_past tokens, its pages in order. Returns what launchers read of it. */
static ls_step put_step(bench *b, const op_attn *a, int n_past, int n_rows) {
    const int n_pages = (n_past + n_rows + LS_PAGE_TOKENS - 1) / LS_PAGE_TOKENS;
    const size_t rows = (size_t)n_rows * sizeof(int32_t);
    static ls_step_seq seq;
    seq = (ls_step_seq){.n_rows = n_rows, .n_past = n_past};
    ls_step step = {.n_rows = n_rows, .n_pre = n_rows, .n_seqs = 1, .n_out = n_rows, .seq = &seq};
    cuda_step head = {.n_rows = n_rows, .n_pre = n_rows, .n_seqs = 1, .n_out = n_rows, .epoch = 1};
    size_t used = (sizeof head + 15) / 16 * 16;
    int64_t *const row_array[] = {&head.token, &head.pos, &head.seq_of, &head.out_row};
    for (int i = 0; i < 4; i++, used += (rows + 15) / 16 * 16) {
        *row_array[i] = (int64_t)used;
    }
    head.seq = (int64_t)used;
    head.page = head.seq + (int64_t)((sizeof(cuda_seq) + 15) / 16 * 16);
    head.tile = head.page + ((int64_t)n_pages * 4 + 15) / 16 * 16;
    const size_t bytes = (size_t)head.tile + (size_t)n_rows * sizeof(cuda_tile);
    uint8_t *image = calloc(1, bytes);
    if (image == NULL) {
        printf("FATAL out of memory\n");
        exit(2);
    }
    memcpy(image, &head, sizeof head);
    for (int i = 0; i < n_rows; i++) {
        ((int32_t *)(image + head.pos))[i] = n_past + i;
        ((int32_t *)(image + head.out_row))[i] = i;
    }
    *(cuda_seq *)(image + head.seq) = (cuda_seq){0, n_rows, n_past, 0};
    for (int i = 0; i < n_pages; i++) {
        ((int32_t *)(image + head.page))[i] = i;
    }
    if (a != NULL) {
        flash_tiles(a, &step, (cuda_tile *)(image + head.tile));
    }
    b->rank.step = take(b, bytes);
    cuda(b, b->driver->cuMemcpyHtoDAsync(b->rank.step, image, bytes, b->rank.stream), "copy");
    free(image);
    return step;
}

static void launch(bench *b, const ls_op *op, int n_ops, int first, const ls_step *step) {
    ls_error err = {0};
    int taken;
    must(b, prefill_launch(&b->rank, op, n_ops, first, step, false, &taken, &err), &err);
}

/* As decode-only steps run it. */
static void launch_decode(bench *b, const ls_op *op, int n_ops, int first, const ls_step *step) {
    const bool few = step->n_rows <= CUDA_MAX_DECODE;
    ls_error err = {0};
    int taken;
    must(b,
         few ? decode_launch(&b->rank, op, n_ops, first, step->n_rows, &taken, &err)
             : prefill_launch_decode(&b->rank, op, n_ops, first, step->n_rows, step->n_out, &taken, &err),
         &err);
}

static double stop_ms(bench *b, const char *what) {
    float ms;
    cuda(b, b->driver->cuEventRecord(b->stop, b->rank.stream), "event");
    cuda(b, b->driver->cuEventSynchronize(b->stop), what);
    cuda(b, b->driver->cuEventElapsedTime(&ms, b->start, b->stop), "event");
    return ms;
}

/* Of one launch, the least of five runs of some 5 ms each. */
static double time_ms(bench *b, const ls_op *op, int n_ops, int first, const ls_step *step) {
    double least = 1e30, once;
    launch(b, op, n_ops, first, step);
    cuda(b, b->driver->cuEventRecord(b->start, b->rank.stream), "event");
    launch(b, op, n_ops, first, step);
    once = stop_ms(b, "a kernel");
    const int times = once < 5 ? (int)(5 / once) + 1 : 1;
    for (int run = 0; run < 5; run++) {
        cuda(b, b->driver->cuEventRecord(b->start, b->rank.stream), "event");
        for (int i = 0; i < times; i++) {
            launch(b, op, n_ops, first, step);
        }
        const double ms = stop_ms(b, "a kernel") / times;
        least = ms < least ? ms : least;
    }
    return least;
}

/* ---- Attention ---- */

static void attention(bench *b, int n_tokens, int n_past, int n_kv, int d_head) {
    enum { HEADS = 32 };
    const int n_pages = (n_past + n_tokens) / LS_PAGE_TOKENS + 1;
    const size_t cache = (size_t)n_pages * (size_t)n_kv * LS_PAGE_TOKENS * (size_t)d_head * 2;
    const ls_op op = {.kind = OP_ATTN, .attn = {HEADS, n_kv, d_head, 0, 0.125F}};
    ls_error err = {0};
    start_over(b);
    b->rank.bind = (ls_bind){
        .group = {0, 1}, .dtype = LS_BF16, .kv_dtype = LS_BF16, .d_model = 64, .m_max = n_tokens, .n_pages = n_pages};
    b->rank.bind.buf[BUF_QKV] = device(take(b, (size_t)n_tokens * (size_t)(HEADS + 2 * n_kv) * (size_t)d_head * 2));
    b->rank.bind.buf[BUF_ATT] = device(take(b, (size_t)n_tokens * HEADS * (size_t)d_head * 2));
    b->rank.bind.k_cache = device(take(b, cache));
    b->rank.bind.v_cache = device(take(b, cache));
    must(b, prefill_prepare(&b->rank, &op, 1, &err), &err);
    const ls_step step = put_step(b, &op.attn, n_past, n_tokens);
    const double pairs = (double)n_tokens * n_past + (double)n_tokens * (n_tokens + 1) / 2;
    const double tflop = 4 * pairs * d_head * HEADS / 1e12;
    double ms[2] = {0};
    const bool has_flash = b->rank.flash;
    for (int i = 0; i < 2; i++) {
        b->rank.flash = i == 0;
        ms[i] = i == 0 && !has_flash ? 0 : time_ms(b, &op, 1, 0, &step);
    }
    const size_t list = (size_t)flash_tiles(&op.attn, &step, NULL) * sizeof(cuda_tile);
    printf("attn %5d tokens behind %5d, d %3d, %2d KV heads: wgmma %8.3f ms %4.0f TFLOP/s, mma %8.3f ms %4.0f TFLOP/s, "
           "%.2fx; besides q, k, v, out %zu and 0 bytes (scores would be %.0f MB)\n",
           n_tokens, n_past, d_head, n_kv, ms[0], ms[0] > 0 ? tflop / ms[0] * 1e3 : 0, ms[1], tflop / ms[1] * 1e3,
           ms[0] > 0 ? ms[1] / ms[0] : 0, list, pairs * 2 * HEADS * 4 / 1e6);
    fflush(stdout);
}

static void all_attention(bench *b) {
    for (int d = 64; d <= 128; d *= 2) {
        for (int n = 512; n <= 32768; n *= 2) {
            attention(b, n, 0, 8, d);
        }
        attention(b, 4096, 0, 32, d);
        attention(b, 2048, 30720, 8, d);
        attention(b, 64, 8128, 8, d);
    }
    attention(b, 4096, 0, 8, 80);
    attention(b, 4096, 0, 8, 96);
    attention(b, 4096, 0, 8, 256);
}

/* ---- Matmuls ---- */

typedef struct model {
    const char *name;
    int d, n_heads, n_kv, d_head, d_ffn, vocab;
} model;

enum { W_NORM, W_Q, W_K, W_V, W_OUT, W_GATE, W_UP, W_DOWN, W_HEAD, W_COUNT };

static void add_weight(bench *b, ls_weight *w, ls_dtype format, int rows, int cols) {
    w->format = format;
    w->rows = rows;
    w->cols = cols;
    w->data = device(take(b, (size_t)rows * (size_t)cols * ls_dtype_bytes(format)));
    w->scale = format == LS_INT8 ? device(take(b, (size_t)rows * LS_LEAVES * 4)) : NULL;
}

static const int row_counts[] = {17, 24, 32, 48, 64, 96, 128, 192, 256};

static void set_all(bench *b, cuda_matmul_by by) {
    for (int kind = 0; kind < OP_KINDS; kind++) {
        b->rank.matmul_by[kind] = by;
    }
}

static void matmuls(bench *b, const model *m, ls_dtype format) {
    const int q = m->n_heads * m->d_head, kv = m->n_kv * m->d_head, m_max = 256;
    const ls_op op[] = {
        {.kind = OP_QKV, .qkv = {W_NORM, W_Q, W_K, W_V, -1, -1, -1, -1, -1, m->n_heads, m->n_kv, m->d_head, 1e-6F}},
        {.kind = OP_OUT, .row = {W_OUT, q, 0, LS_LEAVES, 0}},
        {.kind = OP_FFN_IN, .ffn_in = {W_NORM, W_GATE, W_UP, -1, -1, m->d_ffn, 1e-6F}},
        {.kind = OP_FFN_OUT, .row = {W_DOWN, m->d_ffn, 0, LS_LEAVES, 1}},
        {.kind = OP_HEAD, .head = {W_NORM, W_HEAD, 0, m->vocab, 1e-6F}}};
    enum { N_OPS = sizeof op / sizeof *op };
    const size_t floats[] = {(size_t)m->d, (size_t)m->d, (size_t)(q + 2 * kv), (size_t)q, (size_t)m->d_ffn};
    const ls_buf buf[] = {BUF_H, BUF_X, BUF_QKV, BUF_ATT, BUF_ACT};
    ls_weight weight[W_COUNT] = {{0}};
    ls_error err = {0};
    start_over(b);
    b->rank.bind = (ls_bind){.group = {0, 1},
                             .dtype = LS_BF16,
                             .kv_dtype = LS_BF16,
                             .d_model = m->d,
                             .m_max = m_max,
                             .n_pages = 8,
                             .weight = weight};
    for (size_t i = 0; i < sizeof buf / sizeof *buf; i++) {
        b->rank.bind.buf[buf[i]] = device(take(b, (size_t)m_max * floats[i] * 4));
    }
    b->rank.bind.buf[BUF_PART] = device(take(b, (size_t)2 * CUDA_NODES * (size_t)m_max * (size_t)m->d * 4));
    b->rank.bind.buf[BUF_LOGITS] = device(take(b, (size_t)m_max * (size_t)m->vocab * 4));
    b->rank.bind.k_cache = device(take(b, (size_t)8 * (size_t)kv * LS_PAGE_TOKENS * 2));
    b->rank.bind.v_cache = device(take(b, (size_t)8 * (size_t)kv * LS_PAGE_TOKENS * 2));
    b->rank.bind.rope = device(take(b, (size_t)m_max * (size_t)m->d_head * 4));
    b->rank.bind.fault = device(take(b, (size_t)m_max * 4));
    b->rank.counters = take(b, CUDA_COUNTERS * sizeof(uint32_t));
    cuda(b, b->driver->cuMemsetD8Async(b->rank.counters, 0, CUDA_COUNTERS * sizeof(uint32_t), b->rank.stream),
         "counters");
    add_weight(b, &weight[W_NORM], LS_F32, 1, m->d);
    add_weight(b, &weight[W_Q], format, q, m->d);
    add_weight(b, &weight[W_K], format, kv, m->d);
    add_weight(b, &weight[W_V], format, kv, m->d);
    add_weight(b, &weight[W_OUT], format, m->d, q);
    add_weight(b, &weight[W_GATE], format, m->d_ffn, m->d);
    add_weight(b, &weight[W_UP], format, m->d_ffn, m->d);
    add_weight(b, &weight[W_DOWN], format, m->d, m->d_ffn);
    add_weight(b, &weight[W_HEAD], format, m->vocab, m->d);
    b->rank.workspace_bytes = prefill_workspace(op, N_OPS, &b->rank.bind, 4096);
    b->rank.workspace = take(b, b->rank.workspace_bytes);
    must(b, decode_prepare(&b->rank, &err), &err);
    must(b, prefill_prepare(&b->rank, op, N_OPS, &err), &err);
    ls_rate read;
    must(b, cuda_measure_read(&b->rank, b->base + b->used, (int64_t)1 << 30, b->base + b->bytes - 256, &read, &err),
         &err);
    const bool has_wide = b->rank.wide && format != LS_INT8, has_gemm = b->rank.gemm && has_wide;
    const double layer_us =
        (double)((2 * q + 2 * kv) + 3 * (int64_t)m->d_ffn) * m->d * (double)ls_dtype_bytes(format) / read.best * 1e6;
    printf(
        "%s %s, us by decode's kernels / otherwise / wide / gemm (an engine leaves decode's behind %d rows); a layer's "
        "%.0f us "
        "of reading at %.0f GB/s\n",
        m->name, ls_dtype_name(format), b->rank.few_rows, layer_us, read.best / 1e9);
    for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
        const ls_step step = put_step(b, NULL, 0, row_counts[r]);
        double us[4][N_OPS] = {{0}}, sum[4] = {0}, best = 1e30;
        for (int side = 0; side < 2 + has_wide + has_gemm; side++) {
            enum { TIMES = 20 };
            b->rank.few_rows = b->rank.few_out = side == 0 ? m_max : 0;
            set_all(b, side == 2 ? CUDA_BY_WIDE : side == 3 ? CUDA_BY_GEMM : CUDA_BY_LIBRARY);
            for (int i = 0; i < N_OPS; i++) {
                us[side][i] = 0;
            }
            for (int t = 0; t < TIMES + 2; t++) { /* two to warm up */
                for (int i = 0; i < N_OPS; i++) {
                    cuda(b, b->driver->cuEventRecord(b->start, b->rank.stream), "event");
                    launch_decode(b, op, N_OPS, i, &step);
                    const double ms = stop_ms(b, "a matmul");
                    us[side][i] += t < 2 ? 0 : ms * 1e3 / TIMES;
                }
            }
            cuda(b, b->driver->cuEventRecord(b->start, b->rank.stream), "event");
            for (int i = 0; i < TIMES * (N_OPS - 1); i++) { /* one behind the other, as in a step */
                launch_decode(b, op, N_OPS, i % (N_OPS - 1), &step);
            }
            sum[side] = stop_ms(b, "layers") * 1e3 / TIMES;
            best = sum[side] < best ? sum[side] : best;
        }
        printf("  %3d rows:", row_counts[r]);
        static const char *const name[] = {"qkv", "out", "in", "down", "head"};
        for (int i = 0; i < N_OPS; i++) {
            printf(" %s %.0f/%.0f/%.0f/%.0f,", name[i], us[0][i], us[1][i], us[2][i], us[3][i]);
        }
        printf(" layer %.0f/%.0f/%.0f/%.0f %.0f %%\n", sum[0], sum[1], sum[2], sum[3], layer_us / best * 100);
        fflush(stdout);
    }
}

/* A model's buffers for n_rows, its caches of n_layers and what else its ops read: bind, but for weights' memory. */
static void lay_out(bench *b, const model *m, int n_layers, int n_rows, int n_pages, int n_positions,
                    const ls_weight *weight) {
    const int q = m->n_heads * m->d_head, kv = m->n_kv * m->d_head;
    const size_t floats[] = {(size_t)m->d, (size_t)m->d, (size_t)(q + 2 * kv), (size_t)q, (size_t)m->d_ffn};
    const ls_buf buf[] = {BUF_H, BUF_X, BUF_QKV, BUF_ATT, BUF_ACT};
    const size_t cache = (size_t)n_layers * (size_t)n_pages * (size_t)kv * LS_PAGE_TOKENS * 2;
    b->rank.bind = (ls_bind){.group = {0, 1},
                             .dtype = LS_BF16,
                             .kv_dtype = LS_BF16,
                             .d_model = m->d,
                             .m_max = n_rows,
                             .n_pages = n_pages,
                             .weight = weight};
    for (size_t i = 0; i < sizeof buf / sizeof *buf; i++) {
        b->rank.bind.buf[buf[i]] = device(take(b, (size_t)n_rows * floats[i] * 4));
    }
    b->rank.bind.buf[BUF_PART] = device(take(b, (size_t)2 * CUDA_NODES * (size_t)n_rows * (size_t)m->d * 4));
    b->rank.bind.k_cache = device(take(b, cache));
    b->rank.bind.v_cache = device(take(b, cache));
    b->rank.bind.rope = device(take(b, (size_t)n_positions * (size_t)m->d_head * 4));
    b->rank.bind.fault = device(take(b, (size_t)n_rows * 4));
    b->rank.counters = take(b, CUDA_COUNTERS * sizeof(uint32_t));
    cuda(b, b->driver->cuMemsetD8Async(b->rank.counters, 0, CUDA_COUNTERS * sizeof(uint32_t), b->rank.stream),
         "counters");
}

/* weight: W_COUNT of them. */
static void add_layer(bench *b, const model *m, ls_weight *weight) {
    const int q = m->n_heads * m->d_head, kv = m->n_kv * m->d_head;
    add_weight(b, &weight[W_NORM], LS_F32, 1, m->d);
    add_weight(b, &weight[W_Q], LS_BF16, q, m->d);
    add_weight(b, &weight[W_K], LS_BF16, kv, m->d);
    add_weight(b, &weight[W_V], LS_BF16, kv, m->d);
    add_weight(b, &weight[W_OUT], LS_BF16, m->d, q);
    add_weight(b, &weight[W_GATE], LS_BF16, m->d_ffn, m->d);
    add_weight(b, &weight[W_UP], LS_BF16, m->d_ffn, m->d);
    add_weight(b, &weight[W_DOWN], LS_BF16, m->d, m->d_ffn);
}

/* A matmul by gemm.c's first choices. */
static void choices(bench *b, const ls_op *op, int n_ops, int first, const ls_step *step, double flop) {
    enum { CHOICES = 5 };
    const char *last = "";
    int last_nodes = 0;
    printf("  %s:", op_kind_name(op[first].kind));
    for (int i = 0; i < CHOICES; i++) {
        b->rank.gemm_passed_over = i;
        b->rank.n_launched = 0;
        launch(b, op, n_ops, first, step);
        const bool is_row = op[first].kind == OP_OUT || op[first].kind == OP_FFN_OUT;
        const int nodes = is_row ? prefill_row_nodes(&b->rank, &op[first], step) : 1;
        const char *name = b->rank.launched[0] + strlen("gemm_bf16_");
        if (nodes == last_nodes && strcmp(name, last) == 0) {
            break;
        }
        const double ms = time_ms(b, op, n_ops, first, step);
        printf(" %s x %d %.1f (%.0f)", name, nodes, ms * 1e3, flop / ms / 1e9);
        last = name;
        last_nodes = nodes;
    }
    b->rank.gemm_passed_over = 0;
    printf("\n");
}

/* A layer as a chunk of a prompt passes it, ops alone and then ten layers one behind the other. */
static void step_of(bench *b, const model *m, int n_rows) {
    enum { PAGES = 64, TIMES = 10 };
    const int q = m->n_heads * m->d_head, kv = m->n_kv * m->d_head;
    const ls_op op[] = {
        {.kind = OP_EXCHANGE, .exchange = {.init = false, .bias = -1, .slot = 1}},
        {.kind = OP_QKV,
         .qkv = {W_NORM, W_Q, W_K, W_V, -1, -1, -1, W_NORM, W_NORM, m->n_heads, m->n_kv, m->d_head, 1e-6F}},
        {.kind = OP_ATTN, .attn = {m->n_heads, m->n_kv, m->d_head, 0, 0.088F}},
        {.kind = OP_OUT, .row = {W_OUT, q, 0, LS_LEAVES, 0}},
        {.kind = OP_EXCHANGE, .exchange = {.init = false, .bias = -1, .slot = 0}},
        {.kind = OP_FFN_IN, .ffn_in = {W_NORM, W_GATE, W_UP, -1, -1, m->d_ffn, 1e-6F}},
        {.kind = OP_FFN_OUT, .row = {W_DOWN, m->d_ffn, 0, LS_LEAVES, 1}}};
    enum { N_OPS = sizeof op / sizeof *op };
    const double per_row[N_OPS] = {0, 2.0 * (q + 2 * kv) * m->d, 2.0 * n_rows * q,     2.0 * q * m->d,
                                   0, 4.0 * m->d_ffn * m->d,     2.0 * m->d_ffn * m->d};
    ls_weight weight[W_COUNT] = {{0}};
    ls_error err = {0};
    double flop = 0;
    start_over(b);
    lay_out(b, m, 1, n_rows, PAGES, n_rows, weight);
    add_layer(b, m, weight);
    b->rank.workspace_bytes = prefill_workspace(op, N_OPS, &b->rank.bind, 4096);
    b->rank.workspace = take(b, b->rank.workspace_bytes);
    must(b, decode_prepare(&b->rank, &err), &err);
    must(b, prefill_prepare(&b->rank, op, N_OPS, &err), &err);
    const ls_step step = put_step(b, &op[2].attn, 0, n_rows);
    const bool has_gemm = b->rank.gemm;
    static const char *const by[] = {"the library", "an engine", "gemm.c"};
    for (int side = has_gemm ? 0 : 1; side < (has_gemm ? 3 : 2); side++, flop = 0) {
        set_all(b, side == 0 ? CUDA_BY_LIBRARY : side == 1 ? CUDA_BY_CHOICE : CUDA_BY_GEMM);
        printf("step of %4d rows, a layer of %s by %s, us (TFLOP/s):", n_rows, m->name, by[side]);
        for (int i = 0; i < N_OPS; i++) {
            const double ms = time_ms(b, op, N_OPS, i, &step);
            printf(" %s %.0f (%.0f)", op_kind_name(op[i].kind), ms * 1e3, per_row[i] * n_rows / ms / 1e9);
            flop += per_row[i] * n_rows;
        }
        cuda(b, b->driver->cuEventRecord(b->start, b->rank.stream), "event");
        for (int i = 0; i < TIMES * N_OPS; i++) {
            launch(b, op, N_OPS, i % N_OPS, &step);
        }
        const double ms = stop_ms(b, "layers") / TIMES;
        printf(", layer %.0f (%.0f)\n", ms * 1e3, flop / ms / 1e9);
        fflush(stdout);
    }
    for (int i = 0; i < N_OPS && has_gemm; i++) {
        if (op[i].kind != OP_EXCHANGE && op[i].kind != OP_ATTN) {
            choices(b, op, N_OPS, i, &step, per_row[i] * n_rows);
        }
    }
    set_all(b, CUDA_BY_CHOICE);
}

/* ---- Decode-only steps ---- */

enum { LAYERS = 4, LAYER_OPS = 7, ALL_OPS = LAYERS * LAYER_OPS, DECODE_ROWS = 256, NO_OP = -1, WAYS = 81 };

static int pages_of_row(const bench *b) {
    return b->context / LS_PAGE_TOKENS + 1;
}

/* n_rows sequences of a row each, behind b->context tokens in pages of their own. */
static void put_decode_step(bench *b, int n_rows) {
    const int pages = pages_of_row(b);
    const size_t rows = (size_t)n_rows * sizeof(int32_t);
    cuda_step head = {.n_rows = n_rows, .n_dec = n_rows, .n_seqs = n_rows, .n_out = n_rows, .epoch = 1};
    size_t used = (sizeof head + 15) / 16 * 16;
    int64_t *const row_array[] = {&head.token, &head.pos, &head.seq_of, &head.out_row};
    for (int i = 0; i < 4; i++, used += (rows + 15) / 16 * 16) {
        *row_array[i] = (int64_t)used;
    }
    head.seq = (int64_t)used;
    used += (size_t)n_rows * sizeof(cuda_seq);
    head.page = (int64_t)used;
    const size_t bytes = used + rows * (size_t)pages;
    uint8_t *image = calloc(1, bytes);
    if (image == NULL) {
        printf("FATAL out of memory\n");
        exit(2);
    }
    memcpy(image, &head, sizeof head);
    for (int i = 0; i < n_rows; i++) {
        ((int32_t *)(image + head.pos))[i] = b->context;
        ((int32_t *)(image + head.seq_of))[i] = i;
        ((int32_t *)(image + head.out_row))[i] = i;
        ((cuda_seq *)(image + head.seq))[i] = (cuda_seq){i, 1, b->context, i * pages};
    }
    for (int i = 0; i < n_rows * pages; i++) {
        ((int32_t *)(image + head.page))[i] = i;
    }
    b->rank.step = take(b, bytes);
    cuda(b, b->driver->cuMemcpyHtoDAsync(b->rank.step, image, bytes, b->rank.stream), "copy");
    cuda(b, b->driver->cuStreamSynchronize(b->rank.stream), "copy");
    free(image);
}

/* us a layer, the least of three runs; without its op of this number, or NO_OP. */
static double time_layers(bench *b, const ls_op *op, int n_rows, int without) {
    enum { TIMES = 3 };
    const cuda_driver *api = b->driver;
    const ls_step step = {.n_rows = n_rows, .n_out = n_rows};
    CUgraph graph = NULL;
    CUgraphExec exec = NULL;
    double least = 1e30;
    for (int i = 0; i < LAYER_OPS; i++) { /* what is loaded with its first launch */
        launch_decode(b, op, ALL_OPS, i, &step);
    }
    cuda(b, api->cuStreamSynchronize(b->rank.stream), "a layer");
    cuda(b, api->cuStreamBeginCapture(b->rank.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "capturing");
    for (int i = 0; i < ALL_OPS; i++) {
        if (i % LAYER_OPS != without) {
            launch_decode(b, op, ALL_OPS, i, &step);
        }
    }
    cuda(b, api->cuStreamEndCapture(b->rank.stream, &graph), "capturing");
    cuda(b, api->cuGraphInstantiate(&exec, graph, 0), "a graph");
    api->cuGraphDestroy(graph);
    for (int run = 0; run < 4; run++) { /* one to warm up */
        cuda(b, api->cuEventRecord(b->start, b->rank.stream), "event");
        for (int i = 0; i < TIMES; i++) {
            cuda(b, api->cuGraphLaunch(exec, b->rank.stream), "a graph");
        }
        const double us = stop_ms(b, "layers") * 1e3 / (TIMES * LAYERS);
        least = run > 0 && us < least ? us : least;
    }
    api->cuGraphExecDestroy(exec);
    return least;
}

/* way: digits to base 3, of qkv first. */
static void set_way(bench *b, int way, char text[5]) {
    static const ls_op_kind kind[] = {OP_FFN_OUT, OP_FFN_IN, OP_OUT, OP_QKV};
    for (int i = 0; i < 4; i++, way /= 3) {
        b->rank.matmul_by[kind[i]] = (cuda_matmul_by)(CUDA_BY_LIBRARY + way % 3);
        text[3 - i] = "lwg"[way % 3];
    }
    text[4] = '\0';
}

static void all_ways(bench *b, const ls_op *op, int n_rows, double limit_us) {
    double us[WAYS];
    char text[5];
    const int all_wide = WAYS / 2;
    put_decode_step(b, n_rows);
    for (int i = 0; i < DECODE_ROWS / 64; i++) { /* memory and clocks wake up */
        set_way(b, 0, text);
        (void)time_layers(b, op, n_rows, NO_OP);
    }
    printf("  %3d rows, us a layer (%% of %.0f):", n_rows, limit_us);
    for (int way = 0; way < WAYS; way++) {
        set_way(b, way, text);
        us[way] = time_layers(b, op, n_rows, NO_OP);
        if (way % all_wide == 0) {
            printf(" %s %.1f (%.0f),", text, us[way], limit_us / us[way] * 100);
        }
    }
    for (int i = 0; i < 6; i++) {
        int next = 0;
        for (int way = 1; way < WAYS; way++) {
            next = us[way] < us[next] ? way : next;
        }
        set_way(b, next, text);
        printf("%s %s %.1f (%.0f)", i == 0 ? " best" : ",", text, us[next], limit_us / us[next] * 100);
        us[next] = 1e30;
    }
    printf("\n");
    fflush(stdout);
}

/* As an engine has it. */
static void layer_of(bench *b, const ls_op *op, int n_rows, double limit_us) {
    static const char *const name[LAYER_OPS] = {"exchange", "qkv", "attn", "out", "exchange", "ffn_in", "ffn_out"};
    put_decode_step(b, n_rows);
    set_all(b, CUDA_BY_CHOICE);
    (void)time_layers(b, op, n_rows, NO_OP);
    const double all = time_layers(b, op, n_rows, NO_OP);
    printf("  %3d rows: %.1f us, %.0f %% of %.1f; less by", n_rows, all, limit_us / all * 100, limit_us);
    for (int i = 0; i < LAYER_OPS; i++) {
        printf(" %s %.1f", name[i], all - time_layers(b, op, n_rows, i));
    }
    if (n_rows <= CUDA_MAX_DECODE) {
        b->rank.attn_tokens = 2 * DECODE_ATTN_TOKENS;
        printf("; in splits of %d: %.1f us", b->rank.attn_tokens, time_layers(b, op, n_rows, NO_OP));
        b->rank.attn_tokens = 0;
        b->rank.attn_chains = 1;
        printf(", by chains %.1f us", time_layers(b, op, n_rows, NO_OP));
        b->rank.attn_chains = 0;
    }
    printf("\n");
    fflush(stdout);
}

/* all: every way; else as an engine has it. */
static void decode_steps(bench *b, const model *m, bool all) {
    const int q = m->n_heads * m->d_head, kv = m->n_kv * m->d_head;
    ls_weight weight[LAYERS * W_COUNT] = {{0}};
    ls_op op[ALL_OPS];
    ls_error err = {0};
    start_over(b);
    const int most = b->context > 1000 ? CUDA_MAX_DECODE : DECODE_ROWS;
    const int len = pages_of_row(b) * LS_PAGE_TOKENS, n_pages = pages_of_row(b) * most;
    lay_out(b, m, LAYERS, DECODE_ROWS, n_pages, len, weight);
    for (int l = 0; l < LAYERS; l++) {
        const int w = l * W_COUNT;
        const ls_op layer[LAYER_OPS] = {
            {.kind = OP_EXCHANGE, .layer = l, .exchange = {.init = false, .bias = -1, .slot = 1}},
            {.kind = OP_QKV,
             .layer = l,
             .qkv = {w + W_NORM, w + W_Q, w + W_K, w + W_V, -1, -1, -1, w + W_NORM, w + W_NORM, m->n_heads, m->n_kv,
                     m->d_head, 1e-6F}},
            {.kind = OP_ATTN, .layer = l, .attn = {m->n_heads, m->n_kv, m->d_head, 0, 0.088F}},
            {.kind = OP_OUT, .layer = l, .row = {w + W_OUT, q, 0, LS_LEAVES, 0}},
            {.kind = OP_EXCHANGE, .layer = l, .exchange = {.init = false, .bias = -1, .slot = 0}},
            {.kind = OP_FFN_IN, .layer = l, .ffn_in = {w + W_NORM, w + W_GATE, w + W_UP, -1, -1, m->d_ffn, 1e-6F}},
            {.kind = OP_FFN_OUT, .layer = l, .row = {w + W_DOWN, m->d_ffn, 0, LS_LEAVES, 1}}};
        memcpy(op + (size_t)l * LAYER_OPS, layer, sizeof layer);
        add_layer(b, m, &weight[w]);
    }
    const size_t of_prefill = prefill_workspace(op, ALL_OPS, &b->rank.bind, len);
    const size_t of_decode = decode_workspace(&op[2], DECODE_ROWS, len, n_pages);
    b->rank.workspace_bytes = of_prefill > of_decode ? of_prefill : of_decode;
    b->rank.workspace = take(b, b->rank.workspace_bytes);
    must(b, decode_prepare(&b->rank, &err), &err);
    must(b, prefill_prepare(&b->rank, op, ALL_OPS, &err), &err);
    ls_rate read;
    must(b, cuda_measure_read(&b->rank, b->base, (int64_t)1 << 30, b->base + b->bytes - 256, &read, &err), &err);
    printf("decode-only steps of %s bf16, context %d; l: library, w: wide.c, g: gemm.c, in the order qkv, out, ffn_in, "
           "ffn_out; limit: reading at %.0f GB/s\n",
           m->name, b->context, read.best / 1e9);
    for (int n_rows = all ? 32 : 1; n_rows <= most; n_rows *= 2) {
        const double bytes =
            2.0 * ((double)(2 * q + 2 * kv) + 3.0 * m->d_ffn) * m->d + 2.0 * 2 * n_rows * (double)(b->context + 1) * kv;
        (all ? all_ways : layer_of)(b, op, n_rows, bytes / read.best * 1e6);
    }
    set_all(b, CUDA_BY_CHOICE);
}

static const model models[] = {{"qwen3-4b", 2560, 32, 8, 128, 9728, 151936},
                               {"mistral-7b", 4096, 32, 8, 128, 14336, 32000}};

static void all_matmuls(bench *b) {
    ls_error err = {0};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        for (int int8 = 0; int8 < 2; int8++) {
            if (cublaslt_open(&b->rank.cublaslt, &err) != LS_OK) {
                printf("NOTE no cuBLASLt: %s\n", err.text);
            }
            matmuls(b, &models[i], int8 ? LS_INT8 : LS_BF16);
            cublaslt_close(&b->rank.cublaslt);
        }
    }
}

/* ---- cuBLASLt's choices ---- */

/* TFLOP/s of the heuristic's choices, in its order; an engine takes the first. */
enum { CHOICES = 6 };

static void gemm(bench *b, cublaslt *const lts[CHOICES], const char *name, int m, int n, int k) {
    enum { TIMES = 10 };
    const cublaslt_shape shape = {LS_BF16, n, k, n, 1, 0};
    ls_error err = {0};
    start_over(b);
    const CUdeviceptr x = take(b, (size_t)m * (size_t)k * 2), w = take(b, (size_t)n * (size_t)k * 2),
                      y = take(b, (size_t)m * (size_t)n * 4), workspace = take(b, CUBLASLT_WORKSPACE_BYTES);
    printf("gemm %-10s %4d x %5d x %5d:", name, m, n, k);
    for (int i = 0; i < CHOICES; i++) {
        cublaslt *lt = lts[i];
        double least = 1e30;
        must(b, cublaslt_plan(lt, shape, m, w, y, workspace, b->rank.stream, &err), &err);
        for (int run = 0; run < 4; run++) { /* the first warms up */
            bool done = true;
            cuda(b, b->driver->cuEventRecord(b->start, b->rank.stream), "event");
            for (int t = 0; t < TIMES; t++) {
                done = cublaslt_matmul(lt, shape, m, x, w, y, workspace, b->rank.stream) && done;
            }
            const double ms = stop_ms(b, "a matmul") / TIMES;
            least = run > 0 && done && ms < least ? ms : least;
        }
        printf(" %4.0f", 2.0 * m * n * k / least / 1e9);
        fflush(stdout);
    }
    printf("\n");
}

static void open_choices(cublaslt *lts[CHOICES], bench *b) {
    ls_error err = {0};
    for (int i = 0; i < CHOICES; i++) {
        must(b, cublaslt_open(&lts[i], &err), &err);
        cublaslt_pass_over(lts[i], i);
    }
}

static void close_choices(cublaslt *lts[CHOICES]) {
    for (int i = 0; i < CHOICES; i++) {
        cublaslt_close(&lts[i]);
    }
}

static void all_gemms(bench *b) {
    cublaslt *lts[CHOICES];
    for (int m = 512; m <= 2048; m *= 4) { /* opened anew: a shape keeps the rows that it was planned for first */
        open_choices(lts, b);
        if (m == 512) {
            gemm(b, lts, "8192^3", 8192, 8192, 8192);
        }
        gemm(b, lts, "qwen q", m, 4096, 2560);
        gemm(b, lts, "qwen k, v", m, 1024, 2560);
        gemm(b, lts, "qwen out", m, 2560, 4096);
        gemm(b, lts, "qwen in", m, 9728, 2560);
        gemm(b, lts, "qwen down", m, 2560, 9728);
        gemm(b, lts, "mistral q", m, 4096, 4096);
        gemm(b, lts, "mistral in", m, 14336, 4096);
        gemm(b, lts, "mistral dn", m, 4096, 14336);
        close_choices(lts);
    }
}

static void all_steps(bench *b) {
    ls_error err = {0};
    static const int rows[] = {192, 256, 512, 2048};
    enum { COUNTS = sizeof rows / sizeof *rows };
    for (size_t i = 0; i < COUNTS * sizeof models / sizeof *models; i++) {
        if (cublaslt_open(&b->rank.cublaslt, &err) != LS_OK) {
            printf("NOTE no cuBLASLt: %s\n", err.text);
        }
        step_of(b, &models[i / COUNTS], rows[i % COUNTS]);
        cublaslt_close(&b->rank.cublaslt);
    }
    cublaslt *lts[CHOICES];
    open_choices(lts, b);
    gemm(b, lts, "8192^3", 8192, 8192, 8192);
    close_choices(lts);
}

static void all_decode_steps(bench *b, int context, bool all) {
    ls_error err = {0};
    b->context = context;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        if (cublaslt_open(&b->rank.cublaslt, &err) != LS_OK) {
            printf("NOTE no cuBLASLt: %s\n", err.text);
        }
        decode_steps(b, &models[i], all);
        cublaslt_close(&b->rank.cublaslt);
    }
}

int main(int argc, char **argv) {
    bench *b = calloc(1, sizeof *b);
    ls_error err = {0};
    const char *what = argc >= 2 ? argv[1] : "";
    const int context = argc == 3 ? atoi(argv[2]) : 540;
    const bool attn = strcmp(what, "attn") == 0, gemms = strcmp(what, "gemm") == 0, steps = strcmp(what, "step") == 0,
               decode = strcmp(what, "decode") == 0, layer = strcmp(what, "layer") == 0;
    if (b == NULL || context < 1 || context > 8192 ||
        (!attn && !gemms && !steps && !decode && !layer && strcmp(what, "rows") != 0)) {
        printf("usage: prefill_bench attn|rows|step|decode|layer [CONTEXT]|gemm\n");
        return 2;
    }
    must(b, cuda_driver_open(&b->driver, &err), &err);
    must(b, cuda_rank_open(&b->rank, b->driver, 0, false, &err), &err);
    b->bytes = (size_t)5 << 30;
    cuda(b, b->driver->cuMemAlloc(&b->base, b->bytes), "memory");
    cuda(b, b->driver->cuEventCreate(&b->start, CU_EVENT_DEFAULT), "event");
    cuda(b, b->driver->cuEventCreate(&b->stop, CU_EVENT_DEFAULT), "event");
    if (attn) {
        all_attention(b);
    } else if (steps) {
        all_steps(b);
    } else if (decode) {
        all_decode_steps(b, 60, true);
    } else if (layer) {
        all_decode_steps(b, context, false);
    } else if (gemms) {
        all_gemms(b);
    } else {
        all_matmuls(b);
    }
    cuda(b, b->driver->cuMemFree(b->base), "memory");
    cuda_rank_close(&b->rank);
    cuda_driver_close(&b->driver);
    free(b);
    return 0;
}
