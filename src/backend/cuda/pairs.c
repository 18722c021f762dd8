/* See pairs.h. */
#include "backend/cuda/pairs.h"

#include <stdlib.h>
#include <string.h>

#include "backend/cuda/kern/pair_args.h"
#include "base/threads.h"

enum { TIMEOUT_S = 30, THREADS = 256, PASSES = 5 };

static const uint64_t patience_ns = 2000000000;

static void *at(CUdeviceptr address) {
    return (void *)(uintptr_t)address; // NOLINT(performance-no-int-to-ptr)
}

static ls_status wait_both(const cuda_pair *pair, const char *what, ls_error *err) {
    for (int i = 1; i >= 0; i--) {
        TRY(cuda_rank_enter(pair->rank[i], err));
        TRY(cuda_rank_wait(pair->rank[i], what, TIMEOUT_S, err));
    }
    return LS_OK;
}

ls_status cuda_pair_open(cuda_pair *out, cuda_rank *a, cuda_rank *b, ls_error *err) {
    *out = (cuda_pair){.rank = {a, b}};
    for (int i = 1; i >= 0; i--) {
        TRY(cuda_rank_enter(out->rank[i], err));
        TRY(cuda_check(out->rank[i], a->driver->cuMemAlloc(&out->buffer[i], PAIR_BYTES), "reserving memory to measure",
                       err));
    }
    return LS_OK;
}

void cuda_pair_close(cuda_pair *pair) {
    nccl_close(&pair->nccl);
    for (int i = 1; i >= 0; i--) {
        if (pair->buffer[i] != 0 && cuda_rank_enter(pair->rank[i], NULL) == LS_OK) {
            pair->rank[i]->driver->cuMemFree(pair->buffer[i]);
        }
    }
    *pair = (cuda_pair){0};
}

ls_status cuda_pair_enable(const cuda_pair *pair, bool *can, ls_error *why, ls_error *err) {
    const cuda_driver *api = pair->rank[0]->driver;
    *can = true;
    for (int i = 1; i >= 0; i--) {
        const cuda_rank *from = pair->rank[i], *to = pair->rank[1 - i];
        int yes = 0;
        TRY(cuda_check(from, api->cuDeviceCanAccessPeer(&yes, from->device, to->device), "asking for peer access",
                       err));
        CUresult rc = CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
        TRY(cuda_rank_enter(from, err));
        if (yes) {
            rc = api->cuCtxEnablePeerAccess(to->context, 0);
        }
        if (rc != CUDA_SUCCESS && rc != CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED) {
            *can = false;
            error_set(why, LS_EUNSUPPORTED, "GPU %d cannot store to the memory of GPU %d: %s", from->facts.device,
                      to->facts.device, cuda_error_text(api, rc));
        }
    }
    return LS_OK;
}

/* ---- Copies ---- */

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct pair_timer {
    CUevent begin, end;
} pair_timer;

static void close_timer(const cuda_rank *rank, pair_timer *t) {
    if (t->begin != NULL) {
        rank->driver->cuEventDestroy(t->begin);
    }
    if (t->end != NULL) {
        rank->driver->cuEventDestroy(t->end);
    }
}

/* Of the current context. */
static ls_status open_timer(const cuda_rank *rank, pair_timer *out, ls_error *err) {
    TRY(cuda_check(rank, rank->driver->cuEventCreate(&out->begin, CU_EVENT_DEFAULT), "creating an event", err));
    return cuda_check(rank, rank->driver->cuEventCreate(&out->end, CU_EVENT_DEFAULT), "creating an event", err);
}

static ls_status copy(const cuda_pair *pair, int from, size_t bytes, ls_error *err) {
    const cuda_rank *a = pair->rank[from], *b = pair->rank[1 - from];
    return cuda_check(a,
                      a->driver->cuMemcpyPeerAsync(pair->buffer[1 - from], b->context, pair->buffer[from], a->context,
                                                   bytes, a->stream),
                      "copying between GPUs", err);
}

static ls_status time_copies(const cuda_pair *pair, int from, const pair_timer *t, ls_rate *out, ls_error *err) {
    const cuda_rank *rank = pair->rank[from];
    const cuda_driver *api = rank->driver;
    double us[PASSES];
    for (int pass = -1; pass < PASSES; pass++) {
        float ms = 0;
        TRY(cuda_check(rank, api->cuEventRecord(t->begin, rank->stream), "timing", err));
        TRY(copy(pair, from, PAIR_BYTES, err));
        TRY(cuda_check(rank, api->cuEventRecord(t->end, rank->stream), "timing", err));
        TRY(cuda_rank_wait(rank, "copying between GPUs", TIMEOUT_S, err));
        TRY(cuda_check(rank, api->cuEventElapsedTime(&ms, t->begin, t->end), "timing", err));
        us[pass < 0 ? 0 : pass] = (double)ms * 1000;
    }
    qsort(us, PASSES, sizeof *us, compare_doubles);
    *out = (ls_rate){PAIR_BYTES * 1e6 / us[0], PAIR_BYTES * 1e6 / us[PASSES / 2]};
    return LS_OK;
}

ls_status cuda_pair_copies(const cuda_pair *pair, ls_rate *there, ls_rate *back, ls_error *err) {
    for (int from = 1; from >= 0; from--) {
        pair_timer t = {NULL, NULL};
        TRY(cuda_rank_enter(pair->rank[from], err));
        ls_status st = open_timer(pair->rank[from], &t, err);
        st = st == LS_OK ? time_copies(pair, from, &t, from == 0 ? there : back, err) : st;
        close_timer(pair->rank[from], &t);
        TRY(st);
    }
    return LS_OK;
}

/* ---- Patterns ---- */

static ls_status launch_pattern(cuda_rank *rank, const char *name, CUdeviceptr data, int64_t n, uint32_t seed,
                                CUdeviceptr first_bad, ls_error *err) {
    pair_pattern_args args = {at(data), n, seed, at(first_bad)};
    CUfunction fn;
    TRY(cuda_rank_kernel(rank, name, &fn, err));
    return cuda_launch(rank, fn, name, (unsigned)(4 * rank->facts.sm_count), 1, 1, THREADS, 0, (void *[]){&args}, err);
}

/* From rank[from] to the other, by a copy or by stores. */
static ls_status try_pattern(const cuda_pair *pair, int from, bool stores, uint32_t seed, ls_error *err) {
    const int64_t bytes = PAIR_BYTES / 2;
    cuda_rank *a = pair->rank[from], *b = pair->rank[1 - from];
    const CUdeviceptr to = pair->buffer[1 - from], bad = to + (CUdeviceptr)bytes;
    unsigned long long first_bad = 0;
    TRY(cuda_rank_enter(b, err));
    TRY(cuda_check(b, b->driver->cuMemsetD8Async(to, 0, (size_t)bytes, b->stream), "clearing memory", err));
    TRY(cuda_check(b, b->driver->cuMemsetD8Async(bad, 0xff, sizeof first_bad, b->stream), "clearing memory", err));
    TRY(cuda_rank_wait(b, "clearing memory", TIMEOUT_S, err));
    TRY(cuda_rank_enter(a, err));
    TRY(launch_pattern(a, "pair_fill", stores ? to : pair->buffer[from], bytes / 4, seed, 0, err));
    if (!stores) {
        TRY(copy(pair, from, (size_t)bytes, err));
    }
    TRY(cuda_rank_wait(a, "a pattern", TIMEOUT_S, err));
    TRY(cuda_rank_enter(b, err));
    TRY(launch_pattern(b, "pair_check", to, bytes / 4, seed, bad, err));
    TRY(cuda_rank_wait(b, "a pattern", TIMEOUT_S, err));
    TRY(cuda_check(b, b->driver->cuMemcpyDtoH(&first_bad, bad, sizeof first_bad), "reading what came", err));
    if (first_bad != ~0ULL) {
        return error_set(
            err, LS_EABORTED, "what GPU %d %s GPU %d is not what came: word %llu of %lld is the first that differs",
            a->facts.device, stores ? "stored to" : "copied to", b->facts.device, first_bad, (long long)(bytes / 4));
    }
    return LS_OK;
}

ls_status cuda_pair_patterns(const cuda_pair *pair, bool stores, ls_error *err) {
    for (uint32_t i = 0; i < 4; i++) {
        if (i / 2 == 0 || stores) {
            TRY(try_pattern(pair, (int)i % 2, i / 2 == 1, 0x9e3779b9U + i, err));
        }
    }
    return cuda_rank_enter(pair->rank[0], err);
}

/* ---- Words ---- */

static ls_status launch_ping(const cuda_pair *pair, int i, uint32_t n, ls_error *err) {
    cuda_rank *rank = pair->rank[i];
    pair_ping_args args = {.here = at(pair->buffer[i]),
                           .there = at(pair->buffer[1 - i]),
                           .lost = (uint32_t *)at(pair->buffer[i]) + 64,
                           .n = n,
                           .begins = i == 0,
                           .patience_ns = patience_ns};
    CUfunction fn;
    TRY(cuda_rank_kernel(rank, "pair_ping", &fn, err));
    return cuda_launch(rank, fn, "pair_ping", 1, 1, 1, 1, 0, (void *[]){&args}, err);
}

static ls_status ping(const cuda_pair *pair, const pair_timer *t, uint32_t n, float *ms, ls_error *err) {
    const cuda_driver *api = pair->rank[0]->driver;
    uint32_t lost = 0;
    for (int i = 1; i >= 0; i--) {
        TRY(cuda_rank_enter(pair->rank[i], err));
        TRY(cuda_check(pair->rank[i], api->cuMemsetD8Async(pair->buffer[i], 0, 512, pair->rank[i]->stream),
                       "clearing memory", err));
    }
    TRY(wait_both(pair, "clearing memory", err));
    for (int i = 1; i >= 0; i--) {
        TRY(cuda_rank_enter(pair->rank[i], err));
        if (i == 0) {
            TRY(cuda_check(pair->rank[0], api->cuEventRecord(t->begin, pair->rank[0]->stream), "timing", err));
        }
        TRY(launch_ping(pair, i, n, err));
    }
    TRY(cuda_check(pair->rank[0], api->cuEventRecord(t->end, pair->rank[0]->stream), "timing", err));
    TRY(wait_both(pair, "words", err));
    TRY(cuda_check(pair->rank[0], api->cuMemcpyDtoH(&lost, pair->buffer[0] + 256, sizeof lost), "reading", err));
    if (lost != 0) {
        return error_set(err, LS_EABORTED, "a word that GPU %d and GPU %d store to each other did not come in %.0f s",
                         pair->rank[0]->facts.device, pair->rank[1]->facts.device, (double)patience_ns / 1e9);
    }
    return cuda_check(pair->rank[0], api->cuEventElapsedTime(ms, t->begin, t->end), "timing", err);
}

/* Of two lengths, so that the launches do not count. */
ls_status cuda_pair_ping(const cuda_pair *pair, double *out_us, ls_error *err) {
    enum { SHORT = 200, LONG = 2200 };
    pair_timer t = {NULL, NULL};
    float few = 0, many = 0;
    ls_status st = cuda_rank_enter(pair->rank[0], err);
    TRY_GOTO(st, fail);
    TRY_GOTO(open_timer(pair->rank[0], &t, err), fail);
    TRY_GOTO(ping(pair, &t, SHORT, &few, err), fail);
    TRY_GOTO(ping(pair, &t, SHORT, &few, err), fail);
    TRY_GOTO(ping(pair, &t, LONG, &many, err), fail);
    *out_us = (double)(many - few) * 1000 / (2 * (LONG - SHORT));
fail:
    close_timer(pair->rank[0], &t);
    return st;
}

/* ---- Exchanges ---- */

enum { MOST_FLOATS = PAIR_MOST_EXCHANGED / 4, IN_GRAPH = 20 };

/* Two ranks of a program of two exchanges, in turn in one slot and the other. */
typedef struct exchange_bench {
    exchange_group group;
    cuda_rank rank[2];
    cuda_exchange exchange[2];
    ls_op op[2];
    CUgraphExec graph[2];
    const void *part[2]; /* what the other reads, or stores to */
    uint8_t *pinned;     /* stuck, and where it is staged boxes and parts */
    const cuda_pair *pair;
    const pair_timer *timer;
    ncclUniqueId id;
    int rows, d;
} exchange_bench;

/* What is done for each of the two: by one thread, or where NCCL is in it by two (nccl.h). */
typedef ls_status (*side_fn)(exchange_bench *b, int i, ls_error *err);

typedef struct second_side {
    exchange_bench *b;
    side_fn fn;
    ls_error error;
} second_side;

static void *run_second(void *arg) {
    second_side *side = arg;
    side->error.status = side->fn(side->b, 1, &side->error);
    return NULL;
}

static ls_status on_both(exchange_bench *b, side_fn fn, ls_error *err) {
    second_side side = {.b = b, .fn = fn};
    pthread_t thread;
    if (b->group.nccl == NULL) {
        TRY(fn(b, 1, err));
        return fn(b, 0, err);
    }
    const int rc = thread_start(&thread, run_second, &side);
    if (rc != 0) {
        return error_set(err, LS_ENOMEM, "no thread for the second GPU: %s", strerror(rc));
    }
    ls_status st = fn(b, 0, err);
    pthread_join(thread, NULL);
    return st != LS_OK || side.error.status == LS_OK ? st : error_set(err, side.error.status, "%s", side.error.text);
}

static const size_t part_bytes = (size_t)2 * CUDA_NODES * MOST_FLOATS * sizeof(float);

static size_t box_bytes_of(int d) {
    return ((size_t)exchange_layout_of(d, 1).bytes + 255) / 256 * 256;
}

/* In a rank's buffer: the step, epochs, box, h, x, parts. */
static ls_status place(exchange_bench *b, int i, ls_error *err) {
    const cuda_pair *pair = b->pair;
    const bool staged = b->group.staged;
    cuda_rank *rank = &b->rank[i];
    const cuda_driver *api = rank->driver;
    const size_t box_bytes = box_bytes_of(b->d), act = (size_t)MOST_FLOATS * 4;
    const cuda_step step = {.n_rows = b->rows};
    const CUdeviceptr base = pair->buffer[i], box = base + 1024, h = box + box_bytes, x = h + act, part = x + act;
    const CUdeviceptr fault = part + part_bytes;
    const int most_rows = MOST_FLOATS / b->d;
    if (fault + (size_t)most_rows * sizeof(int32_t) > base + PAIR_BYTES) {
        return error_set(err, LS_EINTERNAL, "exchanges of a pair need more than %d bytes", PAIR_BYTES);
    }
    rank->overlap = pair->rank[i]->overlap;
    rank->step = base;
    rank->bind = (ls_bind){.group = {i, 2},
                           .dtype = LS_F32,
                           .d_model = b->d,
                           .m_max = most_rows,
                           .fault = at(fault),
                           .buf = {[BUF_H] = at(h), [BUF_X] = at(x), [BUF_PART] = at(part)}};
    b->group.x[i] = at(x);
    b->group.args.box[i] = staged ? (char *)b->pinned + 4096 + (size_t)i * box_bytes : at(box);
    b->part[i] = staged ? b->pinned + 4096 + 2 * box_bytes + (size_t)i * part_bytes : at(part);
    TRY(cuda_rank_enter(rank, err));
    TRY(cuda_check(rank, api->cuMemsetD8Async(base, 0, PAIR_BYTES, rank->stream), "clearing memory", err));
    TRY(cuda_check(rank, api->cuMemcpyHtoDAsync(base, &step, sizeof step, rank->stream), "copying in", err));
    TRY(cuda_rank_wait(rank, "clearing memory", TIMEOUT_S, err));
    return exchange_open(&b->exchange[i], rank, &b->group, base + 512, 1, err);
}

static ls_status capture(exchange_bench *b, int i, ls_error *err) {
    const cuda_rank *rank = &b->rank[i];
    const cuda_driver *api = rank->driver;
    const decode_how how = {.n_rows = b->rows, .n_nodes = 1};
    CUgraph graph = NULL;
    ls_status st = LS_OK;
    TRY(cuda_rank_enter(rank, err));
    TRY(cuda_check(rank, api->cuStreamBeginCapture(rank->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "capturing",
                   err));
    for (int k = 0; k < IN_GRAPH && st == LS_OK; k++) {
        st = exchange_launch((cuda_exchange *[]){&b->exchange[i]}, 1, (const ls_op *[]){b->op}, 2, k % 2, &how, err);
    }
    CUresult rc = api->cuStreamEndCapture(rank->stream, &graph);
    TRY(st);
    TRY(cuda_check(rank, rc, "capturing", err));
    rc = api->cuGraphInstantiate(&b->graph[i], graph, 0);
    api->cuGraphDestroy(graph);
    return cuda_check(rank, rc, "making a graph", err);
}

static ls_status launch_graphs(exchange_bench *b, int i, ls_error *err) {
    const cuda_rank *rank = &b->rank[i];
    const cuda_driver *api = rank->driver;
    TRY(cuda_rank_enter(rank, err));
    for (int k = 0; k < 2; k++) { /* the first makes them begin together */
        if (i == 0 && k == 1) {
            TRY(cuda_check(rank, api->cuEventRecord(b->timer->begin, rank->stream), "timing", err));
        }
        TRY(cuda_check(rank, api->cuGraphLaunch(b->graph[i], rank->stream), "exchanging", err));
    }
    return i == 0 ? cuda_check(rank, api->cuEventRecord(b->timer->end, rank->stream), "timing", err) : LS_OK;
}

static ls_status run_graphs(exchange_bench *b, float *ms, ls_error *err) {
    const cuda_rank *rank = b->pair->rank[0];
    TRY(on_both(b, launch_graphs, err));
    TRY(wait_both(b->pair, "exchanging", err));
    TRY(exchange_check(&b->group, b->op, 2, err));
    return cuda_check(rank, rank->driver->cuEventElapsedTime(ms, b->timer->begin, b->timer->end), "timing", err);
}

static ls_status time_exchanges(exchange_bench *b, double *out_us, ls_error *err) {
    double us[PASSES];
    for (int i = 1; i >= 0; i--) {
        TRY(place(b, i, err));
    }
    for (int i = 1; i >= 0; i--) {
        b->rank[i].bind.peer_part[0] = b->part[0];
        b->rank[i].bind.peer_part[1] = b->part[1];
    }
    TRY(on_both(b, capture, err));
    for (int pass = -1; pass < PASSES; pass++) {
        float ms = 0;
        TRY(run_graphs(b, &ms, err));
        us[pass < 0 ? 0 : pass] = (double)ms * 1000 / IN_GRAPH;
    }
    qsort(us, PASSES, sizeof *us, compare_doubles);
    *out_us = us[PASSES / 2];
    return LS_OK;
}

static ls_status join_side(exchange_bench *b, int i, ls_error *err) {
    const cuda_pair *pair = b->pair;
    ls_error why = {0};
    if (cuda_rank_enter(pair->rank[i], &why) != LS_OK) {
        nccl_stay_away(pair->nccl, &why);
        return error_set(err, why.status, "%s", why.text);
    }
    return nccl_join(pair->nccl, &b->id, pair->rank[i], i, 2, err);
}

ls_status cuda_pair_join(cuda_pair *pair, ls_error *err) {
    exchange_bench b = {.pair = pair};
    ls_status st = nccl_open(&pair->nccl, &(nccl_members){.count = 2}, err);
    b.group.nccl = pair->nccl;
    TRY_GOTO(st, fail);
    TRY_GOTO(nccl_new_id(pair->nccl, &b.id, err), fail);
    TRY_GOTO(on_both(&b, join_side, err), fail);
    return cuda_rank_enter(pair->rank[0], err);
fail:
    nccl_close(&pair->nccl);
    return st;
}

ls_status cuda_pair_exchange(const cuda_pair *pair, int bytes, pair_way way, double *out_us, ls_error *err) {
    const cuda_driver *api = pair->rank[0]->driver;
    const bool staged = way == PAIR_HOST;
    const int d = bytes % PAIR_ROW == 0 ? PAIR_ROW / 4 : bytes / 4;
    const size_t pinned_bytes = 4096 + (staged ? 2 * part_bytes + 2 * box_bytes_of(d) : 0);
    exchange_bench b = {.pair = pair,
                        .rows = bytes / 4 / (d > 0 ? d : 1),
                        .d = d,
                        .op = {{.kind = OP_EXCHANGE, .layer = -1, .exchange = {.bias = -1, .slot = 0}},
                               {.kind = OP_EXCHANGE, .layer = -1, .exchange = {.bias = -1, .slot = 1}}}};
    pair_timer t = {NULL, NULL};
    ls_status st = LS_OK;
    void *pinned = NULL;
    if (bytes < 64 || bytes > PAIR_MOST_EXCHANGED || bytes % 64 != 0 ||
        (bytes % PAIR_ROW != 0 && bytes > PAIR_ONE_ROW)) {
        return error_set(err, LS_EINVAL,
                         "an exchange of %d bytes between GPUs: must be a multiple of %d up to %d, or of 64 up to %d",
                         bytes, PAIR_ROW, PAIR_MOST_EXCHANGED, PAIR_ONE_ROW);
    }
    b.timer = &t;
    for (int i = 1; i >= 0; i--) {
        cuda_rank_open_beside(&b.rank[i], pair->rank[i]);
    }
    TRY_GOTO(cuda_rank_enter(pair->rank[0], err), fail);
    TRY_GOTO(
        cuda_check(pair->rank[0],
                   api->cuMemHostAlloc(&pinned, pinned_bytes, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP),
                   "reserving pinned memory", err),
        fail);
    memset(pinned, 0, pinned_bytes);
    b.pinned = pinned;
    b.group.args = (exchange_group_args){.n_ranks = 2, .patience_ns = patience_ns, .layout = exchange_layout_of(d, 1)};
    b.group.stuck = pinned;
    b.group.staged = staged;
    b.group.nccl = way == PAIR_NCCL ? pair->nccl : NULL;
    TRY_GOTO(open_timer(pair->rank[0], &t, err), fail);
    TRY_GOTO(time_exchanges(&b, out_us, err), fail);
fail:
    for (int i = 1; i >= 0 && b.pinned != NULL; i--) {
        if (cuda_rank_enter(pair->rank[i], NULL) == LS_OK && b.graph[i] != NULL) {
            api->cuGraphExecDestroy(b.graph[i]);
        }
    }
    close_timer(pair->rank[0], &t);
    if (pinned != NULL) {
        api->cuMemFreeHost(pinned);
    }
    return st;
}
