/*
 * The exchange's kernels, run on the CPU by emulate.cpp: ranks of one launch as blocks, in several orders.
 *
 *   rows     the same bits as decode_exchange on one rank with the same nodes, for 2, 4 and 8 ranks, any number of rows, with
 *            and without bias, norm and residual; again and again in the same memory, as graphs are replayed
 *   slices   the same of more rows, by their owners: the same bits in f32 and f16, bf16 within its own rounding; every rank
 *            gets the same x
 *   offers   the best of all, the lower id at a tie, on every rank; rows that the host draws are left alone
 *   meeting  comes to an end as often as it is launched
 *   a rank that never sends is named by the others, within the time they are given
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/kern/exchange_args.h"

const void *decode_emulate_kernel(const char *name);
void decode_emulate_launch(const void *kernel, const unsigned grid[3], unsigned block, unsigned shared_bytes,
                           const void *args, bool backwards);
const void *exchange_emulate_kernel(const char *name, size_t *arg_bytes);
void exchange_emulate_launch(const void *kernel, const unsigned grid[2], unsigned threads, unsigned shared_bytes,
                             const void *args, unsigned seed);

enum { MAX_D = 520, ROWS = 40, WORD_ROWS = EXCHANGE_ROWS, N_OUT = 24, RUNS = 5, SLICES = 3 };

static int n_passed, n_failed;

static void count(bool good, const char *what) {
    n_passed += good;
    n_failed += !good;
    if (!good) {
        printf("FAILED %s\n", what);
    }
}

static uint32_t random_state = 7;

static float next_float(void) {
    random_state = random_state * 1664525 + 1013904223;
    return (float)(int32_t)random_state * 0x1p-31F;
}

/* One rank's memory. */
typedef struct rank_of_check {
    _Alignas(16) float part[8 * ROWS * MAX_D];
    float h[ROWS * MAX_D], x[ROWS * MAX_D];
    int32_t fault[ROWS], drawn[N_OUT];
    uint32_t epochs[EXCHANGE_ROWS + N_OUT + 1];
    decode_sample_part offer[N_OUT * SLICES];
    char *box;
} rank_of_check;

typedef struct group_of_check {
    int n_ranks, d;
    exchange_group_args args;
    uint64_t stuck[EXCHANGE_RANKS];
    rank_of_check *rank[EXCHANGE_RANKS];
    struct {
        cuda_step head;
        int32_t out_row[N_OUT];
        _Alignas(8) cuda_draw draw[N_OUT];
    } step;
    float bias[MAX_D], norm[MAX_D];
} group_of_check;

static group_of_check *open_group(int n_ranks, int d) {
    group_of_check *g = calloc(1, sizeof *g);
    g->n_ranks = n_ranks;
    g->d = d;
    g->args.n_ranks = n_ranks;
    g->args.layout = exchange_layout_of(d, N_OUT);
    g->args.patience_ns = 4000000;
    for (int r = 0; r < n_ranks; r++) {
        g->rank[r] = aligned_alloc(64, (sizeof **g->rank + 63) / 64 * 64);
        memset(g->rank[r], 0, sizeof **g->rank);
        const size_t bytes = (size_t)(g->args.layout.bytes + 63) / 64 * 64;
        g->args.box[r] = g->rank[r]->box = aligned_alloc(64, bytes);
        memset(g->rank[r]->box, 0, bytes);
    }
    for (int i = 0; i < d; i++) {
        g->bias[i] = next_float();
        g->norm[i] = 1 + next_float();
    }
    g->step.head.out_row = (char *)g->step.out_row - (char *)&g->step;
    g->step.head.draw = (char *)g->step.draw - (char *)&g->step;
    return g;
}

static void close_group(group_of_check *g) {
    for (int r = 0; r < g->n_ranks; r++) {
        free(g->rank[r]->box);
        free(g->rank[r]);
    }
    free(g);
}

static exchange_self self_of(group_of_check *g, int r) {
    return (exchange_self){
        .step = &g->step.head, .epochs = g->rank[r]->epochs, .stuck = &g->stuck[r], .rank = r, .op_index = 5};
}

static void launch(const char *name, unsigned x, unsigned n, unsigned threads, unsigned shared, const void *args,
                   unsigned seed) {
    size_t bytes;
    exchange_emulate_launch(exchange_emulate_kernel(name, &bytes), (unsigned[]){x, n}, threads, shared, args, seed);
}

/* ---- Rows ---- */

typedef struct variant {
    int n_ranks, d, n_nodes, n_rows, dtype;
    bool init, bias, norm, out_rows;
} variant;

static unsigned threads_of(int d) {
    const int items = d % 4 == 0 ? d / 4 : d;
    return (unsigned)(items + 31) / 32 * 32;
}

static void run_ranks(group_of_check *g, const variant *v, int n_here, unsigned seed) {
    exchange_rows_args args = {.group = g->args,
                               .node_stride = (int64_t)ROWS * g->d,
                               .n_nodes = v->n_nodes,
                               .init = v->init,
                               .d = g->d,
                               .dtype = v->dtype,
                               .out_rows = v->out_rows,
                               .eps = 1e-6F};
    for (int r = 0; r < n_here; r++) {
        rank_of_check *rank = g->rank[r];
        args.member[r] = (exchange_member){.self = self_of(g, r),
                                           .part = rank->part,
                                           .bias = v->bias ? g->bias : NULL,
                                           .h = rank->h,
                                           .norm = v->norm ? g->norm : NULL,
                                           .x = rank->x,
                                           .fault = rank->fault};
    }
    const unsigned bucket = v->n_rows > 1 ? WORD_ROWS : 1;
    launch("exchange_rows", bucket, (unsigned)n_here, threads_of(g->d), ((unsigned)g->d + 36) * 4, &args, seed);
}

/* One rank with all the nodes. */
static void run_alone(group_of_check *g, const variant *v, unsigned seed, float *h, float *x, int32_t *fault) {
    decode_exchange_args args = {.step = &g->step.head,
                                 .n_nodes = v->n_nodes * v->n_ranks,
                                 .init = v->init,
                                 .d = g->d,
                                 .dtype = v->dtype,
                                 .bias = v->bias ? g->bias : NULL,
                                 .h = h,
                                 .fault = fault,
                                 .norm = v->norm ? g->norm : NULL,
                                 .x = x,
                                 .eps = 1e-6F,
                                 .out_rows = v->out_rows,
                                 .op_index = 5};
    for (int i = 0; i < args.n_nodes; i++) {
        args.node[i] = g->rank[i / v->n_nodes]->part + (int64_t)(i % v->n_nodes) * ROWS * g->d;
    }
    const bool slim = g->d % 4 == 0 && seed % 2 == 1; /* in two turns */
    const char *name = slim ? "decode_exchange_slim" : "decode_exchange";
    const unsigned threads = threads_of(g->d), fewer = (threads / 32 + 1) / 2 * 32;
    decode_emulate_launch(decode_emulate_kernel(name), (unsigned[]){ROWS, 1, 1}, slim ? fewer : threads,
                          (unsigned)g->d * 4, &args, false);
}

static void check_rows(group_of_check *g, const variant *v, unsigned seed) {
    static float h[ROWS * MAX_D], x[ROWS * MAX_D];
    int32_t fault[ROWS] = {0};
    char what[160];
    const size_t bytes = (size_t)(v->n_rows * g->d) * sizeof(float);
    g->step.head.n_rows = v->n_rows;
    g->step.head.n_out = v->n_rows / 2;
    for (int i = 0; i < g->step.head.n_out; i++) {
        g->step.out_row[i] = 2 * i + 1;
    }
    for (int i = 0; i < ROWS * g->d; i++) {
        h[i] = next_float();
    }
    memset(x, 0, sizeof x);
    for (int r = 0; r < g->n_ranks; r++) {
        memcpy(g->rank[r]->h, h, sizeof h);
        memset(g->rank[r]->x, 0, sizeof g->rank[r]->x);
        memset(g->rank[r]->fault, 0, sizeof g->rank[r]->fault);
        for (int i = 0; i < 8 * ROWS * g->d; i++) {
            g->rank[r]->part[i] = next_float();
        }
    }
    if (v->n_rows > 2) {
        g->rank[g->n_ranks - 1]->part[2 * g->d + 7] = INFINITY;
    }
    run_ranks(g, v, g->n_ranks, seed);
    run_alone(g, v, seed, h, x, fault);
    snprintf(what, sizeof what,
             "rows: %d ranks of %d nodes, d %d, %d rows, dtype %d, init %d bias %d norm %d out %d seed %u", v->n_ranks,
             v->n_nodes, v->d, v->n_rows, v->dtype, v->init, v->bias, v->norm, v->out_rows, seed);
    bool same = fault[2] == (v->n_rows > 2 ? 6 : 0);
    for (int r = 0; r < g->n_ranks; r++) {
        const rank_of_check *rank = g->rank[r];
        same = same && memcmp(rank->h, h, bytes) == 0 && memcmp(rank->x, x, sizeof x) == 0 &&
               memcmp(rank->fault, fault, sizeof fault) == 0 && g->stuck[r] == 0;
    }
    count(same, what);
}

static void check_all_rows(void) {
    static const int widths[] = {64, 97, 520};
    for (int n_ranks = 2; n_ranks <= 8; n_ranks *= 2) {
        for (int w = 0; w < 3; w++) {
            group_of_check *g = open_group(n_ranks, widths[w]);
            for (int n_nodes = 1; n_nodes * n_ranks <= 8; n_nodes *= 2) {
                for (unsigned run = 0; run < RUNS; run++) {
                    const variant v = {n_ranks,          widths[w], n_nodes,      run == 0 ? 16 : (int)run * 3 - 2,
                                       1 + (int)run % 3, run == 1,  run % 2 == 0, run != 3,
                                       run == 4};
                    check_rows(g, &v, run);
                }
            }
            close_group(g);
        }
    }
}

/* ---- Slices ---- */

static void run_slices(group_of_check *g, const variant *v, unsigned seed) {
    exchange_slice_args args = {.node_stride = (int64_t)ROWS * g->d,
                                .n_ranks = g->n_ranks,
                                .n_nodes = v->n_nodes,
                                .init = v->init,
                                .d = g->d,
                                .dtype = v->dtype,
                                .out_rows = v->out_rows,
                                .eps = 1e-6F};
    exchange_meet_args meet = {.group = g->args};
    for (int r = 0; r < g->n_ranks; r++) {
        rank_of_check *rank = g->rank[r];
        args.inbox[r] = rank->part + (int64_t)EXCHANGE_INBOX * ROWS * g->d;
        args.x[r] = rank->x;
        args.member[r] = (exchange_slice){.self = self_of(g, r),
                                          .part = rank->part,
                                          .inbox = args.inbox[r],
                                          .bias = v->bias ? g->bias : NULL,
                                          .h = rank->h,
                                          .norm = v->norm ? g->norm : NULL,
                                          .fault = rank->fault};
        meet.member[r] = self_of(g, r);
    }
    const unsigned n = (unsigned)g->n_ranks, threads = threads_of(g->d);
    launch("exchange_push", ROWS, n, threads, 0, &args, seed);
    launch("exchange_meet", 1, n, 32, 0, &meet, seed);
    launch("exchange_take", (ROWS + n - 1) / n, n, threads, ((unsigned)g->d + 36) * 4, &args, seed);
    launch("exchange_meet", 1, n, 32, 0, &meet, seed);
}

/* The largest difference of two rows, over their largest element. */
static float row_error(const float *a, const float *b, int n) {
    float worst = 0, largest = 1e-9F;
    for (int i = 0; i < n; i++) {
        const float error = fabsf(a[i] - b[i]);
        worst = error <= worst ? worst : error;
        largest = fmaxf(largest, fabsf(b[i]));
    }
    return worst / largest;
}

static void fill_slices(group_of_check *g, const variant *v, float *h) {
    g->step.head.n_rows = v->n_rows;
    g->step.head.n_out = v->n_rows / 2;
    for (int i = 0; i < g->step.head.n_out; i++) {
        g->step.out_row[i] = 2 * i + 1;
    }
    for (int i = 0; i < ROWS * g->d; i++) {
        h[i] = next_float();
    }
    for (int r = 0; r < g->n_ranks; r++) {
        memcpy(g->rank[r]->h, h, sizeof(float) * (size_t)(ROWS * g->d));
        memset(g->rank[r]->x, 0, sizeof g->rank[r]->x);
        memset(g->rank[r]->fault, 0, sizeof g->rank[r]->fault);
        for (int i = 0; i < EXCHANGE_INBOX * ROWS * g->d; i++) {
            g->rank[r]->part[i] = next_float();
        }
    }
    g->rank[g->n_ranks - 1]->part[2 * g->d + 7] = INFINITY;
}

static void check_slices(group_of_check *g, const variant *v, unsigned seed) {
    static float h[ROWS * MAX_D], x[ROWS * MAX_D];
    int32_t fault[ROWS] = {0}, first_fault = 0;
    char what[200];
    fill_slices(g, v, h);
    memset(x, 0, sizeof x);
    run_slices(g, v, seed);
    run_alone(g, v, 0, h, x, fault);
    const bool exact = v->dtype != KERN_BF16;
    const int n = (v->n_rows + g->n_ranks - 1) / g->n_ranks;
    const float most = exact ? 0 : 0x1p-7F;
    bool good = true;
    for (int m = 0; m < v->n_rows; m++) {
        const rank_of_check *owner = g->rank[m / n];
        const float *row = h + m * g->d;
        good = good && (m == 2 || row_error(owner->h + m * g->d, row, g->d) <= most);
        good = good && owner->fault[m] == fault[m];
        first_fault |= fault[m];
    }
    for (int r = 0; r < g->n_ranks; r++) {
        good = good && memcmp(g->rank[r]->x, g->rank[0]->x, sizeof x) == 0 && g->stuck[r] == 0;
    }
    good = good && first_fault == 6 && (!exact || memcmp(g->rank[0]->x, x, sizeof x) == 0);
    snprintf(what, sizeof what,
             "slices: %d ranks of %d nodes, d %d, %d rows, dtype %d, init %d bias %d norm %d out %d seed %u",
             v->n_ranks, v->n_nodes, v->d, v->n_rows, v->dtype, v->init, v->bias, v->norm, v->out_rows, seed);
    count(good, what);
}

static void check_all_slices(void) {
    static const int widths[] = {64, 97, 520}, rows[RUNS] = {ROWS, 17, 33, 25, 39};
    for (int n_ranks = 2; n_ranks <= 8; n_ranks *= 2) {
        for (int w = 0; w < 3; w++) {
            group_of_check *g = open_group(n_ranks, widths[w]);
            for (int n_nodes = 1; n_nodes * n_ranks <= 8; n_nodes *= 2) {
                for (unsigned run = 0; run < RUNS; run++) {
                    const variant v = {n_ranks,  widths[w],    n_nodes,  rows[run], 1 + (int)run % 3,
                                       run == 1, run % 2 == 0, run != 3, run == 4};
                    check_slices(g, &v, run);
                }
            }
            close_group(g);
        }
    }
}

/* ---- Offers ---- */

static void check_offers(int n_ranks) {
    group_of_check *g = open_group(n_ranks, 64);
    for (unsigned run = 0; run < RUNS; run++) {
        exchange_offers_args args = {.group = g->args};
        const int n_out = run == 0 ? N_OUT : (int)run * 4 - 3;
        g->step.head.n_out = n_out;
        for (int row = 0; row < n_out; row++) {
            g->step.draw[row].on_host = row % 5 == 3;
        }
        for (int r = 0; r < n_ranks; r++) {
            for (int i = 0; i < n_out * SLICES; i++) {
                g->rank[r]->offer[i] = (decode_sample_part){.value = (double)(int)(next_float() * 4), .id = i % SLICES};
                if (run == 2 || (r > 0 && i % 7 == 0)) {
                    g->rank[r]->offer[i].id = -1;
                }
            }
            memset(g->rank[r]->drawn, 0x55, sizeof g->rank[r]->drawn);
            args.member[r] = (exchange_offers_member){.self = self_of(g, r),
                                                      .part = g->rank[r]->offer,
                                                      .drawn = g->rank[r]->drawn,
                                                      .n_slices = SLICES,
                                                      .vocab_first = 100 * r};
        }
        launch("exchange_offers", 2, (unsigned)n_ranks, 64, 0, &args, run);
        for (int row = 0; row < n_out; row++) {
            double best = -INFINITY;
            int32_t id = -1;
            for (int r = 0; r < n_ranks; r++) {
                for (int i = row * SLICES; i < (row + 1) * SLICES; i++) {
                    const decode_sample_part *offer = &g->rank[r]->offer[i];
                    if (offer->id >= 0 && (id < 0 || offer->value > best)) {
                        best = offer->value;
                        id = 100 * r + offer->id;
                    }
                }
            }
            for (int r = 0; r < n_ranks; r++) {
                const int32_t wanted = row % 5 == 3 ? 0x55555555 : id, got = g->rank[r]->drawn[row];
                char what[120];
                snprintf(what, sizeof what, "offers: rank %d of %d drew %d for row %d of %d, not %d", r, n_ranks, got,
                         row, n_out, wanted);
                count(got == wanted, what);
            }
        }
    }
    close_group(g);
}

/* ---- Meeting; ranks that stay away ---- */

static void check_meeting(int n_ranks) {
    group_of_check *g = open_group(n_ranks, 64);
    exchange_meet_args args = {.group = g->args};
    for (int r = 0; r < n_ranks; r++) {
        args.member[r] = self_of(g, r);
        g->rank[r]->epochs[EXCHANGE_ROWS + N_OUT] = UINT32_MAX - 1; /* the count goes round */
        for (int other = 0; other < n_ranks; other++) {
            ((uint32_t *)(g->rank[r]->box + g->args.layout.met))[other] = UINT32_MAX - 1;
        }
    }
    for (unsigned run = 0; run < RUNS; run++) {
        launch("exchange_meet", 1, (unsigned)n_ranks, 32, 0, &args, run);
        for (int r = 0; r < n_ranks; r++) {
            count(g->rank[r]->epochs[EXCHANGE_ROWS + N_OUT] == run + UINT32_MAX && g->stuck[r] == 0, "meeting");
        }
    }
    close_group(g);
}

static void check_absence(int n_ranks) {
    const variant v = {n_ranks, 64, 1, 3, KERN_F32, false, false, true, false};
    group_of_check *g = open_group(n_ranks, 64);
    int n_told = 0;
    g->step.head.n_rows = v.n_rows;
    run_ranks(g, &v, n_ranks - 1, 0); /* the last one never comes */
    for (int r = 0; r < n_ranks - 1; r++) {
        const uint64_t wanted =
            (uint64_t)EXCHANGE_STUCK_ROWS << EXCHANGE_STUCK_KIND | (uint64_t)(n_ranks - 1) << EXCHANGE_STUCK_FROM | 5;
        n_told += g->stuck[r] == wanted;
        count(g->stuck[r] == wanted || g->stuck[r] == 0, "who is missing");
        count(*(uint32_t *)(g->rank[r]->box + g->args.layout.abort) == 1, "all are told to give up");
    }
    count(n_told > 0, "somebody tells who is missing");
    run_ranks(g, &v, n_ranks - 1, 1); /* comes to its end at once */
    close_group(g);
}

int main(void) {
    check_all_rows();
    check_all_slices();
    for (int n_ranks = 2; n_ranks <= 8; n_ranks *= 2) {
        check_offers(n_ranks);
        check_meeting(n_ranks);
        check_absence(n_ranks);
    }
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0;
}
