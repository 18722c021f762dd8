/*
 * What the persistent decode kernel takes, beside the limit and the kernels that run op by op, in one process on one GPU.
 *
 *     persist_bench MODEL [--dtype f32|bf16|f16] [--int8] [--m 1,8,16] [--context 282] [--windows 16,24,32,48,64,96,128]
 *                   [--chunks 16,20,24,32] [--table] [--modes] [--ops] [--blocks 132] [--norm-apart -1|0|1] [--parts 1|2|4|8]
 *
 * MODEL: a name ("Qwen3-4B") or a folder with a config.json. For each M and each size of chunks (KiB that are asked for at a time) one
 * line a window (KiB of weights on their way to each SM): ms a step, the share of the limit, and the same where nobody waits for
 * activations (streams only, wrong numbers). --ops: the other plan, a graph. --table: where the time of the best one goes. --modes: streams
 * only, without products, outputs, copies of weights, of K and V, in turn and together.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/measure.h"
#include "persist_model.h"

enum { MAX_LIST = 16, LAUNCHES = 20 };

typedef struct list {
    int n, value[MAX_LIST];
} list;

typedef struct options {
    const char *model;
    ls_dtype dtype;
    bool int8, table, modes, ops;
    int context, blocks, norm_apart, parts;
    list m, windows, chunks;
} options;

static void must(ls_status st, const ls_error *err) {
    if (st < 0) {
        printf("FAILED %s\n", err->text);
        exit(1);
    }
}

static list list_of(const char *text) {
    list l = {0};
    while (*text != '\0' && l.n < MAX_LIST) {
        char *end;
        l.value[l.n++] = (int)strtol(text, &end, 10);
        text = *end == ',' ? end + 1 : "";
    }
    return l;
}

static options options_of(int argc, char **argv) {
    options o = {.model = "Qwen3-4B", .dtype = LS_BF16, .context = 282};
    o.m = list_of("1,8,16");
    o.windows = list_of("24,32,48,64,96");
    o.chunks = list_of("24");
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--int8") == 0) {
            o.int8 = true;
        } else if (strcmp(argv[i], "--table") == 0) {
            o.table = true;
        } else if (strcmp(argv[i], "--modes") == 0) {
            o.modes = true;
        } else if (strcmp(argv[i], "--ops") == 0) {
            o.ops = true;
        } else if (argv[i][0] != '-') {
            o.model = argv[i];
        } else {
            i++;
            if (strcmp(argv[i - 1], "--dtype") == 0) {
                o.dtype = strcmp(value, "f32") == 0 ? LS_F32 : strcmp(value, "f16") == 0 ? LS_F16 : LS_BF16;
            } else if (strcmp(argv[i - 1], "--m") == 0) {
                o.m = list_of(value);
            } else if (strcmp(argv[i - 1], "--context") == 0) {
                o.context = list_of(value).value[0];
            } else if (strcmp(argv[i - 1], "--blocks") == 0) {
                o.blocks = list_of(value).value[0];
            } else if (strcmp(argv[i - 1], "--norm-apart") == 0) {
                o.norm_apart = list_of(value).value[0];
            } else if (strcmp(argv[i - 1], "--parts") == 0) {
                o.parts = list_of(value).value[0];
            } else if (strcmp(argv[i - 1], "--windows") == 0) {
                o.windows = list_of(value);
            } else if (strcmp(argv[i - 1], "--chunks") == 0) {
                o.chunks = list_of(value);
            } else {
                printf("FAILED unknown option %s: see the top of tests/cuda/persist/persist_bench.c\n", argv[i - 1]);
                exit(2);
            }
        }
    }
    return o;
}

/* ---- What is timed ---- */

static void one_step(void *context) {
    side_run_persistent(context);
}

typedef struct by_op {
    side *s;
    int bucket;
} by_op;

static void all_ops(void *context) {
    const by_op *b = context;
    side_run_ops(b->s, b->bucket);
}

static double kv_bytes(const side *s, int m, int context) {
    const ls_spec *spec = s->m->spec;
    double tokens = 0;
    for (int i = 0; i < spec->n_layers; i++) {
        const bool windowed = spec->window_tokens > 0 && spec->layer_windowed[i] && spec->window_tokens < context + 1;
        tokens += windowed ? spec->window_tokens : context + 1;
    }
    return 2.0 * m * tokens * spec->n_kv_heads * spec->d_head * (double)ls_dtype_bytes(s->m->program->dtype);
}

static void set_step(side *s, int m, int context) {
    model_step step = {.n = m};
    for (int i = 0; i < m; i++) {
        step.token[i] = 7 * i;
        step.pos[i] = context;
        step.draw[i] = (cuda_draw){.temperature = (float)(i % 2), .position = context + 1};
    }
    side_upload(s, &step);
}

/* Microseconds a step; 0 after a message if it got stuck. */
static double time_one(device *dev, side *s, int measure) {
    ls_error err = {0};
    s->plan.args.measure = measure;
    s->plan.args.timeout_ns = 2000000000;
    const double us = device_time_many(dev, one_step, s, LAUNCHES);
    s->plan.args.measure = 0;
    if (!sides_are_well(s, 1, true, &err)) {
        printf("FAILED %s\n", err.text);
        return 0;
    }
    return us;
}

/* ---- Where time goes ---- */

/* What is left out of streams: letters for products, outputs, copies of weights, of K and V. */
static void print_modes(device *dev, side *s) {
    static const int modes[] = {0,
                                PERSIST_NO_PRODUCTS,
                                PERSIST_NO_OUTPUTS,
                                PERSIST_NO_PRODUCTS | PERSIST_NO_OUTPUTS,
                                PERSIST_NO_KV,
                                PERSIST_NO_WEIGHTS,
                                PERSIST_NO_WEIGHTS | PERSIST_NO_KV,
                                PERSIST_NO_PRODUCTS | PERSIST_NO_OUTPUTS | PERSIST_NO_WEIGHTS | PERSIST_NO_KV};
    printf("  streams only, ms, without products, outputs, weights, kv:");
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        const int m = modes[i];
        printf(" %s%s%s%s%s %.3f", m == 0 ? "-" : "", (m & PERSIST_NO_PRODUCTS) != 0 ? "p" : "",
               (m & PERSIST_NO_OUTPUTS) != 0 ? "o" : "", (m & PERSIST_NO_WEIGHTS) != 0 ? "w" : "",
               (m & PERSIST_NO_KV) != 0 ? "k" : "", time_one(dev, s, PERSIST_STREAMS_ONLY | m) * 1e-3);
    }
    printf("\n");
}

/* By the table's kinds; ffn_out, which is of out's kind, is behind them. */
static const char *const kind_names[PERSIST_KINDS + 1] = {"embed", "norm",   "qkv",  "attn",
                                                          "out",   "ffn_in", "head", "ffn_out"};

typedef struct kind_sum {
    int n;
    double all, wait_x, starved, rest, skew;
} kind_sum;

/* One launch with stamps. Means over blocks; all: from the last block's end to the last block's end. */
static void print_table(device *dev, side *s) {
    const int n_ops = s->plan.args.n_ops, n_blocks = (int)s->plan.grid;
    const size_t bytes = (size_t)n_ops * (size_t)n_blocks * sizeof(persist_stamp);
    persist_stamp *stamp = malloc(bytes);
    kind_sum sum[sizeof kind_names / sizeof *kind_names] = {0};
    s->plan.args.stamp = device_take(dev, bytes);
    for (int i = 0; i < 3; i++) {
        side_run_persistent(s);
    }
    device_wait(dev, "stamps");
    device_read(dev, stamp, s->plan.args.stamp, bytes);
    s->plan.args.stamp = NULL;
    uint64_t last = 0;
    for (int i = 0; i < n_ops; i++) {
        const persist_op *op = &s->plan.op[i];
        const bool is_ffn_out = op->kind == PERSIST_ROW && s->plan.op[op->in_op].kind == PERSIST_FFN_IN;
        kind_sum *k = &sum[is_ffn_out ? PERSIST_KINDS : op->kind];
        uint64_t begin = UINT64_MAX, first = UINT64_MAX, end = 0;
        double wait_x = 0, starved = 0, rest = 0;
        for (int b = 0; b < n_blocks; b++) {
            const persist_stamp *t = &stamp[(int64_t)i * n_blocks + b];
            const bool has_x = t->have_x >= t->begin && t->have_x <= t->end;
            begin = t->begin < begin ? t->begin : begin;
            first = t->end < first ? t->end : first;
            end = t->end > end ? t->end : end;
            wait_x += has_x ? (double)(t->have_x - t->begin) : 0;
            starved += (double)t->starved;
            rest += (double)(t->end - (has_x ? t->have_x : t->begin)) - (double)t->starved;
        }
        last = last == 0 ? begin : last;
        k->n++;
        k->all += (double)(end - last) * 1e-3;
        k->wait_x += wait_x / n_blocks * 1e-3;
        k->starved += starved / n_blocks * 1e-3;
        k->rest += rest / n_blocks * 1e-3;
        k->skew += (double)(end - first) * 1e-3;
        last = end;
    }
    printf("  us of one op:  n    all  wait for x  for weights  compute  skew of ends\n");
    for (size_t i = 0; i < sizeof sum / sizeof *sum; i++) {
        const double n = sum[i].n > 0 ? sum[i].n : 1;
        printf("  %-12s %4d %6.2f  %10.2f  %11.2f  %7.2f  %12.2f\n", kind_names[i], sum[i].n, sum[i].all / n,
               sum[i].wait_x / n, sum[i].starved / n, sum[i].rest / n, sum[i].skew / n);
    }
    free(stamp);
}

/* ---- Lines ---- */

static persist_options plan_options(const side *s, const options *o, int m, int window_bytes, int chunk_bytes) {
    return (persist_options){.rows = m,
                             .max_len = s->m->max_len,
                             .blocks = o->blocks > 0 ? o->blocks : device_blocks(s->m->dev, 0),
                             .window_bytes = window_bytes,
                             .chunk_bytes = chunk_bytes,
                             .norm_apart = o->norm_apart,
                             .parts = o->parts};
}

static void bench_m(device *dev, side *s, const options *o, int m, double limit) {
    const double bytes = (double)s->m->program->read_bytes + kv_bytes(s, m, o->context);
    set_step(s, m, o->context);
    printf("M=%d context %d: %.3f GB, limit %.3f ms", m, o->context, bytes * 1e-9, bytes / limit * 1e3);
    if (o->ops) {
        by_op b = {s, 1};
        while (b.bucket < m) {
            b.bucket *= 2;
        }
        device_overlap(dev, true);
        s->rank.overlap = true;
        const double us = device_time(dev, all_ops, &b);
        printf(", op by op %.3f ms (%.1f %%)", us * 1e-3, 100 * bytes / limit / us * 1e6);
    }
    printf("\n");
    double best = 0;
    int best_chunk = 0, best_window = 0;
    for (int p = 0; p < o->chunks.n; p++) {
        for (int w = 0; w < o->windows.n; w++) {
            const persist_options how = plan_options(s, o, m, o->windows.value[w] << 10, o->chunks.value[p] << 10);
            side_plan(s, &how);
            const double us = time_one(dev, s, 0), free_us = time_one(dev, s, PERSIST_STREAMS_ONLY);
            printf("  chunk %2d K window %3d K (%2d slots of %2d K): %.3f ms, %.1f %%; streams only %.3f ms\n",
                   o->chunks.value[p], o->windows.value[w], s->plan.args.n_slots, s->plan.args.slot_bytes >> 10,
                   us * 1e-3, us > 0 ? 100 * bytes / limit / us * 1e6 : 0, free_us * 1e-3);
            fflush(stdout);
            if (us > 0 && (best == 0 || us < best)) {
                best = us;
                best_chunk = how.chunk_bytes;
                best_window = how.window_bytes;
            }
        }
    }
    if (best > 0 && (o->table || o->modes)) {
        const persist_options how = plan_options(s, o, m, best_window, best_chunk);
        side_plan(s, &how);
        printf("  with chunks of %d K, window %d K:\n", best_chunk >> 10, best_window >> 10);
        if (o->modes) {
            print_modes(dev, s);
        }
        if (o->table) {
            print_table(dev, s);
        }
    }
}

int main(int argc, char **argv) {
    const options o = options_of(argc, argv);
    ls_error err = {0};
    ls_spec *spec = calloc(1, sizeof *spec);
    model m;
    side *s = calloc(1, sizeof *s);
    must(strchr(o.model, '/') != NULL ? spec_read(spec, o.model, &err) : spec_by_name(spec, o.model, &err), &err);
    device *dev = device_open();
    if (dev == NULL) {
        return 2;
    }
    int most = 1;
    for (int i = 0; i < o.m.n; i++) {
        most = o.m.value[i] > most ? o.m.value[i] : most;
    }
    model_open(&m, dev, spec, (ls_group){0, 1}, o.dtype, o.int8, most, o.context + 64, true);
    side_open(s, &m);
    ls_rate rate;
    must(cuda_measure_read(&s->rank, (CUdeviceptr)(uintptr_t)m.block, (int64_t)(m.block_bytes / 16 * 16),
                           s->rank.counters, &rate, &err),
         &err);
    printf("%s %s: weights %.3f GB, reading at %.0f GB/s at best\n", o.model, o.int8 ? "int8" : ls_dtype_name(o.dtype),
           (double)m.program->read_bytes * 1e-9, rate.best * 1e-9);
    for (int i = 0; i < o.m.n; i++) {
        bench_m(dev, s, &o, o.m.value[i], rate.best);
    }
    model_close(&m);
    device_close(dev);
    return 0;
}
