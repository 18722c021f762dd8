/*
 * Timings (LS_KBENCH=1): each op on one rank's share of Qwen3-0.6B at R = 2 (the head: at R = 8), all cores, every
 * implementation, dtype and quantization; and what the same cores read from memory, for comparison. Weights and KV rotate through
 * RING_BYTES of copies, so that they come from memory as they would in a model, unless the machine's last cache is larger.
 */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "base/clock.h"

enum { SAMPLES = 7, MAX_COPIES = 512, SAMPLE_NS = 20 * 1000 * 1000 };
static const size_t RING_BYTES = (size_t)256 << 20;

typedef struct bench {
    const kern_impl *impl;
    const kern_memory *memory;
    kern_rank *copy;
    int n_copies, next, n_iterations;
    const uint8_t *ring; /* read: the memory to read; NULL: run the op */
    int64_t ns;
    atomic_ullong sink;
} bench;

static void bench_job(void *arg, int rank, const ls_team *team) {
    (void)rank;
    bench *b = arg;
    team_wait(team);
    int64_t start = clock_ns();
    for (int i = 0; i < b->n_iterations; i++) {
        if (b->ring != NULL) {
            int64_t first, last;
            team_range(team, (int64_t)RING_BYTES, 4096, &first, &last);
            atomic_fetch_add(&b->sink, cpu_isa_find(b->impl->isa)->read(b->ring + first, (size_t)(last - first)));
        } else {
            const kern_rank *copy = &b->copy[(b->next + i) % b->n_copies];
            b->impl->table->fn[copy->op[0].kind](&copy->op[0], 0, &copy->bind, memory_step(b->memory), team);
        }
        team_wait(team);
    }
    if (team->thread == 0) {
        b->ns = clock_ns() - start;
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* ns per iteration: the median after a warm-up that also finds how many make a sample; *spread is (max - min) / median. */
static double measure(bench *b, rank_group *group, double *spread, double *fastest) {
    double sample[SAMPLES];
    b->n_iterations = 1;
    for (;;) {
        rank_group_run(group, bench_job, b);
        b->next += b->n_iterations;
        if (b->ns >= SAMPLE_NS / 4) {
            break;
        }
        b->n_iterations *= 4;
    }
    int64_t n = (int64_t)b->n_iterations * SAMPLE_NS / (b->ns + 1);
    b->n_iterations = n < 1 ? 1 : (int)n;
    for (int i = 0; i < SAMPLES; i++) {
        rank_group_run(group, bench_job, b);
        b->next = (b->next + b->n_iterations) % b->n_copies;
        sample[i] = (double)b->ns / b->n_iterations;
    }
    qsort(sample, SAMPLES, sizeof *sample, by_value);
    *fastest = sample[0];
    *spread = (sample[SAMPLES - 1] - sample[0]) / sample[SAMPLES / 2];
    return sample[SAMPLES / 2];
}

/* Bytes that the op has to read once: weights, KV, or where it has neither, its rows. FLOPs as in ls_op. */
static void costs(const kern_problem *p, int n_rows, double *bytes, double *flops) {
    const kern_case *c = p->c;
    double weights = 0, products = 0;
    for (int i = 0; i < KW_COUNT; i++) {
        double n = (double)p->weight[i].rows * p->weight[i].cols;
        weights += n * (double)ls_dtype_bytes(p->weight[i].format);
        weights += p->weight[i].q != NULL ? (double)p->weight[i].rows * LS_LEAVES * sizeof(float) : 0;
        products += p->weight[i].is_vector ? 0 : n;
    }
    *bytes = weights;
    *flops = 2 * products * n_rows;
    const double rows_bytes = (double)n_rows * 4;
    if (c->kind == OP_ATTN) {
        double tokens = kern_positions(c, 0);
        *bytes = 2 * tokens * c->n_kv * c->d_head * (double)ls_dtype_bytes(c->kv_dtype);
        *flops = 4 * tokens * c->n_heads * c->d_head * n_rows;
    } else if (c->kind == OP_EMBED || c->kind == OP_EXCHANGE) {
        *bytes = rows_bytes * c->d_model * (c->kind == OP_EMBED ? 1 : 2);
        *flops = 0;
    } else if (c->kind == OP_SAMPLE) {
        *bytes = rows_bytes * c->n;
    }
}

/* Copies of the rank, each with weights and KV of its own; their memory goes to block[]. */
static int make_copies(kern_rank *copy, const kern_rank *rank, const kern_problem *p, double bytes, void **block) {
    double wanted = (double)RING_BYTES / (bytes > 1 ? bytes : 1) + 1;
    int n = wanted > MAX_COPIES ? MAX_COPIES : (int)wanted, n_blocks = 0;
    const kern_case *c = p->c;
    const size_t cache = (size_t)((rank->op[0].layer + 1) * p->n_pages * c->n_kv * LS_PAGE_TOKENS * c->d_head) *
                         ls_dtype_bytes(c->kv_dtype);
    for (int i = 0; i < n; i++) {
        copy[i] = *rank;
        copy[i].bind.weight = copy[i].weight;
        for (int w = 0; w < KW_COUNT; w++) {
            if (rank->weight[w].data != NULL && c->kind != OP_EMBED) {
                size_t size = (size_t)rank->weight[w].rows * (size_t)rank->weight[w].cols *
                              ls_dtype_bytes(rank->weight[w].format);
                block[n_blocks] = aligned_alloc(64, (size + 63) / 64 * 64);
                copy[i].weight[w].data = memcpy(block[n_blocks++], rank->weight[w].data, size);
            }
        }
        if (c->kind == OP_ATTN) {
            block[n_blocks] = aligned_alloc(64, (cache + 63) / 64 * 64);
            copy[i].bind.k_cache = memcpy(block[n_blocks++], rank->bind.k_cache, cache);
            block[n_blocks] = aligned_alloc(64, (cache + 63) / 64 * 64);
            copy[i].bind.v_cache = memcpy(block[n_blocks++], rank->bind.v_cache, cache);
        }
    }
    block[n_blocks] = NULL;
    return n;
}

static void bench_op(const kern_case *c, const kern_impl *impl, int n_impls, rank_group *group,
                     const double read_gbs[KERN_MAX_IMPLS]) {
    kern_problem *p = problem_create(c);
    kern_rank *copy = malloc(MAX_COPIES * sizeof *copy);
    void **block = malloc((size_t)MAX_COPIES * (KW_COUNT + 2) * sizeof *block);
    double bytes, flops;
    costs(p, p->n_rows, &bytes, &flops);
    for (int i = 0; i < n_impls; i++) {
        kern_run run = {.impl = &impl[i], .n_ranks = 1, .n_threads = 1};
        kern_memory *memory = memory_create(p, &run);
        bench b = {.impl = &impl[i], .memory = memory, .copy = copy};
        b.n_copies = make_copies(copy, memory_rank(memory, 0), p, bytes, block);
        double spread, fastest, ns = measure(&b, group, &spread, &fastest);
        printf("%-8s %-6s %-5s M %2d %12.0f ns %8.2f GB/s %5.1f %% of read %8.2f GFLOP/s  spread %4.1f %%\n",
               op_kind_name(c->kind), impl[i].name,
               c->quantization ? ls_quantization_name(c->quantization) : ls_dtype_name(c->dtype), p->n_rows, ns,
               bytes / ns, 100 * bytes / ns / read_gbs[i], flops / ns, 100 * spread);
        fflush(stdout);
        for (int j = 0; block[j] != NULL; j++) {
            free(block[j]);
        }
        memory_destroy(memory);
    }
    free(block);
    free(copy);
    problem_destroy(p);
}

/* The limit: the fastest sample. Measured before and after, since other work on the machine shows in it. */
static void bench_read(const kern_impl *impl, int n_impls, rank_group *group, const uint8_t *ring,
                       double read_gbs[KERN_MAX_IMPLS]) {
    for (int i = 0; i < n_impls; i++) {
        bench b = {.impl = &impl[i], .ring = ring, .n_copies = 1};
        double spread, fastest;
        measure(&b, group, &spread, &fastest);
        read_gbs[i] = (double)RING_BYTES / fastest;
        printf("read     %-6s      %d threads, %zu MB: %8.2f GB/s  spread %4.1f %%\n", impl[i].name,
               rank_group_threads(group), RING_BYTES >> 20, read_gbs[i], 100 * spread);
    }
}

void kern_bench(const char *only) {
    enum { D = 1024, F_LOC = 1536, V_LOC = 18992, CONTEXT = 2048 };
    const kern_case shape[] = {
        {.kind = OP_EMBED, .d_model = D, .n = V_LOC, .seq = {{0, 1}}},
        {.kind = OP_QKV, .d_model = D, .n_heads = 8, .n_kv = 4, .d_head = 128, .qk_norm = true, .seq = {{0, 1}}},
        {.kind = OP_QKV, .d_model = D, .n_heads = 8, .n_kv = 4, .d_head = 128, .qk_norm = true, .seq = {{0, 16}}},
        {.kind = OP_ATTN, .d_model = D, .n_heads = 8, .n_kv = 4, .d_head = 128, .seq = {{CONTEXT - 1, 1}}},
        {.kind = OP_OUT, .d_model = D, .n = D, .seq = {{0, 1}}},
        {.kind = OP_OUT, .d_model = D, .n = D, .seq = {{0, 16}}},
        {.kind = OP_EXCHANGE, .d_model = D, .seq = {{0, 1}}},
        {.kind = OP_FFN_IN, .d_model = D, .n = F_LOC, .seq = {{0, 1}}},
        {.kind = OP_FFN_IN, .d_model = D, .n = F_LOC, .seq = {{0, 16}}},
        {.kind = OP_FFN_OUT, .d_model = D, .n = F_LOC, .seq = {{0, 1}}},
        {.kind = OP_FFN_OUT, .d_model = D, .n = F_LOC, .seq = {{0, 16}}},
        {.kind = OP_HEAD, .d_model = D, .n = V_LOC, .seq = {{0, 1}}},
        {.kind = OP_SAMPLE, .n = V_LOC, .seq = {{0, 1}}},
    };
    const int n_threads = core_count();
    kern_impl impl[KERN_MAX_IMPLS];
    double read_gbs[KERN_MAX_IMPLS];
    int n_impls = kern_impls(impl);
    rank_group *group;
    ls_error error;
    if (rank_group_create(&group, 1, n_threads, &error) != LS_OK) {
        printf("%s\n", error.text);
        return;
    }
    uint8_t *ring = aligned_alloc(4096, RING_BYTES);
    memset(ring, 1, RING_BYTES);
    bench_read(impl, n_impls, group, ring, read_gbs);
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        if (only != NULL && strcmp(only, op_kind_name(shape[i].kind)) != 0) {
            continue;
        }
        for (ls_dtype dtype = LS_F32; dtype <= LS_F16; dtype++) {
            kern_case c = shape[i];
            c.dtype = dtype;
            c.kv_dtype = dtype;
            bench_op(&c, impl, n_impls, group, read_gbs);
        }
        const bool matrix = shape[i].kind != OP_ATTN && shape[i].kind != OP_EXCHANGE && shape[i].kind != OP_SAMPLE;
        for (int q = LS_QUANTIZATION_W8A16; q <= LS_QUANTIZATION_W8A8 && matrix; q++) {
            kern_case c = shape[i];
            c.dtype = c.kv_dtype = LS_BF16;
            c.quantization = (ls_quantization)q;
            bench_op(&c, impl, n_impls, group, read_gbs);
        }
    }
    bench_read(impl, n_impls, group, ring, read_gbs);
    free(ring);
    rank_group_destroy(&group);
}
