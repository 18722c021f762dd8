/*
 * The load of `lockstep bench serve`: completions sent to a server, and what came back when. One thread, libcurl's multi
 * interface: times are taken where the bytes arrive.
 */
#ifndef LS_CLI_BENCH_LOAD_H
#define LS_CLI_BENCH_LOAD_H

#include "base/json.h"

typedef struct bench_request {
    json_t *prompt; /* a string or an array of ids; owned */
    int output_len;
    double arrival_s; /* when it is to be sent, since the beginning */
    /* Results, seconds since the beginning. */
    bool good;
    double start_s, first_s, last_s; /* sent; first and last piece of the answer */
    int n_prompt, n_output;          /* tokens, as the server counts them */
    int status;                      /* HTTP; 0: no answer */
    char error[200];                 /* unless it is good */
} bench_request;

typedef struct bench_times { /* a list of seconds */
    double *item;
    size_t n, capacity;
} bench_times;

typedef struct bench_load {
    const char *url, *model, *key; /* model, key: or NULL */
    double temperature;            /* negative: the server's default */
    int64_t seed;
    int max_concurrency;
    bench_request *request; /* [n] by arrival */
    size_t n;
    bench_times gaps;  /* between two pieces of a stream, all requests */
    double duration_s; /* of all */
} bench_load;

/* Sends all and waits for all. Failures of requests are no error here. */
ls_status bench_load_run(bench_load *load, ls_error *err);
ls_status bench_times_add(bench_times *times, double seconds, ls_error *err);

#endif
