/* See threads.h. */
#include "base/threads.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPINS = 4000 }; /* some 200 us of pauses: longer than the skew of ops, far shorter than a time slice */

void futex_wait(atomic_uint *word, unsigned seen) {
    syscall(SYS_futex, (unsigned *)word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

void futex_wake_all(atomic_uint *word) {
    syscall(SYS_futex, (unsigned *)word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

int core_count(void) {
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n;
}

void barrier_init(ls_barrier *barrier, int n_threads, int n_busy) {
    atomic_init(&barrier->arrived, 0);
    atomic_init(&barrier->epoch, 0);
    atomic_init(&barrier->sleepers, 0);
    atomic_init(&barrier->aborted, 0);
    barrier->n_threads = (unsigned)n_threads;
    barrier->spins = n_busy <= core_count() ? SPINS : 0;
}

static inline void spin_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void sleep_on(ls_barrier *barrier, unsigned epoch) {
    atomic_fetch_add(&barrier->sleepers, 1);
    if (atomic_load(&barrier->epoch) == epoch) {
        futex_wait(&barrier->epoch, epoch);
    }
    atomic_fetch_sub(&barrier->sleepers, 1);
}

bool barrier_wait(ls_barrier *barrier) {
    unsigned epoch = atomic_load_explicit(&barrier->epoch, memory_order_acquire);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) + 1 == barrier->n_threads) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        /* Sequential order here and in sleep_on: either the sleeper sees the new epoch, or we see the sleeper. */
        atomic_store(&barrier->epoch, epoch + 1);
        if (atomic_load(&barrier->sleepers) != 0) {
            futex_wake_all(&barrier->epoch);
        }
        return atomic_load_explicit(&barrier->aborted, memory_order_acquire) == 0;
    }
    unsigned spins = barrier->spins;
    while (atomic_load_explicit(&barrier->epoch, memory_order_acquire) == epoch) {
        if (atomic_load_explicit(&barrier->aborted, memory_order_acquire) != 0) {
            return false;
        }
        if (spins > 0) {
            spins--;
            spin_pause();
        } else {
            sleep_on(barrier, epoch);
        }
    }
    return atomic_load_explicit(&barrier->aborted, memory_order_acquire) == 0;
}

void barrier_abort(ls_barrier *barrier) {
    atomic_store_explicit(&barrier->aborted, 1, memory_order_release);
    /* The epoch moves too: a waiter between its check of `aborted` and its futex call must not sleep on the old one. */
    atomic_fetch_add_explicit(&barrier->epoch, 1, memory_order_acq_rel);
    futex_wake_all(&barrier->epoch);
}

void team_range(const ls_team *team, int64_t n, int64_t unit, int64_t *first, int64_t *last) {
    int64_t units = (n + unit - 1) / unit;
    int64_t a = units * team->thread / team->n_threads * unit;
    int64_t b = units * (team->thread + 1) / team->n_threads * unit;
    *first = a < n ? a : n;
    *last = b < n ? b : n;
}

int thread_start(pthread_t *thread, void *(*run)(void *arg), void *arg) {
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF};
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        sigdelset(&blocked, faults[i]);
    }
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    int rc = pthread_create(thread, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}
