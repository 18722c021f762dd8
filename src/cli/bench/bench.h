/*
 * What the measurements of `lockstep bench` share. Each is a function of bench_table that adds rows to the results; what
 * it cannot measure is a row too, with the reason.
 *
 *     cmd_bench -> bench_latency, ... -> runs (runs.c: one engine, timed) -> results (results.h) -> md, csv, JSON, --compare
 *
 * A measurement's errors end the command; that one row does not fit this model or machine is no error (bench_absent).
 */
#ifndef LS_CLI_BENCH_BENCH_H
#define LS_CLI_BENCH_BENCH_H

#include "base/json.h"
#include "cli/bench/results.h"
#include "cli/cli.h"

enum { LIST_MOST = 64 };

typedef struct int_list {
    int64_t item[LIST_MOST];
    int n;
} int_list;

typedef struct bench {
    ls_options options;
    const char *what; /* "latency", ... */
    json_t *rows;     /* of the results being made */
    int repetitions;
    uint64_t random;
    cli_hosts hosts;
    ls_model *model;
    ls_engine *engine;
    int n_vocab;
    /* serve: what is measured is elsewhere; */
    bool of_server; /* its model is not opened here, and the run prints a summary of its own, but for -o csv */
    bool failed;    /* some of its requests did: exit code 1 */
} bench;

typedef ls_status (*bench_fn)(bench *b, ls_error *err);
ls_status bench_latency(bench *b, ls_error *err);
ls_status bench_throughput(bench *b, ls_error *err);
ls_status bench_startup(bench *b, ls_error *err);
ls_status bench_sweep(bench *b, ls_error *err);
ls_status bench_exchange(bench *b, ls_error *err);
ls_status bench_ops(bench *b, ls_error *err);
ls_status bench_limits(bench *b, ls_error *err);
ls_status bench_serve(bench *b, ls_error *err);

/* An option's list of integers, or that of `fallback` where it was not given: "1,2,4Ki". */
ls_status bench_list(const bench *b, option_id id, const char *fallback, int64_t min, int64_t max, int_list *out,
                     ls_error *err);

/* ---- runs.c: engines, and what is timed in them ---- */

/* What an engine must have room for. */
typedef struct bench_room {
    int batch;
    int64_t input, output; /* tokens of each sequence: prompt; timed decode steps */
} bench_room;

/* Opens an engine as the options say with that much room, closing the one before. LS_ETOOLONG, LS_ENOMEM, LS_EUNSUPPORTED
 * and LS_EINVAL say why there is none. */
ls_status bench_open(bench *b, bench_room room, ls_error *err);
void bench_close(bench *b);
/* A row for what is about to be measured: the test's name, the engine's settings, and these. */
json_t *bench_engine_row(bench *b, const char *test, bench_room room);
/* The same without an engine, with the reason why nothing was measured. */
void bench_absent(bench *b, const char *test, bench_room room, const ls_error *why);
/* Whether a failure is one row's: its reason is then in the results, else it is everything's. */
bool bench_is_rows(ls_status st);

/* One prompt of random tokens and `output` more: ms from submission to the first and to the last. */
ls_status bench_one(bench *b, int64_t input, int64_t output, double *first_ms, double *all_ms, ls_error *err);
/* Decode steps of a whole batch; adds step_ms, tokens_per_s and what they are made of to the row. */
ls_status bench_decode(bench *b, bench_room room, json_t *row, ls_error *err);
/* An array of n random token ids, the caller's. */
int32_t *bench_tokens(bench *b, int64_t n);

/* perplexity.c: of the text of --prompt-file, into the row. */
ls_status bench_perplexity(bench *b, json_t *row, ls_error *err);

/* machine.c: what the results say about where they come from. */
json_t *bench_device(const ls_options *options);
const char *bench_commit(void);

#endif
