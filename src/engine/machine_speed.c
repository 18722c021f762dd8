/*
 * What this machine's cores and memory can do, measured with the inner loops that an engine uses. Described in lockstep.h.
 *
 * Every figure comes from several passes, of which the best and the median are told: others may be using the machine.
 */
#include <stdlib.h>
#include <unistd.h>

#include "backend/cpu/measure.h"
#include "base/arena.h"
#include "base/clock.h"
#include "base/machine.h"
#include "engine/engine.h"

enum { MOST_PASSES = 7, FEWEST_PASSES = 3 };

typedef struct speed_job {
    const cpu_isa *isa;
    uint8_t *buffer;
    int64_t bytes;    /* of the buffer */
    int64_t n_rounds; /* of multiply-adds */
    int n_threads;    /* that work; the others look on */
    _Atomic int64_t flops;
    _Atomic uint64_t sink; /* keeps the work from being dropped */
} speed_job;

/* This thread's part of n bytes, or false if it looks on. */
static bool my_part(const speed_job *job, const ls_team *team, int64_t n, int64_t *first, int64_t *last) {
    const ls_team working = {team->thread, job->n_threads, NULL};
    if (team->thread >= job->n_threads) {
        return false;
    }
    team_range(&working, n, 4096, first, last);
    return true;
}

static void fill(void *arg, int rank, const ls_team *team) {
    (void)rank;
    speed_job *job = arg;
    int64_t first, last;
    if (my_part(job, team, job->bytes, &first, &last)) {
        memset(job->buffer + first, team->thread + 1, (size_t)(last - first));
    }
}

static void read_memory(void *arg, int rank, const ls_team *team) {
    (void)rank;
    speed_job *job = arg;
    int64_t first, last;
    if (my_part(job, team, job->bytes, &first, &last)) {
        atomic_fetch_add(&job->sink, job->isa->read(job->buffer + first, (size_t)(last - first)));
    }
}

static void copy_memory(void *arg, int rank, const ls_team *team) {
    (void)rank;
    speed_job *job = arg;
    int64_t first, last;
    if (my_part(job, team, job->bytes / 2, &first, &last)) {
        memcpy(job->buffer + job->bytes / 2 + first, job->buffer + first, (size_t)(last - first));
    }
}

static void multiply_add(void *arg, int rank, const ls_team *team) {
    (void)rank;
    speed_job *job = arg;
    float sink = 0.0F;
    if (team->thread < job->n_threads) {
        atomic_fetch_add(&job->flops, job->n_rounds * cpu_multiply_add(job->isa, job->n_rounds, &sink));
        atomic_fetch_add(&job->sink, f32_bits(sink));
    }
}

static int64_t time_job(rank_group *group, rank_job run, speed_job *job) {
    int64_t start = clock_ns();
    rank_group_run(group, run, job);
    return clock_ns() - start;
}

static int compare_ns(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Units a second, best and median, of a job that does `units` a pass. Stops early on a slow machine. */
static ls_rate measure(rank_group *group, rank_job run, speed_job *job, int n_threads, double units) {
    const int64_t enough_ns = 250 * 1000 * 1000, too_long_ns = 4 * enough_ns;
    int64_t ns[MOST_PASSES], sum = 0;
    int n = 0;
    job->n_threads = n_threads;
    while (n < MOST_PASSES && sum < (n < FEWEST_PASSES ? too_long_ns : enough_ns)) {
        ns[n] = time_job(group, run, job);
        sum += ns[n++];
    }
    qsort(ns, (size_t)n, sizeof *ns, compare_ns);
    const int64_t best = ns[0], median = ns[n / 2];
    return (ls_rate){units * 1e9 / (double)best, units * 1e9 / (double)median};
}

static ls_rate measure_flops(rank_group *group, speed_job *job, int n_threads) {
    const int64_t long_enough_ns = 20 * 1000 * 1000;
    job->n_threads = n_threads;
    job->n_rounds = 1 << 12;
    for (int64_t ns = 0; ns < long_enough_ns && job->n_rounds < (int64_t)1 << 40; job->n_rounds *= 2) {
        ns = time_job(group, multiply_add, job);
    }
    atomic_store(&job->flops, 0);
    rank_group_run(group, multiply_add, job);
    return measure(group, multiply_add, job, n_threads, (double)atomic_load(&job->flops));
}

/* Twice the largest cache, from 64 MiB to 1 GiB, but at most a quarter of the memory that is free. */
static int64_t buffer_size(void) {
    const int64_t mib = 1 << 20;
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    machine_memory memory;
    machine_read_memory("/", &memory);
    int64_t bytes = 2 * (int64_t)(cache > 0 ? cache : 0);
    bytes = bytes < 256 * mib ? 256 * mib : bytes;
    bytes = bytes > 1024 * mib ? 1024 * mib : bytes;
    bytes = memory.available_bytes > 0 && bytes > memory.available_bytes / 4 ? memory.available_bytes / 4 : bytes;
    return (bytes < 64 * mib ? 64 * mib : bytes) / mib * mib;
}

static ls_status measure_all(ls_machine_speed *speed, rank_group *group, speed_job *job, ls_error *err) {
    ls_arena arena = {0};
    const int all = speed->n_threads;
    TRY(arena_init(&arena, (size_t)speed->buffer_bytes, err));
    arena_large_pages(&arena, arena.bytes);
    job->buffer = arena.base;
    job->bytes = speed->buffer_bytes;
    job->n_threads = all;
    const double bytes = (double)job->bytes;
    rank_group_run(group, fill, job);
    speed->read_one = measure(group, read_memory, job, 1, bytes);
    speed->read_all = measure(group, read_memory, job, all, bytes);
    speed->copy_one = measure(group, copy_memory, job, 1, bytes); /* half of it read, half of it written */
    speed->copy_all = measure(group, copy_memory, job, all, bytes);
    speed->flops_one = measure_flops(group, job, 1);
    speed->flops_all = measure_flops(group, job, all);
    arena_deinit(&arena);
    return LS_OK;
}

ls_status ls_machine_measure(int n_threads, const char *isa, ls_machine_speed *out, ls_error *err) {
    TRY(check_struct_size("ls_machine_speed", out->struct_size, SIZE_MAX, err));
    speed_job job = {.isa = isa == NULL ? cpu_isa_best() : cpu_isa_find(isa)};
    if (job.isa == NULL) {
        return error_set(err, LS_EINVAL, "--cpu-isa %s: unknown, or this processor lacks it", isa);
    }
    if (n_threads < 0 || n_threads > 1024) {
        return error_set(err, LS_EINVAL, "--threads %d: must be from 1 to 1024", n_threads);
    }
    ls_machine_speed speed = {.struct_size = out->struct_size,
                              .n_threads = n_threads > 0 ? n_threads : core_count(),
                              .isa = job.isa->name,
                              .buffer_bytes = buffer_size()};
    rank_group *group = NULL;
    TRY(rank_group_create(&group, 1, speed.n_threads, err));
    ls_status st = measure_all(&speed, group, &job, err);
    rank_group_destroy(&group);
    TRY(st);
    memcpy(out, &speed, out->struct_size < sizeof speed ? out->struct_size : sizeof speed);
    return LS_OK;
}
