/* lockstep bench latency, throughput and sweep: prompts, decode steps, batches. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cli/bench/bench.h"

/* A row that could not be measured says why and leaves the others alone. `row` may be there already. */
static ls_status forgive(bench *b, const char *test, bench_room room, json_t *row, ls_status st, ls_error *err) {
    if (st >= 0 || !bench_is_rows(st)) {
        return st;
    }
    if (row != NULL) {
        results_absent(row, err->text);
    } else {
        bench_absent(b, test, room, err);
    }
    return LS_OK;
}

/* ---- latency ---- */

static ls_status prefill(bench *b, int64_t input, ls_error *err) {
    const bench_room room = {1, input, 1};
    char test[32];
    double first_ms, all_ms;
    snprintf(test, sizeof test, "pp%lld", (long long)input);
    ls_status st = bench_open(b, room, err);
    json_t *row = st == LS_OK ? bench_engine_row(b, test, room) : NULL;
    for (int i = -1; i < b->repetitions && st == LS_OK; i++) {
        st = bench_one(b, input, 1, &first_ms, &all_ms, err);
        if (st == LS_OK && i >= 0) {
            results_add(row, "first_token_ms", LESS_IS_BETTER, first_ms);
            results_add(row, "tokens_per_s", MORE_IS_BETTER, (double)input * 1000 / first_ms);
        }
    }
    return forgive(b, test, room, row, st, err);
}

/* The guide's run: 26 tokens and 20 more, the first of an engine and later ones. */
static ls_status total(bench *b, ls_error *err) {
    const bench_room room = {1, 26, 20};
    static const char *const tests[] = {"total20 first", "total20"};
    for (int later = 0; later < 2; later++) {
        json_t *row = NULL;
        ls_status st = LS_OK;
        for (int i = 0; i < b->repetitions && st == LS_OK; i++) {
            double first_ms, all_ms;
            st = later && i > 0 ? LS_OK : bench_open(b, room, err); /* a new engine for each first run */
            row = st == LS_OK && row == NULL ? bench_engine_row(b, tests[later], room) : row;
            if (st == LS_OK && later && i == 0) {
                st = bench_one(b, room.input, room.output, &first_ms, &all_ms, err);
            }
            st = st == LS_OK ? bench_one(b, room.input, room.output, &first_ms, &all_ms, err) : st;
            if (st == LS_OK) {
                results_add(row, "total_ms", LESS_IS_BETTER, all_ms);
                results_add(row, "first_token_ms", LESS_IS_BETTER, first_ms);
            }
        }
        TRY(forgive(b, tests[later], room, row, st, err));
    }
    return LS_OK;
}

static ls_status decode(bench *b, const char *test, bench_room room, ls_error *err) {
    ls_status st = bench_open(b, room, err);
    json_t *row = st == LS_OK ? bench_engine_row(b, test, room) : NULL;
    st = st == LS_OK ? bench_decode(b, room, row, err) : st;
    return forgive(b, test, room, row, st, err);
}

ls_status bench_latency(bench *b, ls_error *err) {
    int_list inputs;
    char test[32];
    const int64_t output = b->options.value[OPT_OUTPUT_LEN].integer;
    TRY(bench_list(b, OPT_INPUT_LEN, "26,128,512,2048", 1, 1 << 24, &inputs, err));
    TRY(total(b, err));
    for (int i = 0; i < inputs.n; i++) {
        TRY(prefill(b, inputs.item[i], err));
    }
    snprintf(test, sizeof test, "tg%lld", (long long)output);
    return decode(b, test, (bench_room){1, 26, output}, err);
}

/* ---- throughput ---- */

/* Requests of mixed lengths: a quarter to seven quarters of --output-len. */
static int64_t mixed_length(const bench *b, int i) {
    static const int quarters[] = {1, 7, 3, 5, 2, 6, 4, 4};
    int64_t n = b->options.value[OPT_OUTPUT_LEN].integer * quarters[i % 8] / 4;
    return n > 0 ? n : 1;
}

typedef struct mixed_run {
    ls_request *request[8 * 16];
    int n_requests, n_submitted;
    int64_t tokens;
} mixed_run;

static ls_status submit_mixed(bench *b, mixed_run *run, int64_t input, int n, ls_error *err) {
    for (; n > 0 && run->n_submitted < run->n_requests; n--, run->n_submitted++) {
        ls_request_params params = LS_REQUEST_PARAMS_INIT;
        int32_t *token = bench_tokens(b, input);
        params.prompt_tokens = token;
        params.n_prompt_tokens = (size_t)input;
        params.max_tokens = (int)mixed_length(b, run->n_submitted);
        params.temperature = 0;
        params.ignore_eos = true;
        run->tokens += params.max_tokens;
        ls_status st = token != NULL ? ls_request_submit(b->engine, &params, &run->request[run->n_submitted], err)
                                     : error_set(err, LS_ENOMEM, "bench: out of memory");
        free(token);
        TRY(st);
    }
    return LS_OK;
}

/* All of them, `wave` at a time: the next ones begin when the last of a wave has ended, or as seats become free. */
static ls_status run_mixed(bench *b, bench_room room, int wave, json_t *row, ls_error *err) {
    mixed_run run = {.n_requests = 8 * room.batch};
    ls_status st = LS_OK;
    int64_t start_ns = clock_ns();
    while (st == LS_OK && run.n_submitted < run.n_requests) {
        st = submit_mixed(b, &run, room.input, wave, err);
        while (st == LS_OK) {
            st = ls_engine_step(b->engine, err);
        }
        st = st == LS_IDLE ? LS_OK : st;
    }
    double seconds = (double)(clock_ns() - start_ns) / 1e9;
    for (int i = 0; i < run.n_submitted; i++) {
        ls_request_free(&run.request[i]);
    }
    if (st == LS_OK) {
        results_add(row, "tokens_per_s", MORE_IS_BETTER, (double)run.tokens / seconds);
        results_add(row, "all_s", LESS_IS_BETTER, seconds);
    }
    return st;
}

/* Static batches beside continuous ones, on the same requests. */
static ls_status mixed(bench *b, int batch, ls_error *err) {
    const bench_room room = {batch, 26, b->options.value[OPT_OUTPUT_LEN].integer * 2};
    static const char *const tests[] = {"mixed static", "mixed continuous"};
    json_t *row[2] = {NULL, NULL};
    ls_status st = bench_open(b, room, err);
    for (int i = 0; i < 2 && st == LS_OK; i++) {
        row[i] = bench_engine_row(b, tests[i], room);
    }
    for (int i = 0; i < b->repetitions && st == LS_OK; i++) { /* in turn */
        st = run_mixed(b, room, batch, row[0], err);
        st = st == LS_OK ? run_mixed(b, room, 8 * batch, row[1], err) : st;
    }
    if (st < 0 && row[1] != NULL && bench_is_rows(st)) {
        results_absent(row[1], err->text);
    }
    return forgive(b, tests[0], room, row[0], st, err);
}

ls_status bench_throughput(bench *b, ls_error *err) {
    int_list batches, inputs;
    int mixed_batch = 0;
    const int64_t output = b->options.value[OPT_OUTPUT_LEN].integer;
    TRY(bench_list(b, OPT_BATCH_SIZE, "1,2,4,8,16,32,64,128,256", 1, 4096, &batches, err));
    TRY(bench_list(b, OPT_INPUT_LEN, "26", 1, 1 << 24, &inputs, err));
    for (int i = 0; i < inputs.n; i++) {
        for (int k = 0; k < batches.n; k++) {
            TRY(decode(b, "batch", (bench_room){(int)batches.item[k], inputs.item[i], output}, err));
            mixed_batch = batches.item[k] <= 16 && batches.item[k] > mixed_batch ? (int)batches.item[k] : mixed_batch;
        }
    }
    return mixed_batch > 1 ? mixed(b, mixed_batch, err) : LS_OK;
}

/* ---- sweep ---- */

enum { VARY_MOST = 8 };

typedef struct axis {
    option_id id;
    char text[256]; /* its values, ended by NULs */
    const char *value[LIST_MOST];
    int n;
} axis;

/* "dtype=f32,bf16" */
static ls_status read_axis(const char *text, axis *out, ls_error *err) {
    const char *equals = strchr(text, '=');
    if (equals == NULL || strlen(equals) > sizeof out->text || equals[1] == '\0') {
        return error_set(err, LS_EINVAL, "--vary %.100s: expected NAME=VALUE,VALUE,...", text);
    }
    *out = (axis){.id = OPTION_COUNT};
    for (int id = 0; id < OPTION_COUNT; id++) {
        const option_def *def = &option_table[id];
        const size_t n = (size_t)(equals - text);
        bool engine = (def->commands & COMMAND_BENCH) != 0 &&
                      (def->group == GROUP_ENGINE || def->group == GROUP_SAMPLING) && def->type != OPTION_LIST;
        if (engine && ((strlen(def->name) == n && strncmp(def->name, text, n) == 0) ||
                       (def->alias != NULL && strlen(def->alias) == n && strncmp(def->alias, text, n) == 0))) {
            out->id = (option_id)id;
        }
    }
    if (out->id == OPTION_COUNT) {
        return error_set(err, LS_EINVAL, "--vary %.100s: no option of engines or sampling has this name", text);
    }
    snprintf(out->text, sizeof out->text, "%s", equals + 1);
    for (char *at = out->text, *save = NULL; (at = strtok_r(at, ",", &save)) != NULL; at = NULL) {
        if (out->n == LIST_MOST) {
            return error_set(err, LS_EINVAL, "--vary %.100s: more than %d values", text, LIST_MOST);
        }
        out->value[out->n++] = at;
    }
    return out->n > 0 ? LS_OK : error_set(err, LS_EINVAL, "--vary %.100s: no values", text);
}

/* Value i of an axis into the options; "default" is what the table has. */
static ls_status choose(bench *b, const axis *a, int i, ls_error *err) {
    const char *text = a->value[i], *fallback = option_table[a->id].fallback;
    if (strcmp(text, "default") != 0) {
        return options_set(&b->options, a->id, text, err);
    }
    if (fallback != NULL) {
        TRY(options_set(&b->options, a->id, fallback, err));
    }
    b->options.value[a->id].set = fallback != NULL;
    return LS_OK;
}

/* What varies is told of every row, in the words that were given. */
static void add_axes(json_t *row, const axis *axes, const int *at, int n) {
    for (int i = 0; i < n; i++) {
        const char *name = option_table[axes[i].id].name;
        bool has =
            axes[i].id == OPT_TENSOR_PARALLEL_SIZE || json_object_get(json_object_get(row, "settings"), name) != NULL;
        if (!has || axes[i].id == OPT_DTYPE) {
            results_set(row, axes[i].id == OPT_DTYPE ? "dtype" : name, json_string(axes[i].value[at[i]]));
        }
    }
}

static ls_status sweep_point(bench *b, bench_room room, const axis *axes, const int *at, int n, ls_error *err) {
    const size_t before = json_array_size(b->rows);
    ls_status st = bench_open(b, room, err);
    json_t *row = st == LS_OK ? bench_engine_row(b, "step", room) : NULL;
    if (st == LS_OK && b->options.n_list[OPT_PROMPT_FILE] > 0) {
        st = bench_perplexity(b, row, err); /* ends with an engine of the same room again */
        st = st == LS_OK ? bench_open(b, room, err) : st;
    }
    st = st == LS_OK ? bench_decode(b, room, row, err) : st;
    st = forgive(b, "step", room, row, st, err);
    for (size_t i = before; i < json_array_size(b->rows); i++) {
        add_axes(json_array_get(b->rows, i), axes, at, n);
    }
    return st;
}

static ls_status sweep_points(bench *b, const axis *axes, const int *at, int n, ls_error *err) {
    int_list batches, inputs;
    TRY(bench_list(b, OPT_BATCH_SIZE, "1", 1, 4096, &batches, err));
    TRY(bench_list(b, OPT_INPUT_LEN, "26", 1, 1 << 24, &inputs, err));
    for (int i = 0; i < inputs.n; i++) {
        for (int k = 0; k < batches.n; k++) {
            const bench_room room = {(int)batches.item[k], inputs.item[i], b->options.value[OPT_OUTPUT_LEN].integer};
            TRY(sweep_point(b, room, axes, at, n, err));
        }
    }
    return LS_OK;
}

ls_status bench_sweep(bench *b, ls_error *err) {
    axis axes[VARY_MOST];
    int at[VARY_MOST] = {0};
    const int n = (int)b->options.n_list[OPT_VARY];
    if (n > VARY_MOST) {
        return error_set(err, LS_EINVAL, "--vary: more than %d of them", VARY_MOST);
    }
    for (int i = 0; i < n; i++) {
        TRY(read_axis(b->options.list[OPT_VARY][i], &axes[i], err));
    }
    for (int i = 0; i >= 0;) { /* every combination; the last axis turns fastest */
        for (i = 0; i < n; i++) {
            TRY(choose(b, &axes[i], at[i], err));
        }
        TRY(sweep_points(b, axes, at, n, err));
        for (i = n - 1; i >= 0 && ++at[i] == axes[i].n; i--) {
            at[i] = 0;
        }
    }
    return LS_OK;
}
