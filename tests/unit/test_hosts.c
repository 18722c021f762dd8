/*
 * The processes of a run and what carries bytes between them, without processes: each host is a thread, and they meet over
 * TCP on this machine.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "rank/hosts.h"

enum { MOST = 8 };

typedef struct host {
    int self, count, lost_ms;
    char address[32];
    ls_hosts *hosts;
    ls_status st;
    ls_error err;
    void (*run)(struct host *host);
    atomic_int told;
    char told_text[512];
} host;

static void on_lost(void *user, const ls_error *why) {
    host *h = user;
    memcpy(h->told_text, why->text, sizeof h->told_text);
    atomic_fetch_add(&h->told, 1);
}

static void *host_main(void *arg) {
    host *h = arg;
    ls_hosts_params params = LS_HOSTS_PARAMS_INIT;
    params.n_hosts = h->count;
    params.host = h->self;
    params.address = h->address;
    params.join_timeout_ms = 20000;
    params.lost_timeout_ms = h->lost_ms;
    params.on_lost = on_lost;
    params.user = h;
    h->st = ls_hosts_join(&params, &h->hosts, &h->err);
    if (h->st == LS_OK) {
        h->run(h);
    }
    return NULL;
}

/* Runs all hosts to their end; each leaves by itself. */
static void run_hosts(host *h, int count, int port, int lost_ms, void (*run)(host *)) {
    pthread_t thread[MOST];
    for (int i = 0; i < count; i++) {
        h[i] = (host){.self = i, .count = count, .lost_ms = lost_ms, .run = run};
        snprintf(h[i].address, sizeof h[i].address, "127.0.0.1:%d", port);
        assert_int_equal(pthread_create(&thread[i], NULL, host_main, &h[i]), 0);
    }
    for (int i = 0; i < count; i++) {
        pthread_join(thread[i], NULL);
    }
}

static int a_port(void) {
    return 20000 + (int)getpid() % 8000;
}

/* ---- Bytes ---- */

static const size_t SIZES[] = {0, 1, 7, 4096, 100000, 1000000, 5};
enum { N_SIZES = sizeof SIZES / sizeof *SIZES };

static uint8_t byte_of(int from, int to, int message, size_t i) {
    return (uint8_t)((size_t)(from * 31 + to * 7 + message * 3) + i * (i >> 8 | 1));
}

/* All sizes, to and from all others at once. */
static void swap_all(host *h) {
    host_transfer transfer[MOST * 2 * N_SIZES];
    int n = 0;
    for (int other = 0; other < h->count; other++) {
        for (int m = 0; m < N_SIZES && other != h->self; m++) {
            uint8_t *out = malloc(SIZES[m] + 1), *in = calloc(SIZES[m] + 1, 1);
            for (size_t i = 0; i < SIZES[m]; i++) {
                out[i] = byte_of(h->self, other, m, i);
            }
            transfer[n++] = (host_transfer){.host = other, .sends = true, .data = out, .bytes = SIZES[m]};
            transfer[n++] = (host_transfer){.host = other, .data = in, .bytes = SIZES[m]};
        }
    }
    h->st = hosts_transfer(h->hosts, transfer, n, 0, &h->err);
    for (int t = 0; t < n; t++) {
        uint8_t *data = transfer[t].data;
        for (size_t i = 0; i < transfer[t].bytes && h->st == LS_OK && !transfer[t].sends; i++) {
            if (data[i] != byte_of(transfer[t].host, h->self, t / 2 % N_SIZES, i)) {
                h->st = error_set(&h->err, LS_EINTERNAL, "message %d from host %d: byte %zu", t, transfer[t].host, i);
            }
        }
        free(data);
    }
    ls_hosts_leave(&h->hosts, h->st == LS_OK ? NULL : &h->err);
}

static void bytes_arrive_in_order(void **state) {
    (void)state;
    for (int count = 2; count <= MOST; count *= 2) {
        host h[MOST];
        run_hosts(h, count, a_port(), 0, swap_all); /* the same port each time */
        for (int i = 0; i < count; i++) {
            if (h[i].st != LS_OK) {
                fail_msg("host %d of %d: %s", i, count, h[i].err.text);
            }
            assert_null(h[i].hosts);
        }
    }
}

/* ---- Ends ---- */

/* Host 1 gives up with a reason while the others wait for it. */
static void give_up(host *h) {
    char byte = 0;
    host_transfer transfer = {.host = 1, .data = &byte, .bytes = 1};
    hosts_set_phase(h->hosts, PHASE_STEP, 12);
    if (h->self == 1) {
        error_set(&h->err, LS_ENOTFOUND, "the dog ate it");
        nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
        ls_hosts_leave(&h->hosts, &h->err);
        return;
    }
    h->st = hosts_transfer(h->hosts, &transfer, 1, 0, &h->err);
    ls_hosts_leave(&h->hosts, &h->err);
}

static void a_reason_reaches_all(void **state) {
    (void)state;
    host h[4];
    int64_t start = clock_ns();
    run_hosts(h, 4, a_port(), 0, give_up);
    assert_true(clock_ns() - start < (int64_t)4 * 1000000000);
    for (int i = 0; i < 4; i++) {
        if (i != 1) {
            assert_int_equal(h[i].st, LS_EABORTED);
            assert_non_null(strstr(h[i].err.text, "host 1 ("));
            assert_non_null(strstr(h[i].err.text, "the dog ate it"));
            assert_int_equal(atomic_load(&h[i].told), 0); /* it left in time */
        }
    }
}

/* Host 1 lives and sends notes, but no data. */
static void say_nothing(host *h) {
    char byte = 0;
    host_transfer transfer = {.host = 1, .data = &byte, .bytes = 1};
    if (h->self == 1) {
        transfer.host = 0;
        h->st = hosts_transfer(h->hosts, &transfer, 1, 0, &h->err);
    } else {
        h->st = hosts_transfer(h->hosts, &transfer, 1, 600000000, &h->err);
    }
    ls_hosts_leave(&h->hosts, &h->err);
}

static void every_transfer_may_have_a_deadline(void **state) {
    (void)state;
    host h[2];
    run_hosts(h, 2, a_port(), 0, say_nothing);
    assert_int_equal(h[0].st, LS_EABORTED);
    assert_non_null(strstr(h[0].err.text, "host 1 ("));
    assert_non_null(strstr(h[0].err.text, "did not come"));
    assert_int_equal(h[1].st, LS_EABORTED);
    assert_non_null(strstr(h[1].err.text, "host 0 ("));
    assert_non_null(strstr(h[1].err.text, "did not come"));
}

/* Host 1 leaves with a reason while host 0 does something else for long: it is told. */
static void look_away(host *h) {
    char text[256];
    hosts_set_phase(h->hosts, PHASE_LOADING, 0);
    ls_hosts_describe(h->hosts, text, sizeof text);
    if (strstr(text, "loading weights") == NULL || strstr(text, h->self == 0 ? "host 0 (" : "host 1 (") == NULL) {
        h->st = error_set(&h->err, LS_EINTERNAL, "%s", text);
    }
    if (h->self == 1) {
        const ls_error why = {.status = LS_EFORMAT, .text = "a bad file"};
        ls_hosts_leave(&h->hosts, &why);
        return;
    }
    for (int64_t until = clock_ns() + (int64_t)8 * 1000000000; atomic_load(&h->told) == 0 && clock_ns() < until;) {
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    if (!hosts_lost(h->hosts)) {
        h->st = error_set(&h->err, LS_EINTERNAL, "nothing was lost");
    }
    ls_hosts_leave(&h->hosts, &h->err);
}

static void who_looks_away_is_told(void **state) {
    (void)state;
    host h[2];
    run_hosts(h, 2, a_port(), 0, look_away);
    assert_int_equal(h[0].st, LS_OK);
    assert_int_equal(h[1].st, LS_OK);
    assert_int_equal(atomic_load(&h[0].told), 1);
    assert_non_null(strstr(h[0].told_text, "a bad file"));
}

/* ---- Parameters ---- */

static void parameters_are_checked(void **state) {
    (void)state;
    static const struct {
        ls_hosts_params params;
        const char *word;
    } wrong[] = {
        {{.struct_size = 0, .n_hosts = 2, .address = "a:1"}, "LS_HOSTS_PARAMS_INIT"},
        {{.struct_size = sizeof(ls_hosts_params) + 1, .n_hosts = 2, .address = "a:1"}, "LS_HOSTS_PARAMS_INIT"},
        {{.struct_size = sizeof(ls_hosts_params), .n_hosts = 3, .address = "a:1"}, "3 processes"},
        {{.struct_size = sizeof(ls_hosts_params), .n_hosts = 2, .host = 2, .address = "a:1"}, "host 2 of 2"},
        {{.struct_size = sizeof(ls_hosts_params), .n_hosts = 2, .host = -1, .address = "a:1"}, "host -1 of 2"},
        {{.struct_size = sizeof(ls_hosts_params), .n_hosts = 2, .address = "nowhere"}, "NAME:PORT"},
        {{.struct_size = sizeof(ls_hosts_params), .n_hosts = 2, .address = "a:"}, "NAME:PORT"},
        {{.struct_size = sizeof(ls_hosts_params), .n_hosts = 2, .address = ":7"}, "NAME:PORT"},
        {{.struct_size = sizeof(ls_hosts_params), .n_hosts = 2, .address = "a:1", .join_timeout_ms = -1}, "timeout"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        ls_hosts *hosts = NULL;
        ls_error err = {0};
        assert_int_equal(ls_hosts_join(&wrong[i].params, &hosts, &err), LS_EINVAL);
        if (strstr(err.text, wrong[i].word) == NULL) {
            fail_msg("case %zu: no %s in: %s", i, wrong[i].word, err.text);
        }
        assert_null(hosts);
    }
    ls_hosts *none = NULL;
    ls_hosts_leave(&none, NULL);
    assert_int_equal(ls_hosts_self(NULL), 0);
    assert_int_equal(hosts_count(NULL), 1);
    assert_false(hosts_lost(NULL));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_arrive_in_order),
        cmocka_unit_test(a_reason_reaches_all),
        cmocka_unit_test(every_transfer_may_have_a_deadline),
        cmocka_unit_test(who_looks_away_is_told),
        cmocka_unit_test(parameters_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
