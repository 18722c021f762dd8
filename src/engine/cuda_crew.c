/*
 * A thread for each GPU of the ranks but the first, whose is the caller: what must happen on all of them happens side by side.
 * See cuda_engine.h. A job is published by raising `given`, and over when `left` is 0; both are futex words.
 */
#include <stdlib.h>

#include "engine/cuda_engine.h"

typedef struct crew_member {
    cuda_crew *crew;
    cuda_engine *leader;
    pthread_t thread;
    ls_error error; /* of the last job */
} crew_member;

struct cuda_crew {
    cuda_job job; /* NULL: end */
    void *arg;
    atomic_uint given, left;
    int n;
    crew_member member[LS_MAX_RANKS];
};

static void *member_main(void *arg) {
    crew_member *self = arg;
    cuda_crew *crew = self->crew;
    for (unsigned seen = 0;; seen++) {
        while (atomic_load_explicit(&crew->given, memory_order_acquire) == seen) {
            futex_wait(&crew->given, seen);
        }
        if (crew->job == NULL) {
            return NULL;
        }
        self->error.status = LS_OK;
        self->error.status = crew->job(self->leader, crew->arg, &self->error);
        if (atomic_fetch_sub_explicit(&crew->left, 1, memory_order_acq_rel) == 1) {
            futex_wake_all(&crew->left);
        }
    }
}

static void publish(cuda_crew *crew, cuda_job job, void *arg) {
    crew->job = job;
    crew->arg = arg;
    atomic_store_explicit(&crew->left, (unsigned)crew->n, memory_order_relaxed);
    atomic_fetch_add_explicit(&crew->given, 1, memory_order_release);
    futex_wake_all(&crew->given);
}

ls_status cuda_crew_open(cuda_engine *first, ls_error *err) {
    cuda_crew *crew = calloc(1, sizeof *crew);
    if (crew == NULL) {
        return error_set(err, LS_ENOMEM, "engine: out of memory");
    }
    first->crew = crew;
    for (int r = 1; r < first->n_ranks; r++) {
        if (first->of[r]->leader != first->of[r]) {
            continue;
        }
        crew_member *member = &crew->member[crew->n];
        *member = (crew_member){.crew = crew, .leader = first->of[r]};
        const int rc = thread_start(&member->thread, member_main, member);
        if (rc != 0) {
            return error_set(err, LS_ENOMEM, "cannot start a thread for GPU %d: %s", member->leader->ordinal,
                             strerror(rc));
        }
        crew->n++;
    }
    return LS_OK;
}

ls_status cuda_crew_run(cuda_engine *first, cuda_job job, void *arg, ls_error *err) {
    cuda_crew *crew = first->crew;
    if (crew == NULL || crew->n == 0) {
        return job(first, arg, err);
    }
    publish(crew, job, arg);
    ls_status st = job(first, arg, err);
    unsigned left;
    while ((left = atomic_load_explicit(&crew->left, memory_order_acquire)) != 0) {
        futex_wait(&crew->left, left);
    }
    for (int i = 0; i < crew->n && st == LS_OK; i++) {
        st = crew->member[i].error.status;
        if (st != LS_OK && err != NULL) {
            *err = crew->member[i].error;
        }
    }
    return st;
}

void cuda_crew_close(cuda_engine *first) {
    cuda_crew *crew = first->crew;
    if (crew == NULL) {
        return;
    }
    publish(crew, NULL, NULL);
    for (int i = 0; i < crew->n; i++) {
        pthread_join(crew->member[i].thread, NULL);
    }
    free(crew);
    first->crew = NULL;
}
