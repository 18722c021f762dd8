/*
 * One engine, timed through the public header. Prompts are random token ids, so that nothing is reused from run to run;
 * answers are greedy unless --temp says otherwise, and end-of-text tokens end none.
 *
 * Decode steps are timed from the moment all prompts of the batch are through: every step that counts has a row of each
 * sequence. Requests are given more tokens than are timed, and cancelled.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cli/bench/bench.h"

enum { WARM_STEPS = 3, CHUNK = 512, PAGE = 64 };

static uint64_t next_u64(bench *b) {
    uint64_t z = b->random += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Out of the middle of the vocabulary: no special token. */
int32_t *bench_tokens(bench *b, int64_t n) {
    const int first = b->n_vocab / 4, count = b->n_vocab / 2 > 0 ? b->n_vocab / 2 : 1;
    int32_t *token = malloc((size_t)n * sizeof *token);
    for (int64_t i = 0; token != NULL && i < n; i++) {
        token[i] = first + (int32_t)(next_u64(b) % (uint64_t)count);
    }
    return token;
}

/* ---- Engines ---- */

bool bench_is_rows(ls_status st) {
    return st == LS_ETOOLONG || st == LS_ENOMEM || st == LS_EUNSUPPORTED || st == LS_EINVAL;
}

/* Steps in which only some prompts are through: their requests get so many tokens more. */
static int64_t slack(bench_room room) {
    return 2 * ((int64_t)room.batch * room.input / CHUNK + 1) + WARM_STEPS + 5;
}

static int64_t room_tokens(bench_room room) {
    return room.input + room.output + (room.batch > 0 && room.output > 1 ? slack(room) : 1);
}

/* Unless they were given: as many seats, tokens and pages as the run needs, so that memory is what it takes. */
static void make_room(const bench *b, bench_room room, ls_engine_params *params) {
    const int64_t pages = (room_tokens(room) + PAGE - 1) / PAGE * room.batch;
    ls_plan_report plan = LS_PLAN_REPORT_INIT;
    if (!options_given(&b->options, OPT_MAX_NUM_SEQS)) {
        params->max_num_seqs = room.batch;
    }
    if (!options_given(&b->options, OPT_MAX_MODEL_LEN)) {
        params->max_model_len_tokens = (int)room_tokens(room);
    }
    if (params->kv_cache_memory_bytes == 0 && ls_plan_make(b->model, params, &plan, NULL) == LS_OK) {
        params->kv_cache_memory_bytes = pages * plan.page_tokens * plan.kv_bytes_per_token;
    }
}

ls_status bench_open(bench *b, bench_room room, ls_error *err) {
    ls_model_info info = LS_MODEL_INFO_INIT;
    bench_close(b);
    if (b->model == NULL) {
        TRY(cli_open_to_run(&b->options, &b->model, err));
    }
    TRY(ls_model_get_info(b->model, &info, err));
    if (room_tokens(room) > info.max_position_tokens) {
        return error_set(err, LS_ETOOLONG, "%lld tokens are more than the %d that the model was made for",
                         (long long)room_tokens(room), info.max_position_tokens);
    }
    b->n_vocab = info.n_vocab;
    ls_engine_params params = cli_engine_params(&b->options, NULL);
    make_room(b, room, &params);
    return cli_open_engine(&b->options, b->model, &params, &b->engine, err);
}

void bench_close(bench *b) {
    ls_engine_close(&b->engine);
}

/* ---- Rows ---- */

static void set_int(json_t *row, const char *name, int64_t value) {
    results_set(row, name, json_integer((json_int_t)value));
}

static json_t *room_row(bench *b, const char *test, bench_room room) {
    const option_value *v = b->options.value;
    json_t *row = results_row(b->rows, test);
    set_int(row, "batch", room.batch);
    set_int(row, "input", room.input);
    set_int(row, "output", room.output);
    results_set(row, "quantization", json_string(v[OPT_QUANTIZATION].text));
    set_int(row, "tp", v[OPT_TENSOR_PARALLEL_SIZE].integer);
    results_set(row, "temp", json_real(v[OPT_TEMPERATURE].set ? v[OPT_TEMPERATURE].real : 0));
    return row;
}

json_t *bench_engine_row(bench *b, const char *test, bench_room room) {
    json_t *row = room_row(b, test, room);
    ls_timeline t = LS_TIMELINE_INIT;
    if (ls_engine_get_timeline(b->engine, &t, NULL) == LS_OK) {
        results_set(row, "dtype", json_string(ls_dtype_name(t.dtype)));
        results_set(row, "kv_cache_dtype", json_string(ls_dtype_name(t.kv_cache_dtype)));
        results_set(row, "device", json_string(strcmp(t.device, "CPU") == 0 ? "cpu" : "cuda"));
        set_int(row, "threads", t.n_threads);
    }
    return row;
}

void bench_absent(bench *b, const char *test, bench_room room, const ls_error *why) {
    json_t *row = room_row(b, test, room);
    results_set(row, "dtype", json_string(b->options.value[OPT_DTYPE].text));
    results_absent(row, why->text);
}

/* ---- Requests ---- */

static ls_status submit(bench *b, int64_t input, int64_t output, ls_request **out, ls_error *err) {
    const option_value *v = b->options.value;
    ls_request_params params = LS_REQUEST_PARAMS_INIT;
    int32_t *token = bench_tokens(b, input);
    if (token == NULL) {
        return error_set(err, LS_ENOMEM, "bench: out of memory");
    }
    params.prompt_tokens = token;
    params.n_prompt_tokens = (size_t)input;
    params.max_tokens = (int)output;
    params.temperature = v[OPT_TEMPERATURE].set ? v[OPT_TEMPERATURE].real : 0;
    params.top_k = v[OPT_TOP_K].set ? (int)v[OPT_TOP_K].integer : 0;
    params.top_p = v[OPT_TOP_P].set ? v[OPT_TOP_P].real : 1;
    params.min_p = 0;
    params.repetition_penalty = 1;
    params.ignore_eos = true;
    params.seed = 1;
    ls_status st = ls_request_submit(b->engine, &params, out, err);
    free(token);
    return st;
}

ls_status bench_one(bench *b, int64_t input, int64_t output, double *first_ms, double *all_ms, ls_error *err) {
    ls_request *request = NULL;
    ls_result result = LS_RESULT_INIT;
    TRY(submit(b, input, output, &request, err));
    ls_status st = LS_OK;
    while (st == LS_OK) {
        st = ls_engine_step(b->engine, err);
    }
    st = st == LS_IDLE ? ls_request_get_result(request, &result, err) : st;
    if (st == LS_OK && result.finish == LS_FINISH_ERROR) {
        st = error_set(err, result.status, "%s", result.error);
    }
    *first_ms = (double)result.first_token_us / 1000;
    *all_ms = (double)result.total_us / 1000;
    ls_request_free(&request);
    return st;
}

/* ---- Decode steps of a batch ---- */

typedef struct decode_run {
    ls_request **request; /* [batch] */
    double prefill_ms, step_ms;
    int64_t steps; /* of the engine, in the time that counts; and what they took and read by its own account: */
    double engine_ms, exchange_ms, kv_bytes;
} decode_run;

/* Until the prompts of all are through and a few steps more. */
static ls_status run_prompts(bench *b, bench_room room, ls_error *err) {
    ls_engine_stats stats = LS_ENGINE_STATS_INIT;
    TRY(ls_engine_get_stats(b->engine, &stats, err));
    const int64_t all = stats.prompt_tokens + (int64_t)room.batch * room.input, preempted = stats.preemptions;
    do {
        TRY(ls_engine_step(b->engine, err));
        TRY(ls_engine_get_stats(b->engine, &stats, err));
    } while (stats.prompt_tokens < all && stats.preemptions == preempted && stats.n_running + stats.n_waiting > 0);
    return stats.prompt_tokens >= all && stats.preemptions == preempted
               ? LS_OK
               : error_set(err, LS_ETOOLONG, "the KV cache does not hold %d sequences of %lld tokens", room.batch,
                           (long long)room_tokens(room));
}

static ls_status run_steps(bench *b, bench_room room, decode_run *run, ls_error *err) {
    ls_timeline before = LS_TIMELINE_INIT, after = LS_TIMELINE_INIT;
    for (int i = 0; i < WARM_STEPS; i++) {
        TRY(ls_engine_step(b->engine, err));
    }
    TRY(ls_engine_get_timeline(b->engine, &before, err));
    int64_t start_ns = clock_ns();
    for (int64_t i = 0; i < room.output; i++) {
        TRY(ls_engine_step(b->engine, err));
    }
    run->step_ms = (double)(clock_ns() - start_ns) / 1e6 / (double)room.output;
    TRY(ls_engine_get_timeline(b->engine, &after, err));
    run->steps = after.decode_steps - before.decode_steps;
    if (run->steps > 0) {
        const double n = (double)run->steps;
        run->engine_ms = (double)(after.decode_us - before.decode_us) / 1000 / n;
        run->exchange_ms = (double)(after.exchange_us - before.exchange_us) / 1000 / n;
        run->kv_bytes = ((double)after.kv_bytes_per_step * (double)after.decode_steps -
                         (double)before.kv_bytes_per_step * (double)before.decode_steps) /
                        n;
    }
    return LS_OK;
}

static ls_status run_batch(bench *b, bench_room room, decode_run *run, ls_error *err) {
    int64_t start_ns = clock_ns();
    for (int i = 0; i < room.batch; i++) {
        TRY(submit(b, room.input, room_tokens(room) - room.input, &run->request[i], err));
    }
    TRY(run_prompts(b, room, err));
    run->prefill_ms = (double)(clock_ns() - start_ns) / 1e6;
    return run_steps(b, room, run, err);
}

static void end_batch(bench *b, bench_room room, decode_run *run) {
    for (int i = 0; i < room.batch; i++) {
        if (run->request[i] != NULL) {
            ls_request_cancel(run->request[i]);
        }
    }
    ls_engine_step(b->engine, NULL); /* that it takes effect */
    for (int i = 0; i < room.batch; i++) {
        ls_request_free(&run->request[i]);
    }
}

/* GB/s, bytes and the limit of a run, by the engine's own figures. */
static ls_status add_run(bench *b, bench_room room, const decode_run *run, json_t *row, ls_error *err) {
    ls_timeline t = LS_TIMELINE_INIT;
    TRY(ls_engine_get_timeline(b->engine, &t, err));
    const double weights = (double)t.weight_bytes_per_step, bytes = weights + run->kv_bytes;
    results_add(row, "step_ms", LESS_IS_BETTER, run->step_ms);
    results_add(row, "tokens_per_s", MORE_IS_BETTER, room.batch * 1000 / run->step_ms);
    results_add(row, "prefill_ms", LESS_IS_BETTER, run->prefill_ms);
    results_add(row, "prefill_tokens_per_s", MORE_IS_BETTER,
                (double)room.batch * (double)room.input * 1000 / run->prefill_ms);
    results_add(row, "weight_bytes", NEITHER_IS_BETTER, weights);
    results_add(row, "kv_bytes", NEITHER_IS_BETTER, run->kv_bytes);
    results_add(row, "read_bytes_per_s", NEITHER_IS_BETTER, t.read_bytes_per_s);
    if (t.read_bytes_per_s > 0) {
        const double limit_ms = bytes * 1000 / t.read_bytes_per_s;
        results_add(row, "limit_ms", NEITHER_IS_BETTER, limit_ms);
        results_add(row, "limit_percent", MORE_IS_BETTER, limit_ms / run->step_ms * 100);
    }
    results_add(row, "exchange_ms", LESS_IS_BETTER, run->exchange_ms);
    results_add(row, "exchanges", NEITHER_IS_BETTER, t.exchanges_per_step);
    results_add(row, "memory_bytes", LESS_IS_BETTER,
                (double)(t.weights_memory_bytes + t.kv_memory_bytes + t.other_memory_bytes));
    results_add(row, "weights_memory_bytes", LESS_IS_BETTER, (double)t.weights_memory_bytes);
    results_add(row, "kv_memory_bytes", NEITHER_IS_BETTER, (double)t.kv_memory_bytes);
    return LS_OK;
}

ls_status bench_decode(bench *b, bench_room room, json_t *row, ls_error *err) {
    decode_run run = {.request = calloc((size_t)room.batch, sizeof *run.request)};
    ls_status st = run.request != NULL ? LS_OK : error_set(err, LS_ENOMEM, "bench: out of memory");
    for (int i = -1; i < b->repetitions && st == LS_OK; i++) { /* the first one warms up */
        st = run_batch(b, room, &run, err);
        end_batch(b, room, &run);
        if (st == LS_OK && i >= 0) {
            st = add_run(b, room, &run, row, err);
        }
    }
    free(run.request);
    return st;
}
