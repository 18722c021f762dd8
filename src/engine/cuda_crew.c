/*
 * A thread for each GPU of the ranks but the first, whose is the caller: what must happen on all of them happens side by side.
 * See cuda_engine.h. A job is published by raising `given`, a futex word, and over when `left` is 0.
 *
 * GPUs of a kind take about as long for the same job. So a thread that does not come back long after the caller's own part was
 * done, or seconds after that failed, hangs in the driver: it is named, and left behind with all that it may use.
 */
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "engine/cuda_engine.h"

enum { CREW_ARG_BYTES = 128, GRACE_S = 3, PATIENCE_S = 30, PATIENCE_TIMES = 4 };

typedef struct crew_member {
    cuda_crew *crew;
    cuda_engine *leader;
    pthread_t thread;
    ls_error error;   /* of the last job */
    atomic_bool busy; /* with it */
} crew_member;

struct cuda_crew {
    cuda_job job; /* NULL: end */
    _Alignas(16) char arg[CREW_ARG_BYTES];
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
        atomic_store(&self->busy, false);
        atomic_fetch_sub_explicit(&crew->left, 1, memory_order_acq_rel);
    }
}

static void publish(cuda_crew *crew, cuda_job job, const void *arg, size_t arg_bytes) {
    crew->job = job;
    if (arg_bytes > 0) {
        memcpy(crew->arg, arg, arg_bytes);
    }
    for (int i = 0; i < crew->n; i++) {
        atomic_store(&crew->member[i].busy, true);
    }
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

/* False: some are at it still when that time is over. */
static bool wait_for_all(cuda_crew *crew, int64_t patience_ns) {
    const int64_t begin = clock_ns(), busy_ns = 5000000;
    while (atomic_load_explicit(&crew->left, memory_order_acquire) != 0) {
        const int64_t waited = clock_ns() - begin;
        if (waited > patience_ns) {
            return false;
        }
        if (waited > busy_ns) {
            nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
        } else {
            sched_yield();
        }
    }
    return true;
}

static ls_status name_lost(const cuda_crew *crew, const ls_error *why, ls_error *err) {
    for (int i = 0; i < crew->n; i++) {
        const cuda_engine *leader = crew->member[i].leader;
        if (atomic_load(&crew->member[i].busy)) {
            return error_set(err, LS_EABORTED, "rank %d (device %d): its thread has not come back from the driver%s%s",
                             leader->here[0], leader->ordinal, why->status != LS_OK ? "; " : "", why->text);
        }
    }
    return error_set(err, LS_EABORTED, "a GPU's thread came back late from the driver%s%s",
                     why->status != LS_OK ? "; " : "", why->text);
}

ls_status cuda_crew_run(cuda_engine *first, cuda_job job, const void *arg, size_t arg_bytes, ls_error *err) {
    cuda_crew *crew = first->crew;
    ls_error own = {0};
    if (crew == NULL || crew->n == 0) {
        return job(first, arg, err);
    }
    const int64_t begin = clock_ns(), second = 1000000000;
    if (arg_bytes > CREW_ARG_BYTES) {
        return error_set(err, LS_EINTERNAL, "%zu bytes for the threads of GPUs", arg_bytes);
    }
    publish(crew, job, arg, arg_bytes);
    ls_status st = job(first, arg, &own);
    const int64_t long_ns = PATIENCE_S * second + PATIENCE_TIMES * (clock_ns() - begin);
    if (!wait_for_all(crew, st != LS_OK ? GRACE_S * second : long_ns)) {
        first->crew_lost = true;
        return name_lost(crew, &own, err);
    }
    for (int i = 0; i < crew->n && st == LS_OK; i++) {
        st = crew->member[i].error.status;
        own = crew->member[i].error;
    }
    if (st != LS_OK && err != NULL) {
        *err = own;
    }
    return st;
}

void cuda_crew_close(cuda_engine *first) {
    cuda_crew *crew = first->crew;
    if (crew == NULL || first->crew_lost) {
        return;
    }
    publish(crew, NULL, NULL, 0);
    for (int i = 0; i < crew->n; i++) {
        pthread_join(crew->member[i].thread, NULL);
    }
    free(crew);
    first->crew = NULL;
}
