/*
 * What an exchange takes: the engine's own, sums included, over parts of any size. Described in lockstep.h.
 *
 * A rank's round begins when its threads call share() and ends when all of them have their part of the sum, so waiting for
 * slower ranks is inside, as it is in a step.
 */
#include <stdlib.h>

#include "base/arena.h"
#include "base/clock.h"
#include "engine/engine.h"

enum { WARM_ROUNDS = 5, MOST_ROUNDS = 1000000 };
static const int64_t MOST_BYTES = (int64_t)1 << 30;

typedef struct exchange_job {
    int n_hosts, n_local; /* processes; ranks of this one */
    int n_rounds;
    int64_t count; /* floats of a part */
    ls_hosts *hosts;
    ls_arena arena;
    rank_group *group;
    ls_exchange *exchange;
    ls_bind bind[LS_MAX_RANKS];
    atomic_int fault[LS_MAX_RANKS];
    const float *local[LS_MAX_RANKS];
    float *node[LS_MAX_RANKS];
    int64_t *ns; /* [n_rounds] of the first rank */
    atomic_bool lost;
} exchange_job;

static void run_rounds(void *arg, int rank, const ls_team *team) {
    exchange_job *job = arg;
    ls_bind *bind = &job->bind[rank];
    const ls_step step = {.n_rows = 1};
    for (int i = -WARM_ROUNDS; i < job->n_rounds; i++) {
        const ls_op op = {.kind = OP_EXCHANGE, .layer = -1, .exchange = {.init = true, .bias = -1, .slot = i & 1}};
        int64_t start_ns = clock_ns();
        if (!job->exchange->share(job->exchange, bind, i & 1, 1)) {
            atomic_store(&job->lost, true);
            return;
        }
        cpu_ref_ops.fn[OP_EXCHANGE](&op, 0, bind, &step, team);
        if (!team_wait(team)) {
            atomic_store(&job->lost, true);
            return;
        }
        if (i >= 0 && rank == 0 && team->thread == 0) {
            job->ns[i] = clock_ns() - start_ns;
        }
    }
}

/* Each rank: two slots of its part and the sum. Each host, where there are several: two slots of its node. */
static ls_status place(exchange_job *job, ls_error *err) {
    const size_t row = arena_round((size_t)job->count * sizeof(float)), slots = arena_round(2 * row);
    const size_t n_nodes = job->n_hosts > 1 ? (size_t)job->n_hosts : 0;
    TRY(arena_init(&job->arena, (size_t)job->n_local * (slots + row) + n_nodes * slots, err));
    for (int r = 0; r < job->n_local; r++) {
        ls_bind *bind = &job->bind[r];
        *bind = (ls_bind){.group = {r, job->n_local}, .d_model = (int)job->count, .m_max = 1, .isa = cpu_isa_best()};
        bind->fault = &job->fault[r];
        TRY(arena_take(&job->arena, 0, slots, &bind->buf[BUF_PART], err));
        TRY(arena_take(&job->arena, 0, row, &bind->buf[BUF_H], err));
        memset(bind->buf[BUF_PART], 0, slots);
        memset(bind->buf[BUF_H], 0, row);
        job->local[r] = bind->buf[BUF_PART];
    }
    for (size_t h = 0; h < n_nodes; h++) {
        TRY(arena_take(&job->arena, 0, slots, &job->node[h], err));
        memset(job->node[h], 0, slots);
    }
    if (n_nodes > 0 && job->n_local == 1) { /* our node is our only rank's */
        job->node[ls_hosts_self(job->hosts)] = job->bind[0].buf[BUF_PART];
    }
    for (int r = 0; r < job->n_local; r++) {
        job->bind[r].n_parts = n_nodes > 0 ? job->n_hosts : job->n_local;
        for (int i = 0; i < job->bind[r].n_parts; i++) {
            job->bind[r].peer_part[i] = n_nodes > 0 ? job->node[i] : job->local[i];
        }
    }
    return LS_OK;
}

static int compare_ns(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static ls_status measure(exchange_job *job, int n_threads, ls_exchange_speed *speed, ls_error *err) {
    TRY(place(job, err));
    job->ns = calloc((size_t)job->n_rounds, sizeof *job->ns);
    if (job->ns == NULL) {
        return error_set(err, LS_ENOMEM, "exchange: out of memory");
    }
    TRY(rank_group_create(&job->group, job->n_local, n_threads, err));
    TRY(job->n_hosts > 1 ? exchange_hosts_create(&job->exchange, job->hosts, job->group, job->local, job->node, err)
                         : exchange_threads_create(&job->exchange, job->group, err));
    rank_group_run(job->group, run_rounds, job);
    if (atomic_load(&job->lost)) {
        return hosts_lost(job->hosts) ? hosts_why(job->hosts, err)
                                      : error_set(err, LS_EABORTED, "exchange: another rank gave up");
    }
    qsort(job->ns, (size_t)job->n_rounds, sizeof *job->ns, compare_ns);
    speed->transport = job->exchange->name;
    speed->n_threads = n_threads;
    const int middle = job->n_rounds / 2;
    speed->median_us = (double)job->ns[middle] / 1000;
    speed->min_us = (double)job->ns[0] / 1000;
    speed->max_us = (double)job->ns[job->n_rounds - 1] / 1000;
    return LS_OK;
}

static ls_status check(const ls_exchange_params *p, int n_hosts, ls_error *err) {
    if (p->n_ranks != 2 && p->n_ranks != 4 && p->n_ranks != 8) {
        return error_set(err, LS_EINVAL, "an exchange of %d ranks: must be 2, 4 or 8", p->n_ranks);
    }
    if (p->n_ranks % n_hosts != 0) {
        return error_set(err, LS_EINVAL, "%d ranks cannot be spread over %d hosts", p->n_ranks, n_hosts);
    }
    if (p->bytes < 64 || p->bytes > MOST_BYTES) {
        return error_set(err, LS_EINVAL, "an exchange of %lld bytes: must be from 64 to %lld", (long long)p->bytes,
                         (long long)MOST_BYTES);
    }
    if (p->n_rounds < 1 || p->n_rounds > MOST_ROUNDS || p->threads < 0 || p->threads > 1024) {
        return error_set(err, LS_EINVAL, "exchange: n_rounds must be from 1 to %d, threads from 0 to 1024",
                         MOST_ROUNDS);
    }
    device_choice choice;
    TRY(device_choice_read(&choice, p->device != NULL ? p->device : "cpu", err));
    return choice.may_be_cpu
               ? LS_OK
               : error_set(err, LS_EUNSUPPORTED, "--device %s: this build measures exchanges of ranks on the CPU alone",
                           p->device);
}

ls_status ls_exchange_measure(const ls_exchange_params *params, ls_exchange_speed *out, ls_error *err) {
    TRY(check_struct_size("ls_exchange_params", params->struct_size, sizeof *params, err));
    TRY(check_struct_size("ls_exchange_speed", out->struct_size, SIZE_MAX, err));
    ls_exchange_params p = {0};
    memcpy(&p, params, params->struct_size);
    const int n_hosts = hosts_count(p.hosts);
    TRY(check(&p, n_hosts, err));
    exchange_job job = {.n_hosts = n_hosts,
                        .n_local = p.n_ranks / n_hosts,
                        .n_rounds = p.n_rounds,
                        .count = p.bytes / 64 * 16,
                        .hosts = p.hosts};
    ls_exchange_speed speed = {.struct_size = out->struct_size};
    const int all = core_count() / job.n_local;
    ls_status st = measure(&job, p.threads > 0 ? p.threads : all > 0 ? all : 1, &speed, err);
    if (job.exchange != NULL) {
        job.exchange->destroy(job.exchange);
    }
    rank_group_destroy(&job.group);
    arena_deinit(&job.arena);
    free(job.ns);
    TRY(st);
    memcpy(out, &speed, out->struct_size < sizeof speed ? out->struct_size : sizeof speed);
    return LS_OK;
}
