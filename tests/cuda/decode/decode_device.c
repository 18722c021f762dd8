/* The device of decode_check that is a GPU, and its timings. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/numeric.h"
#include "decode_device.h"

enum { MAX_TAKEN = 4096, STEP_BYTES = 1 << 16, REPLAYS = 7 };

struct device {
    cuda_driver *driver;
    cuda_rank rank;
    CUdeviceptr taken[MAX_TAKEN];
    int n_taken, mark;
};

void time_all(device *dev);

static void must(device *dev, CUresult rc, const char *what) {
    if (rc != CUDA_SUCCESS) {
        printf("FAILED %s: %s\n", what, cuda_error_text(dev->driver, rc));
        exit(1);
    }
}

device *device_open(void) {
    device *dev = calloc(1, sizeof *dev);
    ls_error err = {0};
    if (cuda_driver_open(&dev->driver, &err) < 0 ||
        cuda_rank_open(&dev->rank, dev->driver, 0, getenv("LS_KERNELS") != NULL, &err) < 0) {
        printf("FAILED %s\n", err.text);
        return NULL;
    }
    printf("%s, %d SMs\n", dev->rank.facts.name, dev->rank.facts.sm_count);
    return dev;
}

void device_close(device *dev) {
    cuda_rank_close(&dev->rank);
    cuda_driver_close(&dev->driver);
    free(dev);
}

void device_mark(device *dev) {
    dev->mark = dev->n_taken;
}

void device_release(device *dev) {
    while (dev->n_taken > dev->mark) {
        dev->driver->cuMemFree(dev->taken[--dev->n_taken]);
    }
}

void *device_take(device *dev, size_t bytes) {
    CUdeviceptr p = 0;
    if (dev->n_taken == MAX_TAKEN) {
        abort();
    }
    must(dev, dev->driver->cuMemAlloc(&p, bytes > 0 ? bytes : 1), "cuMemAlloc");
    dev->taken[dev->n_taken++] = p;
    device_fill(dev, (void *)(uintptr_t)p, 0, bytes);
    return (void *)(uintptr_t)p;
}

void *device_copy(device *dev, const void *from, size_t bytes) {
    void *p = device_take(dev, bytes);
    device_write(dev, p, from, bytes);
    return p;
}

void device_write(device *dev, void *to, const void *from, size_t bytes) {
    /* On the rank's stream: a plain copy may still be on its way when a kernel there begins. */
    must(dev, dev->driver->cuMemcpyHtoDAsync((CUdeviceptr)(uintptr_t)to, from, bytes, dev->rank.stream), "a copy");
    must(dev, dev->driver->cuStreamSynchronize(dev->rank.stream), "a copy");
}

void device_read(device *dev, void *to, const void *from, size_t bytes) {
    must(dev, dev->driver->cuStreamSynchronize(dev->rank.stream), "before a copy");
    must(dev, dev->driver->cuMemcpyDtoH(to, (CUdeviceptr)(uintptr_t)from, bytes), "cuMemcpyDtoH");
}

void device_fill(device *dev, void *to, int byte, size_t bytes) {
    must(dev, dev->driver->cuMemsetD8Async((CUdeviceptr)(uintptr_t)to, (unsigned char)byte, bytes, dev->rank.stream),
         "cuMemsetD8Async");
}

bool device_wait(device *dev, const char *what) {
    CUresult rc = dev->driver->cuStreamSynchronize(dev->rank.stream);
    if (rc != CUDA_SUCCESS) {
        printf("FAILED %s: %s\n", what, cuda_error_text(dev->driver, rc));
    }
    return rc == CUDA_SUCCESS;
}

cuda_rank *device_rank(device *dev, const ls_bind *bind, size_t workspace_bytes) {
    cuda_rank *rank = &dev->rank;
    ls_error err = {0};
    rank->bind = *bind;
    rank->step = (uintptr_t)device_take(dev, STEP_BYTES);
    rank->counters = (uintptr_t)device_take(dev, CUDA_COUNTERS * sizeof(uint32_t));
    rank->drawn = (uintptr_t)device_take(dev, (size_t)bind->m_max * sizeof(int32_t));
    rank->workspace = (uintptr_t)device_take(dev, workspace_bytes);
    rank->workspace_bytes = workspace_bytes;
    if (decode_prepare(rank, &err) < 0) {
        printf("FAILED %s\n", err.text);
        exit(1);
    }
    return rank;
}

int device_blocks(device *dev, int emulated) {
    (void)emulated;
    return dev->rank.facts.cc_major >= 9 && dev->rank.jit_us == 0 ? dev->rank.facts.sm_count : 0;
}

bool device_is_slow(device *dev) {
    (void)dev;
    return false;
}

bool device_overlap(device *dev, bool on) {
    const bool can = dev->rank.facts.cc_major >= 9 && getenv("LS_KERNELS") == NULL;
    dev->rank.overlap = on && can;
    return !on || can;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double device_time(device *dev, void (*enqueue)(void *context), void *context) {
    const cuda_driver *api = dev->driver;
    CUstream stream = dev->rank.stream;
    CUgraph graph;
    CUgraphExec exec;
    CUevent start, end;
    double us[REPLAYS];
    must(dev, api->cuStreamSynchronize(stream), "before capturing");
    must(dev, api->cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "capturing");
    enqueue(context);
    must(dev, api->cuStreamEndCapture(stream, &graph), "capturing");
    must(dev, api->cuGraphInstantiate(&exec, graph, 0), "instantiating a graph");
    must(dev, api->cuEventCreate(&start, CU_EVENT_DEFAULT), "an event");
    must(dev, api->cuEventCreate(&end, CU_EVENT_DEFAULT), "an event");
    for (int i = -2; i < REPLAYS; i++) {
        float ms = 0;
        must(dev, api->cuEventRecord(start, stream), "an event");
        must(dev, api->cuGraphLaunch(exec, stream), "launching a graph");
        must(dev, api->cuEventRecord(end, stream), "an event");
        must(dev, api->cuEventSynchronize(end), "running a graph");
        must(dev, api->cuEventElapsedTime(&ms, start, end), "an event");
        if (i >= 0) {
            us[i] = 1000.0 * (double)ms;
        }
    }
    api->cuEventDestroy(start);
    api->cuEventDestroy(end);
    api->cuGraphExecDestroy(exec);
    api->cuGraphDestroy(graph);
    qsort(us, REPLAYS, sizeof *us, by_value);
    return us[REPLAYS / 2];
}

void device_repeat(device *dev, void *to, size_t n_from, size_t n) {
    for (size_t at = n_from; at < n; at += n_from) {
        must(dev,
             dev->driver->cuMemcpyDtoDAsync((uintptr_t)to + at, (uintptr_t)to, n - at < n_from ? n - at : n_from,
                                            dev->rank.stream),
             "copying");
    }
}

double device_time_many(device *dev, void (*enqueue)(void *context), void *context, int n) {
    enum { RUNS = 5 };
    const cuda_driver *api = dev->driver;
    CUstream stream = dev->rank.stream;
    CUevent start, end;
    double us[RUNS];
    must(dev, api->cuEventCreate(&start, CU_EVENT_DEFAULT), "an event");
    must(dev, api->cuEventCreate(&end, CU_EVENT_DEFAULT), "an event");
    for (int run = -1; run < RUNS; run++) {
        float ms = 0;
        must(dev, api->cuEventRecord(start, stream), "an event");
        for (int i = 0; i < n; i++) {
            enqueue(context);
        }
        must(dev, api->cuEventRecord(end, stream), "an event");
        must(dev, api->cuEventSynchronize(end), "running kernels");
        must(dev, api->cuEventElapsedTime(&ms, start, end), "an event");
        us[run < 0 ? 0 : run] = 1000.0 * (double)ms / n;
    }
    api->cuEventDestroy(start);
    api->cuEventDestroy(end);
    qsort(us, RUNS, sizeof *us, by_value);
    return us[RUNS / 2];
}

/* ---- Timings: whole models of random weights ---- */

typedef struct timed_model {
    const char *name;
    int n_layers, d, f, heads, kv, d_head, vocab;
    bool qk_norm;
} timed_model;

static const timed_model models[] = {{"Qwen3-4B", 36, 2560, 9728, 32, 8, 128, 151936, true},
                                     {"Mistral-7B", 32, 4096, 14336, 32, 8, 128, 32768, false}};

enum { OPS_A_LAYER = 7, WEIGHTS_A_LAYER = 11, MAX_LAYERS = 36, BLOCK_BYTES = 64 << 20, CONTEXT_PAGES = 130 };

typedef struct timing {
    device *dev;
    const timed_model *m;
    ls_dtype dtype, format;
    uint8_t *next, *end; /* random numbers on the device that are not taken yet */
    float *ones, *scales;
    ls_weight weight[MAX_LAYERS * WEIGHTS_A_LAYER + 3];
    ls_op op[MAX_LAYERS * OPS_A_LAYER + 4];
    int n_weights, n_ops;
    double kind_bytes[OP_KINDS], weight_bytes;
    int kind_count[OP_KINDS];
    int bucket, only; /* kind; OP_KINDS: all */
} timing;

static int timed_matrix(timing *t, int rows, int cols, ls_op_kind kind) {
    const size_t bytes = (size_t)rows * (size_t)cols * ls_dtype_bytes(t->format);
    t->weight[t->n_weights] = (ls_weight){.format = t->format, .data = t->next, .rows = rows, .cols = cols};
    t->weight[t->n_weights].scale = t->format == LS_INT8 ? t->scales : NULL;
    t->next += (bytes + 255) / 256 * 256;
    if (t->next > t->end) {
        abort();
    }
    t->kind_bytes[kind] += (double)bytes;
    return t->n_weights++;
}

static int timed_vector(timing *t, int n) {
    t->weight[t->n_weights] = (ls_weight){.format = LS_F32, .data = t->ones, .rows = 1, .cols = n};
    return t->n_weights++;
}

static void timed_op(timing *t, ls_op op) {
    t->kind_count[op.kind]++;
    t->op[t->n_ops++] = op;
}

static void timed_layer(timing *t, int layer) {
    const timed_model *m = t->m;
    const int q = m->heads * m->d_head, kv = m->kv * m->d_head;
    ls_op op = {.kind = OP_QKV, .layer = layer};
    op.qkv = (op_qkv){.norm = timed_vector(t, m->d),
                      .q = timed_matrix(t, q, m->d, OP_QKV),
                      .k = timed_matrix(t, kv, m->d, OP_QKV),
                      .v = timed_matrix(t, kv, m->d, OP_QKV),
                      .q_bias = -1,
                      .k_bias = -1,
                      .v_bias = -1,
                      .q_norm = m->qk_norm ? timed_vector(t, m->d_head) : -1,
                      .k_norm = m->qk_norm ? timed_vector(t, m->d_head) : -1,
                      .n_heads_loc = m->heads,
                      .n_kv_loc = m->kv,
                      .d_head = m->d_head,
                      .eps = 1e-6F};
    timed_op(t, op);
    timed_op(t, (ls_op){.kind = OP_ATTN, .layer = layer, .attn = {m->heads, m->kv, m->d_head, 0, 0.0883883F}});
    timed_op(t, (ls_op){.kind = OP_OUT, .layer = layer, .row = {timed_matrix(t, m->d, q, OP_OUT), q, 0, LS_LEAVES, 1}});
    timed_op(t, (ls_op){.kind = OP_EXCHANGE, .layer = layer, .exchange = {false, -1, 1}});
    op = (ls_op){.kind = OP_FFN_IN, .layer = layer};
    op.ffn_in = (op_ffn_in){timed_vector(t, m->d),
                            timed_matrix(t, m->f, m->d, OP_FFN_IN),
                            timed_matrix(t, m->f, m->d, OP_FFN_IN),
                            -1,
                            -1,
                            m->f,
                            1e-6F};
    timed_op(t, op);
    timed_op(t, (ls_op){.kind = OP_FFN_OUT,
                        .layer = layer,
                        .row = {timed_matrix(t, m->d, m->f, OP_FFN_OUT), m->f, 0, LS_LEAVES, 0}});
    timed_op(t, (ls_op){.kind = OP_EXCHANGE, .layer = layer, .exchange = {false, -1, 0}});
}

static void timed_program(timing *t) {
    const timed_model *m = t->m;
    const int head = timed_matrix(t, m->vocab, m->d, OP_HEAD);
    timed_op(t, (ls_op){.kind = OP_EMBED, .layer = -1, .embed = {head, 0, m->vocab, 0}});
    timed_op(t, (ls_op){.kind = OP_EXCHANGE, .layer = -1, .exchange = {true, -1, 0}});
    for (int i = 0; i < m->n_layers; i++) {
        timed_layer(t, i);
    }
    timed_op(t, (ls_op){.kind = OP_HEAD, .layer = -1, .head = {timed_vector(t, m->d), head, 0, m->vocab, 1e-6F}});
    timed_op(t, (ls_op){.kind = OP_SAMPLE, .layer = -1, .sample = {0, m->vocab, m->vocab, 0, LS_LEAVES}});
    for (int kind = 0; kind < OP_KINDS; kind++) {
        t->weight_bytes += t->kind_bytes[kind];
    }
}

/* Small random numbers, as a model's are, in all of [next, end). */
static void timed_weights(timing *t) {
    const timed_model *m = t->m;
    const size_t per_layer = (size_t)m->d * (size_t)(m->d_head * (2 * m->heads + 2 * m->kv) + 3 * m->f);
    const size_t n = (size_t)m->n_layers * per_layer + (size_t)m->vocab * (size_t)m->d;
    const size_t bytes = n * ls_dtype_bytes(t->format) + (1 << 20);
    uint8_t *block = malloc(BLOCK_BYTES);
    uint64_t state = 7;
    for (size_t i = 0; i < BLOCK_BYTES / ls_dtype_bytes(t->format); i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        if (t->format == LS_INT8) {
            block[i] = (uint8_t)(state >> 40);
        } else {
            store_as(t->format, block, (int64_t)i, ((float)(state >> 40) * 0x1p-24F - 0.5F) * 0.06F);
        }
    }
    t->next = device_take(t->dev, bytes);
    t->end = t->next + bytes;
    for (size_t at = 0; at < bytes; at += BLOCK_BYTES) {
        size_t part = bytes - at < BLOCK_BYTES ? bytes - at : BLOCK_BYTES;
        if (at == 0) {
            device_write(t->dev, t->next, block, part);
        } else {
            must(t->dev,
                 t->dev->driver->cuMemcpyDtoDAsync((uintptr_t)(t->next + at), (uintptr_t)t->next, part,
                                                   t->dev->rank.stream),
                 "copying");
        }
    }
    free(block);
    const int n_ones = m->d > m->vocab * LS_LEAVES ? m->d : m->vocab * LS_LEAVES;
    float *value = malloc((size_t)n_ones * sizeof *value);
    for (int i = 0; i < n_ones; i++) {
        value[i] = 1;
    }
    t->ones = device_copy(t->dev, value, (size_t)n_ones * sizeof *value);
    for (int i = 0; i < n_ones; i++) {
        value[i] = 0.0005F;
    }
    t->scales = device_copy(t->dev, value, (size_t)n_ones * sizeof *value);
    free(value);
}

static void timed_bind(timing *t) {
    const timed_model *m = t->m;
    const int64_t columns[BUF_COUNT] = {[BUF_H] = m->d,
                                        [BUF_X] = m->d,
                                        [BUF_QKV] = (int64_t)(m->heads + 2 * m->kv) * m->d_head,
                                        [BUF_ATT] = (int64_t)m->heads * m->d_head,
                                        [BUF_ACT] = m->f,
                                        [BUF_PART] = 2 * CUDA_NODES * m->d,
                                        [BUF_LOGITS] = m->vocab};
    ls_bind bind = {.group = {0, 1},
                    .dtype = t->dtype,
                    .kv_dtype = t->dtype,
                    .d_model = m->d,
                    .m_max = CUDA_MAX_DECODE,
                    .weight = t->weight,
                    .n_pages = CONTEXT_PAGES};
    for (int i = 0; i < BUF_COUNT; i++) {
        if (columns[i] > 0) {
            bind.buf[i] = device_take(t->dev, (size_t)(CUDA_MAX_DECODE * columns[i]) * sizeof(float));
        }
    }
    bind.peer_part[0] = bind.buf[BUF_PART];
    bind.n_parts = 1;
    bind.fault = device_take(t->dev, CUDA_MAX_DECODE * sizeof(int32_t));
    bind.rope = device_take(t->dev, (size_t)CONTEXT_PAGES * LS_PAGE_TOKENS * (size_t)m->d_head * sizeof(float));
    const size_t cache =
        (size_t)m->n_layers * CONTEXT_PAGES * (size_t)(m->kv * LS_PAGE_TOKENS * m->d_head) * ls_dtype_bytes(t->dtype);
    bind.k_cache = device_take(t->dev, cache);
    bind.v_cache = device_take(t->dev, cache);
    device_rank(t->dev, &bind, decode_workspace(&t->op[3], CUDA_MAX_DECODE, CONTEXT_PAGES * LS_PAGE_TOKENS, INT32_MAX));
}

/* m rows, each of its own sequence, with `context` tokens before it. */
static void timed_step(timing *t, int m, int context) {
    static uint8_t bytes[STEP_BYTES];
    memset(bytes, 0, sizeof bytes);
    const int pages = context / LS_PAGE_TOKENS + 1;
    cuda_step *s = (cuda_step *)bytes;
    *s = (cuda_step){.n_rows = m, .n_dec = m, .n_seqs = m, .n_out = m};
    s->token = 256;
    s->pos = 512;
    s->seq_of = 768;
    s->out_row = 1024;
    s->seq = 1280;
    s->draw = 2048;
    s->page = 4096;
    for (int i = 0; i < m; i++) {
        ((int32_t *)(bytes + s->token))[i] = i * 7;
        ((int32_t *)(bytes + s->pos))[i] = context;
        ((int32_t *)(bytes + s->seq_of))[i] = i;
        ((int32_t *)(bytes + s->out_row))[i] = i;
        ((cuda_seq *)(bytes + s->seq))[i] = (cuda_seq){i, 1, context, i * pages};
        ((cuda_draw *)(bytes + s->draw))[i] = (cuda_draw){.temperature = (float)(i % 2), .position = context + 1};
        for (int j = 0; j < pages; j++) {
            ((int32_t *)(bytes + s->page))[i * pages + j] = (i * pages + j) % CONTEXT_PAGES;
        }
    }
    device_write(t->dev, (void *)(uintptr_t)t->dev->rank.step, bytes, sizeof bytes);
}

static void enqueue_ops(void *context) {
    timing *t = context;
    ls_error err = {0};
    for (int i = 0; i < t->n_ops; i++) {
        int taken;
        if ((t->only == OP_KINDS || (int)t->op[i].kind == t->only) &&
            decode_launch(&t->dev->rank, t->op, t->n_ops, i, t->bucket, &taken, &err) < 0) {
            printf("FAILED %s\n", err.text);
            exit(1);
        }
    }
}

typedef struct reading {
    device *dev;
    CUfunction fn;
    const void *data;
    int64_t n_words;
} reading;

static void enqueue_read(void *context) {
    reading *r = context;
    ls_error err = {0};
    CUdeviceptr sink = r->dev->rank.counters;
    if (cuda_launch(&r->dev->rank, r->fn, "read_all", (unsigned)r->dev->rank.facts.sm_count * 8, 1, 1, 256, 0,
                    (void *[]){&r->data, &r->n_words, &sink}, &err) < 0) {
        printf("FAILED %s\n", err.text);
        exit(1);
    }
}

static void time_step(timing *t, int m, int context, double limit) {
    for (t->bucket = 1; t->bucket < m; t->bucket *= 2) {
    }
    timed_step(t, m, context);
    t->only = OP_KINDS;
    device_overlap(t->dev, false);
    const double apart = device_time(t->dev, enqueue_ops, t);
    device_overlap(t->dev, true);
    const double us = device_time(t->dev, enqueue_ops, t);
    device_overlap(t->dev, false);
    const double kv =
        2.0 * m * (context + 1) * t->m->n_layers * t->m->kv * t->m->d_head * (double)ls_dtype_bytes(t->dtype);
    const double rate = (t->weight_bytes + kv) / us * 1e-3;
    printf("%s %s M=%d ctx %d: step %.0f us (apart %.0f), %.0f GB/s, %.1f %% of the limit;", t->m->name,
           ls_dtype_name(t->format), m, context, us, apart, rate, 100 * rate / limit);
    for (int kind = 0; kind < OP_KINDS; kind++) {
        t->only = kind;
        const double one = device_time(t->dev, enqueue_ops, t) / t->kind_count[kind];
        const double bytes = kind == OP_ATTN ? kv / t->m->n_layers : t->kind_bytes[kind] / t->kind_count[kind];
        printf(" %s %.1f", op_kind_name((ls_op_kind)kind), one);
        if (bytes > 0) {
            printf(" (%.0f)", bytes / one * 1e-3);
        }
    }
    printf("\n");
    fflush(stdout);
}

static void time_model(device *dev, const timed_model *m, ls_dtype dtype, bool int8, bool all) {
    timing *t = calloc(1, sizeof *t);
    t->dev = dev;
    t->m = m;
    t->dtype = dtype;
    t->format = int8 ? LS_INT8 : dtype;
    device_mark(dev);
    timed_weights(t);
    uint8_t *first = t->next;
    timed_program(t);
    timed_bind(t);
    reading r = {.dev = dev, .data = first, .n_words = (int64_t)(t->weight_bytes / 16)};
    ls_error err = {0};
    double limit = 1e-9;
    if (cuda_rank_kernel(&dev->rank, "read_all", &r.fn, &err) == LS_OK) {
        limit = t->weight_bytes / device_time(dev, enqueue_read, &r) * 1e-3;
    }
    printf("%s %s: %.2f GB of weights, limit %.0f GB/s\n", m->name, ls_dtype_name(t->format), t->weight_bytes * 1e-9,
           limit);
    time_step(t, 1, 282, limit);
    time_step(t, 8, 282, limit);
    if (all) {
        time_step(t, 2, 282, limit);
        time_step(t, 16, 282, limit);
        time_step(t, 1, 26, limit);
        time_step(t, 1, 8192, limit);
    }
    device_release(dev);
    free(t);
}

/* Microseconds of a step with kernels overlapping, and apart; of one launch, apart, of each kind of op, with the GB/s of its weights (attn: of its KV). */
void time_all(device *dev) {
    time_model(dev, &models[0], LS_BF16, false, true);
    time_model(dev, &models[1], LS_BF16, false, true);
    time_model(dev, &models[0], LS_BF16, true, true);
    time_model(dev, &models[0], LS_F32, false, false);
    time_model(dev, &models[0], LS_F16, false, false);
}
