/*
 * Threads: barriers and teams.
 *
 * A barrier spins only while its threads fit the cores of the machine, and sleeps on a futex otherwise. It carries an
 * abort word: once set, every wait, present and future, returns false at once, so that one failing party never leaves
 * the others spinning.
 */
#ifndef LS_BASE_THREADS_H
#define LS_BASE_THREADS_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/error.h"

typedef struct ls_barrier {
    _Alignas(64) atomic_uint arrived;
    _Alignas(64) atomic_uint epoch;    /* futex word: goes up by one each time all have arrived */
    _Alignas(64) atomic_uint sleepers; /* threads in or near futex_wait: nobody is woken where nobody sleeps */
    atomic_uint aborted;
    unsigned n_threads;
    unsigned spins; /* polls of the epoch before sleeping; 0: sleep at once */
} ls_barrier;

/* n_busy: how many threads of the process compute at the same time; decides whether waiting may spin. */
void barrier_init(ls_barrier *barrier, int n_threads, int n_busy);
/* All writes before the wait are visible to all threads after it. False once the barrier was aborted. */
bool barrier_wait(ls_barrier *barrier);
void barrier_abort(ls_barrier *barrier);

/* One thread's place among those that share a rank's work. */
typedef struct ls_team {
    int thread, n_threads;
    ls_barrier *barrier; /* of the team; NULL for a team of one */
} ls_team;

static inline bool team_wait(const ls_team *team) {
    return team->n_threads == 1 || barrier_wait(team->barrier);
}

/* This thread's part [first, last) of n items, cut at multiples of `unit`. Which thread does what decides no bits. */
void team_range(const ls_team *team, int64_t n, int64_t unit, int64_t *first, int64_t *last);

/* Waits while *word == seen, and wakes all who wait for word. */
void futex_wait(atomic_uint *word, unsigned seen);
void futex_wake_all(atomic_uint *word);

/* As pthread_create, but the thread takes no signals: they are the program's business. Those of faults stay, which belong to
 * the thread that made them. */
int thread_start(pthread_t *thread, void *(*run)(void *arg), void *arg);

int core_count(void); /* cores this process may run on, at least 1 */

#endif
