/*
 * Barriers, teams and rank groups, with more threads than cores too. What a barrier makes visible is plain memory here,
 * so that ThreadSanitizer (make check SAN=thread) checks the ordering as well.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "rank/exchange.h"
#include "rank/rank.h"

enum { MAX_THREADS = 64 };

static int rounds(int n) {
    const char *san = getenv("LS_SAN");
    return san != NULL && san[0] != '\0' ? n / 10 : n;
}

/* ---- Barriers ---- */

typedef struct party {
    ls_barrier barrier;
    int n_threads, n_rounds;
    int word[MAX_THREADS]; /* written by its thread before the wait, read by all after */
    atomic_int n_bad, n_refused;
} party;

typedef struct guest {
    party *party;
    int i;
    pthread_t id;
} guest;

static void run_guests(party *p, void *(*main)(void *), guest guests[MAX_THREADS]) {
    for (int i = 0; i < p->n_threads; i++) {
        guests[i] = (guest){.party = p, .i = i};
        assert_int_equal(pthread_create(&guests[i].id, NULL, main, &guests[i]), 0);
    }
}

static void join_guests(const party *p, guest guests[MAX_THREADS]) {
    for (int i = 0; i < p->n_threads; i++) {
        assert_int_equal(pthread_join(guests[i].id, NULL), 0);
    }
}

static void *meet(void *arg) {
    guest *self = arg;
    party *p = self->party;
    for (int round = 1; round <= p->n_rounds; round++) {
        p->word[self->i] = round;
        bool good = barrier_wait(&p->barrier);
        for (int i = 0; i < p->n_threads; i++) {
            good = good && p->word[i] == round;
        }
        good = barrier_wait(&p->barrier) && good;
        if (!good) {
            atomic_fetch_add(&p->n_bad, 1);
        }
    }
    return NULL;
}

static void check_barrier(int n_threads, int n_busy, int n_rounds) {
    party p = {.n_threads = n_threads, .n_rounds = n_rounds};
    guest guests[MAX_THREADS];
    barrier_init(&p.barrier, n_threads, n_busy);
    run_guests(&p, meet, guests);
    join_guests(&p, guests);
    assert_int_equal(atomic_load(&p.n_bad), 0);
}

static void test_barrier_orders_memory(void **state) {
    (void)state;
    const int n_cores = core_count();
    assert_true(n_cores >= 1);
    for (int n = 1; n <= 3 * n_cores && n <= MAX_THREADS; n = n < 4 ? n + 1 : n * 2) {
        check_barrier(n, n, rounds(2000));
        check_barrier(n, n_cores + 1, rounds(2000)); /* never spins */
    }
    check_barrier(MAX_THREADS, MAX_THREADS, rounds(100));
    if (n_cores > 1) {
        check_barrier(2, 2, rounds(50000)); /* spins */
    }
}

/* ---- Aborts ---- */

static void *meet_until_aborted(void *arg) {
    guest *self = arg;
    party *p = self->party;
    while (barrier_wait(&p->barrier)) {
    }
    /* And so it stays. */
    for (int i = 0; i < 3; i++) {
        if (!barrier_wait(&p->barrier)) {
            atomic_fetch_add(&p->n_refused, 1);
        }
    }
    return NULL;
}

/* Waiters that lack one party; the abort comes at another moment in each round. */
static void check_abort(int n_threads, int n_missing, int n_busy, int delay_us) {
    party p = {.n_threads = n_threads};
    guest guests[MAX_THREADS];
    barrier_init(&p.barrier, n_threads + n_missing, n_busy);
    run_guests(&p, meet_until_aborted, guests);
    if (delay_us > 0) {
        usleep((useconds_t)delay_us);
    }
    barrier_abort(&p.barrier);
    join_guests(&p, guests); /* hangs if a waiter is left behind: the runner's timeout reports it */
    assert_int_equal(atomic_load(&p.n_refused), 3 * n_threads);
    assert_false(barrier_wait(&p.barrier));
}

static void test_abort_releases_all(void **state) {
    (void)state;
    for (int i = 0; i < rounds(400); i++) {
        int n_busy = i % 2 == 0 ? 1 : 1 << 20; /* spinning and asleep */
        check_abort(1 + i % 7, 1, n_busy, i % 5 * 60);
        check_abort(1 + i % 3, 0, n_busy, i % 5 * 60); /* while they pass through it */
    }
}

/* ---- Rank groups ---- */

enum { CHUNK = 1000 };

typedef struct job_data {
    rank_group *group;
    int n_ranks, n_threads, round;
    int calls[MAX_THREADS];      /* of each thread */
    int64_t sum[MAX_THREADS];    /* of each thread's share */
    int64_t total[LS_MAX_RANKS]; /* of each rank's team */
    atomic_int n_bad;
} job_data;

/* Each team adds up 0 .. CHUNK - 1 + rank; then all ranks check each other's totals. */
static void sum_job(void *arg, int rank, const ls_team *team) {
    job_data *data = arg;
    const int me = rank * data->n_threads + team->thread;
    const int64_t n = CHUNK + rank;
    int64_t first, last;
    bool good = team->n_threads == data->n_threads && rank < data->n_ranks;
    data->calls[me]++;
    team_range(team, n, 16, &first, &last);
    data->sum[me] = 0;
    for (int64_t i = first; i < last; i++) {
        data->sum[me] += i + data->round;
    }
    good = team_wait(team) && good;
    if (team->thread == 0) {
        data->total[rank] = 0;
        for (int t = 0; t < data->n_threads; t++) {
            data->total[rank] += data->sum[rank * data->n_threads + t];
        }
    }
    good = barrier_wait(rank_group_barrier(data->group)) && good;
    for (int r = 0; r < data->n_ranks; r++) {
        int64_t m = CHUNK + r;
        good = good && data->total[r] == m * (m - 1) / 2 + m * data->round;
    }
    good = barrier_wait(rank_group_barrier(data->group)) && good;
    if (!good) {
        atomic_fetch_add(&data->n_bad, 1);
    }
}

static void check_group(int n_ranks, int n_threads, int n_jobs) {
    job_data data = {.n_ranks = n_ranks, .n_threads = n_threads};
    ls_error err;
    assert_int_equal(rank_group_create(&data.group, n_ranks, n_threads, &err), LS_OK);
    assert_int_equal(rank_group_size(data.group), n_ranks);
    assert_int_equal(rank_group_threads(data.group), n_threads);
    for (data.round = 0; data.round < n_jobs; data.round++) {
        rank_group_run(data.group, sum_job, &data);
        for (int i = 0; i < n_ranks * n_threads; i++) {
            assert_int_equal(data.calls[i], data.round + 1); /* done by the time that run returns, and once */
        }
    }
    assert_int_equal(atomic_load(&data.n_bad), 0);
    rank_group_destroy(&data.group);
    assert_null(data.group);
}

static void test_rank_groups(void **state) {
    (void)state;
    for (int n_ranks = 1; n_ranks <= LS_MAX_RANKS; n_ranks *= 2) {
        for (int n_threads = 1; n_threads <= 4; n_threads++) {
            check_group(n_ranks, n_threads, rounds(200));
        }
    }
    check_group(1, core_count() + 1, rounds(200));
}

static void test_create_and_destroy_often(void **state) {
    (void)state;
    rank_group *none = NULL;
    rank_group_destroy(&none);
    for (int i = 0; i < rounds(500); i++) {
        rank_group *group;
        assert_int_equal(rank_group_create(&group, 1 << i % 4, 1 + i % 3, NULL), LS_OK);
        if (i % 7 == 0) {
            rank_group_destroy(&group); /* without a job */
        } else {
            rank_group_destroy(&group);
            check_group(1 << i % 4, 1 + i % 2, 1 + i % 3);
        }
    }
}

/* ---- The exchange between threads ---- */

typedef struct share_data {
    ls_exchange *exchange;
    int n_ranks, n_shares, abort_at;
    int part[LS_MAX_RANKS][2]; /* what each rank publishes in each slot */
    atomic_int n_bad, n_left;
} share_data;

/* As a plan does it: write the slot, share, read all. Rank 1 gives up at share `abort_at`. */
static void share_job(void *arg, int rank, const ls_team *team) {
    share_data *data = arg;
    ls_bind bind = {.group = {rank, data->n_ranks}};
    for (int i = 0; i < data->n_shares; i++) {
        int slot = i & 1;
        if (team->thread == 0) {
            data->part[rank][slot] = 100 * i + rank;
        }
        if (i == data->abort_at && rank == 1 % data->n_ranks) {
            data->exchange->abort(data->exchange);
        }
        if (!data->exchange->share(data->exchange, &bind, slot, 1)) {
            atomic_fetch_add(&data->n_left, 1);
            return;
        }
        for (int r = 0; r < data->n_ranks; r++) {
            if (data->part[r][slot] != 100 * i + r) {
                atomic_fetch_add(&data->n_bad, 1);
            }
        }
    }
}

static void check_exchange(int n_ranks, int n_threads, int n_shares, int abort_at) {
    share_data data = {.n_ranks = n_ranks, .n_shares = n_shares, .abort_at = abort_at};
    rank_group *group;
    ls_error err;
    assert_int_equal(rank_group_create(&group, n_ranks, n_threads, &err), LS_OK);
    assert_int_equal(exchange_threads_create(&data.exchange, group, &err), LS_OK);
    rank_group_run(group, share_job, &data);
    assert_int_equal(atomic_load(&data.n_bad), 0);
    assert_int_equal(atomic_load(&data.n_left), abort_at >= 0 ? n_ranks * n_threads : 0);
    data.exchange->destroy(data.exchange);
    rank_group_destroy(&group);
}

static void test_exchange(void **state) {
    (void)state;
    for (int n_ranks = 1; n_ranks <= LS_MAX_RANKS; n_ranks *= 2) {
        for (int n_threads = 1; n_threads <= 3; n_threads++) {
            check_exchange(n_ranks, n_threads, rounds(500), -1);
            for (int abort_at = 0; abort_at < 5; abort_at++) {
                check_exchange(n_ranks, n_threads, 20, abort_at);
            }
        }
    }
}

/* ---- Shares of a team ---- */

static void test_team_range_tiles(void **state) {
    (void)state;
    static const int64_t units[] = {1, 16, 64};
    for (int u = 0; u < 3; u++) {
        for (int64_t n = 0; n <= 300; n++) {
            for (int n_threads = 1; n_threads <= 9; n_threads++) {
                const int64_t unit = units[u], n_units = (n + unit - 1) / unit;
                int64_t next = 0;
                for (int thread = 0; thread < n_threads; thread++) {
                    int64_t first = -1, last = -1;
                    team_range(&(ls_team){thread, n_threads, NULL}, n, unit, &first, &last);
                    assert_int_equal(first, next);
                    assert_true(last >= first && (last == n || last % unit == 0));
                    assert_true(last - first <= (n_units + n_threads - 1) / n_threads * unit); /* nobody has more */
                    next = last;
                }
                assert_int_equal(next, n);
            }
        }
    }
    int64_t first, last;
    team_range(&(ls_team){6, 7, NULL}, INT64_C(1) << 45, 64, &first, &last);
    assert_int_equal(last, INT64_C(1) << 45); /* no overflow at sizes that memory has */
}

static void test_team_of_one_needs_no_barrier(void **state) {
    (void)state;
    assert_true(team_wait(&(ls_team){0, 1, NULL}));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_barrier_orders_memory),
        cmocka_unit_test(test_abort_releases_all),
        cmocka_unit_test(test_rank_groups),
        cmocka_unit_test(test_create_and_destroy_often),
        cmocka_unit_test(test_exchange),
        cmocka_unit_test(test_team_range_tiles),
        cmocka_unit_test(test_team_of_one_needs_no_barrier),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
