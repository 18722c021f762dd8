/*
 * See rank.h. A job is published by raising `job_epoch` (a futex word); the last thread to finish it raises `done_epoch`.
 * Both are read with acquire order, so what the caller wrote before is visible to the job, and what the job wrote is
 * visible to the caller after.
 */
#include "rank/rank.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct rank_thread {
    rank_group *group;
    pthread_t id;
    int rank;
    ls_team team;
} rank_thread;

struct rank_group {
    int n_ranks, threads_per_rank, n_started;
    rank_job job; /* NULL: end */
    void *arg;
    atomic_uint job_epoch, done_epoch, n_done;
    ls_barrier all;
    ls_barrier team[LS_MAX_RANKS];
    rank_thread thread[];
};

static void *thread_main(void *arg) {
    rank_thread *self = arg;
    rank_group *group = self->group;
    unsigned seen = 0;
    for (;;) {
        while (atomic_load_explicit(&group->job_epoch, memory_order_acquire) == seen) {
            futex_wait(&group->job_epoch, seen);
        }
        seen++;
        if (group->job == NULL) {
            return NULL;
        }
        group->job(group->arg, self->rank, &self->team);
        unsigned n_threads = (unsigned)(group->n_ranks * group->threads_per_rank);
        if (atomic_fetch_add_explicit(&group->n_done, 1, memory_order_acq_rel) + 1 == n_threads) {
            atomic_fetch_add_explicit(&group->done_epoch, 1, memory_order_release);
            futex_wake_all(&group->done_epoch);
        }
    }
}

static void publish(rank_group *group, rank_job job, void *arg) {
    group->job = job;
    group->arg = arg;
    atomic_store_explicit(&group->n_done, 0, memory_order_relaxed);
    atomic_fetch_add_explicit(&group->job_epoch, 1, memory_order_release);
    futex_wake_all(&group->job_epoch);
}

void rank_group_run(rank_group *group, rank_job job, void *arg) {
    unsigned before = atomic_load_explicit(&group->done_epoch, memory_order_relaxed);
    publish(group, job, arg);
    while (atomic_load_explicit(&group->done_epoch, memory_order_acquire) == before) {
        futex_wait(&group->done_epoch, before);
    }
}

ls_status rank_group_create(rank_group **out, int n_ranks, int threads_per_rank, ls_error *err) {
    int n_threads = n_ranks * threads_per_rank;
    /* Barriers keep their words on cache lines of their own, so the group has their alignment, which calloc lacks. */
    size_t bytes = sizeof(rank_group) + (size_t)n_threads * sizeof(rank_thread);
    bytes = (bytes + _Alignof(rank_group) - 1) / _Alignof(rank_group) * _Alignof(rank_group);
    rank_group *group = aligned_alloc(_Alignof(rank_group), bytes);
    if (group == NULL) {
        return error_set(err, LS_ENOMEM, "rank group: out of memory");
    }
    memset(group, 0, bytes);
    group->n_ranks = n_ranks;
    group->threads_per_rank = threads_per_rank;
    barrier_init(&group->all, n_threads, n_threads);
    for (int r = 0; r < n_ranks; r++) {
        barrier_init(&group->team[r], threads_per_rank, n_threads);
    }
    for (int i = 0; i < n_threads; i++) {
        rank_thread *thread = &group->thread[i];
        thread->group = group;
        thread->rank = i / threads_per_rank;
        thread->team = (ls_team){i % threads_per_rank, threads_per_rank, &group->team[thread->rank]};
        int rc = thread_start(&thread->id, thread_main, thread);
        if (rc != 0) {
            rank_group_destroy(&group);
            return error_set(err, LS_ENOMEM, "cannot start thread %d of %d: %s", i + 1, n_threads, strerror(rc));
        }
        group->n_started++;
    }
    *out = group;
    return LS_OK;
}

void rank_group_destroy(rank_group **group) {
    if (*group == NULL) {
        return;
    }
    publish(*group, NULL, NULL);
    for (int i = 0; i < (*group)->n_started; i++) {
        pthread_join((*group)->thread[i].id, NULL);
    }
    free(*group);
    *group = NULL;
}

int rank_group_size(const rank_group *group) {
    return group->n_ranks;
}

int rank_group_threads(const rank_group *group) {
    return group->threads_per_rank;
}

ls_barrier *rank_group_barrier(rank_group *group) {
    return &group->all;
}
