/*
 * lockstep plan: the memory of every rank before anything is loaded, and what fits into a device. Needs config.json or a
 * known name, no weights and no device. With --json one object.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/cli.h"

enum { CONTEXTS = 9, FIRST_CONTEXT = 128, TENSOR_PARALLEL_SIZES = 4, FORMATS = 4 };

/* One line of the table of contexts. */
typedef struct context_row {
    int tokens;
    ls_plan_fit fit;
} context_row;

/* One line of the table of what fits. */
typedef struct fit_row {
    int n_ranks;
    ls_plan_report report;
    ls_plan_budget budget;
    ls_plan_fit fit;
    char refusal[512]; /* why these ranks or formats cannot be; "" if they can */
} fit_row;

typedef struct plan_run {
    ls_options options;
    ls_model *model;
    ls_engine_params params;
    bool on_gpu;
    ls_plan_report report;
    ls_plan_budget budget;
    int64_t need_bytes; /* of the fullest rank, as planned */
    int n_contexts, n_fits;
    context_row context[CONTEXTS + 1];
    fit_row fit[TENSOR_PARALLEL_SIZES * FORMATS];
} plan_run;

/* ---- Making it ---- */

static int64_t rank_total(const ls_plan_report *report, int rank) {
    int64_t sum = 0;
    for (int kind = 0; kind < LS_MEMORY_KINDS; kind++) {
        sum += report->rank_bytes[rank][kind];
    }
    return sum;
}

static int64_t shared_total(const ls_plan_report *report) {
    int64_t sum = 0;
    for (int kind = 0; kind < LS_MEMORY_KINDS; kind++) {
        sum += report->shared_bytes[kind];
    }
    return sum;
}

/* As ls_plan_fit counts it. */
static int64_t need_of(const ls_plan_report *report, bool machine) {
    int64_t fullest = 0, shared = report->on_gpu ? 0 : shared_total(report);
    for (int r = 0; r < report->n_ranks; r++) {
        fullest = rank_total(report, r) > fullest ? rank_total(report, r) : fullest;
    }
    int n_sharing = machine ? report->n_ranks : 1;
    return fullest + (shared + n_sharing - 1) / n_sharing;
}

static ls_status get_budget(const plan_run *run, int n_ranks, ls_plan_budget *out, ls_error *err) {
    const option_value *v = run->options.value;
    *out = (ls_plan_budget)LS_PLAN_BUDGET_INIT;
    if (run->on_gpu) {
        return ls_plan_get_gpu_budget(&run->params, out, err);
    }
    return ls_plan_get_budget(v[OPT_DEVICE_MEMORY_BYTES].integer, v[OPT_GPU_MEMORY_UTILIZATION].real, n_ranks, out,
                              err);
}

static ls_status make_context(plan_run *run, int tokens, ls_error *err) {
    context_row *row = &run->context[run->n_contexts++];
    ls_engine_params params = run->params;
    *row = (context_row){tokens, LS_PLAN_FIT_INIT};
    params.max_model_len_tokens = tokens;
    return ls_plan_get_fit(run->model, &params, &run->budget, &row->fit, err);
}

/* Powers of two, and behind the last of them the model's own longest. */
static ls_status make_contexts(plan_run *run, int max_position_tokens, ls_error *err) {
    for (int i = 0; i < CONTEXTS && FIRST_CONTEXT << i <= max_position_tokens; i++) {
        TRY(make_context(run, FIRST_CONTEXT << i, err));
    }
    return max_position_tokens > FIRST_CONTEXT << (CONTEXTS - 1) ? make_context(run, max_position_tokens, err) : LS_OK;
}

static ls_status make_fit(plan_run *run, int n_ranks, ls_dtype dtype, ls_quantization quantization, ls_error *err) {
    fit_row *row = &run->fit[run->n_fits++];
    ls_engine_params params = run->params;
    *row = (fit_row){.n_ranks = n_ranks, .report = LS_PLAN_REPORT_INIT, .fit = LS_PLAN_FIT_INIT};
    params.tensor_parallel_size = n_ranks;
    params.dtype = dtype;
    params.quantization = quantization;
    params.kv_cache_memory_bytes = 0;
    if (run->on_gpu) { /* other numbers of ranks: a GPU like this for each */
        params.device = "cuda";
        params.device_memory_bytes = run->budget.total_bytes;
    }
    ls_error refusal = {0};
    ls_status st = ls_plan_make(run->model, &params, &row->report, &refusal);
    if (st == LS_EUNSUPPORTED) {
        snprintf(row->refusal, sizeof row->refusal, "%s", refusal.text);
        return LS_OK;
    }
    if (st < 0) {
        return error_set(err, st, "%s", refusal.text);
    }
    TRY(get_budget(run, n_ranks, &row->budget, err));
    return ls_plan_get_fit(run->model, &params, &row->budget, &row->fit, err);
}

/* The last row says something only if its weights are not those of the row before. */
static bool is_same(const plan_run *run) {
    const fit_row *row = &run->fit[run->n_fits - 1];
    return row[0].report.rank_bytes[0][LS_MEMORY_WEIGHTS] == row[-1].report.rank_bytes[0][LS_MEMORY_WEIGHTS];
}

static ls_status make_fits(plan_run *run, ls_error *err) {
    const ls_quantization given = run->params.quantization;
    for (int n_ranks = 1; n_ranks <= LS_PLAN_RANKS; n_ranks *= 2) {
        TRY(make_fit(run, n_ranks, LS_F32, given, err));
        if (run->fit[run->n_fits - 1].refusal[0] != '\0') {
            continue; /* heads that do not split do so in no format */
        }
        TRY(make_fit(run, n_ranks, LS_F16, given, err));
        TRY(make_fit(run, n_ranks, LS_BF16, given, err));
        TRY(make_fit(run, n_ranks, LS_BF16, LS_QUANTIZATION_W8A16, err));
        run->n_fits -= is_same(run);
    }
    return LS_OK;
}

/* ---- Text ---- */

static double gb(int64_t bytes) {
    return (double)bytes / 1e9;
}

static void print_components(const ls_plan_report *report) {
    printf("\n%-12s", "bytes");
    for (int r = 0; r < report->n_ranks; r++) {
        printf("        rank %d", r);
    }
    printf("%14s           total       GB\n", report->on_gpu ? "pinned" : "shared");
    for (int kind = 0; kind <= LS_MEMORY_KINDS; kind++) {
        if (kind == LS_MEMORY_TRACE) {
            continue; /* generate's, and small */
        }
        bool last = kind == LS_MEMORY_KINDS;
        int64_t shared = last ? shared_total(report) : report->shared_bytes[kind];
        int64_t sum = shared;
        printf("%-12s", last ? "total" : ls_memory_name((ls_memory)kind));
        for (int r = 0; r < report->n_ranks; r++) {
            int64_t bytes = last ? rank_total(report, r) : report->rank_bytes[r][kind];
            sum += bytes;
            printf(" %13" PRId64, bytes);
        }
        printf(" %13" PRId64 " %15" PRId64 " %8.2f\n", shared, sum, gb(sum));
    }
    if (report->on_gpu) {
        printf("%-12s %13" PRId64 " %13d %15" PRId64 " %8.2f  %s\n", "driver", report->driver_bytes, 0,
               report->driver_bytes, gb(report->driver_bytes),
               report->driver_measured ? "measured: context, kernels and other programs"
                                       : "assumed: the GPU is not here");
    }
}

static void print_verdict(const plan_run *run) {
    const ls_plan_budget *budget = &run->budget;
    const ls_plan_report *report = &run->report;
    int64_t tokens = (int64_t)report->n_pages * report->page_tokens;
    printf("\nA token of KV cache takes %" PRId64 " bytes on all ranks together; this cache holds %" PRId64
           " tokens, %.1f sequences of full length.\n",
           report->kv_bytes_per_token, tokens, (double)tokens / report->max_model_len_tokens);
    printf("Budget of a rank: %.2f GB = %g x %.2f GB - %.2f GB used by %s%s.\n", gb(budget->budget_bytes),
           budget->utilization, gb(budget->total_bytes), gb(budget->used_by_others_bytes),
           report->on_gpu ? "the driver and others" : "others",
           budget->machine ? " (this machine, divided by the ranks)" : "");
    int64_t missing = run->need_bytes - budget->budget_bytes;
    printf("This plan needs %.2f GB of it: %s%.2f GB %s.\n", gb(run->need_bytes),
           missing > 0 ? "does not fit, " : "fits, ", gb(missing > 0 ? missing : -missing),
           missing > 0 ? "are missing" : "are left");
    if (budget->machine && run->report.total_bytes > budget->total_bytes * report->n_ranks) {
        printf("It is more than this machine has (%.2f GB): an engine would not open here.\n",
               gb(budget->total_bytes * report->n_ranks));
    }
}

static void print_contexts(const plan_run *run) {
    printf("\nBy context, with %d sequences, all at full length:\n"
           "%8s %22s %8s %16s   %s\n",
           run->report.max_num_seqs, "tokens", "KV a rank and sequence", "GB", "a rank needs, GB",
           "sequences that fit");
    for (int i = 0; i < run->n_contexts; i++) {
        const context_row *row = &run->context[i];
        printf("%8d %22" PRId64 " %8.3f %16.2f   %18d\n", row->tokens, row->fit.kv_bytes_per_seq,
               gb(row->fit.kv_bytes_per_seq), gb(row->fit.need_bytes), row->fit.largest_num_seqs);
    }
    if (run->n_contexts < CONTEXTS) {
        printf("%8d and more: beyond the model's max_position_embeddings\n", FIRST_CONTEXT << run->n_contexts);
    }
}

static void print_fits(const plan_run *run) {
    printf("\nWhat fits, all sequences at full length (weights and needs of a rank, GB):\n"
           "%3s %-10s %8s %8s %8s   %-22s %15s %13s\n",
           "tp", "dtype", "weights", "needs", "budget", "", "largest context", "largest batch");
    for (int i = 0; i < run->n_fits; i++) {
        const fit_row *row = &run->fit[i];
        if (row->refusal[0] != '\0') {
            printf("%3d %s\n", row->n_ranks, row->refusal);
            continue;
        }
        char verdict[64], format[32];
        bool quantized = row->report.quantization != LS_QUANTIZATION_NONE;
        snprintf(verdict, sizeof verdict, row->fit.short_bytes > 0 ? "does not fit by %.2f" : "fits",
                 gb(row->fit.short_bytes));
        snprintf(format, sizeof format, "%s%s%s", ls_dtype_name(row->report.dtype), quantized ? " " : "",
                 quantized ? ls_quantization_name(row->report.quantization) : "");
        printf("%3d %-10s %8.2f %8.2f %8.2f   %-22s %15d %13d\n", row->n_ranks, format,
               gb(row->report.rank_bytes[0][LS_MEMORY_WEIGHTS]), gb(row->fit.need_bytes), gb(row->budget.budget_bytes),
               verdict, row->fit.largest_model_len_tokens, row->fit.largest_num_seqs);
    }
    printf("Largest context: of %d sequences. Largest batch: of sequences of %d tokens, at most 4096. 0: none fits.\n",
           run->report.max_num_seqs, run->params.max_model_len_tokens);
}

static void print_text(const plan_run *run, const ls_model_info *info) {
    const ls_plan_report *r = &run->report;
    printf("%s: %s, %d layers, D %d, F %d, H %d, K %d, d %d, V %d%s\n", run->options.value[OPT_MODEL].text,
           info->family, info->n_layers, info->d_model, info->d_ffn, info->n_heads, info->n_kv_heads, info->d_head,
           info->n_vocab, info->tied ? ", tied" : "");
    printf(
        "%s%d rank%s, %d thread%s each, %s, quantization %s, KV cache %s; %d sequences of %d tokens, %d rows a step. "
        "GB are "
        "10^9 bytes.\n",
        r->on_gpu ? "GPU, " : "", r->n_ranks, r->n_ranks > 1 ? "s" : "", r->n_threads, r->n_threads > 1 ? "s" : "",
        ls_dtype_name(r->dtype), ls_quantization_name(r->quantization), ls_dtype_name(r->kv_cache_dtype),
        r->max_num_seqs, r->max_model_len_tokens, r->max_num_batched_tokens);
    print_components(r);
    print_verdict(run);
    print_contexts(run);
    print_fits(run);
}

/* ---- JSON ---- */

static json_t *bytes_json(const int64_t *bytes, int first, int last) {
    static const char *const keys[LS_MEMORY_KINDS] = {"weights", "kv_cache",   "activations", "exchange", "logits",
                                                      "rope",    "step_input", "scheduler",   "trace"};
    json_t *object = json_object();
    for (int kind = first; kind < last; kind++) {
        json_object_set_new(object, keys[kind], json_integer(bytes[kind]));
    }
    return object;
}

static json_t *budget_json(const ls_plan_budget *budget) {
    return json_pack("{s:b, s:I, s:f, s:I, s:I}", "machine", budget->machine, "total_bytes",
                     (json_int_t)budget->total_bytes, "utilization", budget->utilization, "used_by_others_bytes",
                     (json_int_t)budget->used_by_others_bytes, "budget_bytes", (json_int_t)budget->budget_bytes);
}

static json_t *contexts_json(const plan_run *run) {
    json_t *array = json_array();
    for (int i = 0; i < run->n_contexts; i++) {
        const context_row *row = &run->context[i];
        json_array_append_new(array, json_pack("{s:i, s:I, s:I, s:i}", "tokens", row->tokens, "kv_bytes_per_seq",
                                               (json_int_t)row->fit.kv_bytes_per_seq, "need_bytes",
                                               (json_int_t)row->fit.need_bytes, "largest_num_seqs",
                                               row->fit.largest_num_seqs));
    }
    return array;
}

static json_t *fits_json(const plan_run *run) {
    json_t *array = json_array();
    for (int i = 0; i < run->n_fits; i++) {
        const fit_row *row = &run->fit[i];
        if (row->refusal[0] != '\0') {
            json_array_append_new(array,
                                  json_pack("{s:i, s:s}", "tensor_parallel_size", row->n_ranks, "error", row->refusal));
            continue;
        }
        json_array_append_new(
            array, json_pack("{s:i, s:s, s:s, s:I, s:I, s:I, s:I, s:b, s:i, s:i}", "tensor_parallel_size", row->n_ranks,
                             "dtype", ls_dtype_name(row->report.dtype), "quantization",
                             ls_quantization_name(row->report.quantization), "weights_bytes",
                             (json_int_t)row->report.rank_bytes[0][LS_MEMORY_WEIGHTS], "need_bytes",
                             (json_int_t)row->fit.need_bytes, "budget_bytes", (json_int_t)row->budget.budget_bytes,
                             "short_bytes", (json_int_t)row->fit.short_bytes, "fits", row->fit.short_bytes <= 0,
                             "largest_model_len", row->fit.largest_model_len_tokens, "largest_num_seqs",
                             row->fit.largest_num_seqs));
    }
    return array;
}

static ls_status print_json(const plan_run *run, ls_error *err) {
    const ls_plan_report *r = &run->report;
    json_t *ranks = json_array();
    for (int i = 0; i < r->n_ranks; i++) {
        json_t *rank = bytes_json(r->rank_bytes[i], LS_MEMORY_WEIGHTS, r->on_gpu ? LS_MEMORY_TRACE : LS_MEMORY_ROPE);
        json_object_set_new(rank, "total", json_integer(rank_total(r, i)));
        json_array_append_new(ranks, rank);
    }
    json_t *object =
        json_pack("{s:s, s:i, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i}", "model", run->options.value[OPT_MODEL].text,
                  "ranks", r->n_ranks, "dtype", ls_dtype_name(r->dtype), "quantization",
                  ls_quantization_name(r->quantization), "kv_cache_dtype", ls_dtype_name(r->kv_cache_dtype),
                  "max_model_len", r->max_model_len_tokens, "max_num_seqs", r->max_num_seqs, "max_num_batched_tokens",
                  r->max_num_batched_tokens, "pages", r->n_pages, "page_tokens", r->page_tokens);
    int failed = json_object_set_new(object, "threads", json_integer(r->n_threads));
    failed |= json_object_set_new(object, "rank_bytes", ranks);
    failed |= json_object_set_new(
        object, "shared_bytes",
        bytes_json(r->shared_bytes, r->on_gpu ? LS_MEMORY_WEIGHTS : LS_MEMORY_ROPE, LS_MEMORY_TRACE));
    failed |= json_object_set_new(object, "device", json_string(r->on_gpu ? "cuda" : "cpu"));
    failed |= json_object_set_new(object, "driver_bytes", r->on_gpu ? json_integer(r->driver_bytes) : json_null());
    failed |= json_object_set_new(object, "driver_measured", json_boolean(r->driver_measured));
    failed |= json_object_set_new(object, "total_bytes", json_integer(r->total_bytes));
    failed |= json_object_set_new(object, "kv_bytes_per_token", json_integer(r->kv_bytes_per_token));
    failed |= json_object_set_new(object, "weight_read_bytes_per_step", json_integer(r->weight_read_bytes_per_step));
    failed |= json_object_set_new(object, "budget", budget_json(&run->budget));
    failed |= json_object_set_new(object, "need_bytes", json_integer(run->need_bytes));
    failed |= json_object_set_new(object, "fits", json_boolean(run->need_bytes <= run->budget.budget_bytes));
    failed |= json_object_set_new(object, "contexts", contexts_json(run));
    failed |= json_object_set_new(object, "what_fits", fits_json(run));
    if (failed) {
        json_decref(object);
        return error_set(err, LS_ENOMEM, "cannot write JSON: a name that is not UTF-8, or out of memory");
    }
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(object);
    return LS_OK;
}

/* ---- The command ---- */

/* "auto" is the GPU that is here, as for engines; with a device's memory given, this machine does not matter. */
static void choose_device(plan_run *run) {
    int n_gpus = 0;
    const option_value *memory = &run->options.value[OPT_DEVICE_MEMORY_BYTES];
    run->params.device_memory_bytes = memory->integer;
    if (strcmp(run->params.device, "auto") == 0) {
        run->params.device = !memory->set && ls_gpu_count(&n_gpus, NULL) == LS_OK ? "cuda" : "cpu";
    }
}

static ls_status plan_all(plan_run *run, int argc, char **argv, ls_error *err) {
    TRY(options_init(&run->options, err));
    TRY(args_parse(&run->options, COMMAND_PLAN, argc, argv, err));
    const option_value *v = run->options.value;
    if (!v[OPT_MODEL].set) {
        return error_set(err, LS_EINVAL, "plan needs a model: lockstep plan demo, or lockstep plan Qwen/Qwen3-4B");
    }
    if (strcmp(v[OPT_LOAD_FORMAT].text, "auto") == 0) {
        TRY(options_set(&run->options, OPT_LOAD_FORMAT, "dummy", err)); /* config.json is enough */
    }
    TRY(cli_open_model(&run->options, &run->model, err));
    ls_model_info info = LS_MODEL_INFO_INIT;
    TRY(ls_model_get_info(run->model, &info, err));
    run->params = cli_engine_params(&run->options, NULL);
    choose_device(run);
    run->report = (ls_plan_report)LS_PLAN_REPORT_INIT;
    TRY(ls_plan_make(run->model, &run->params, &run->report, err));
    run->on_gpu = run->report.on_gpu;
    TRY(get_budget(run, run->report.n_ranks, &run->budget, err));
    run->need_bytes = need_of(&run->report, run->budget.machine);
    if (run->params.max_model_len_tokens == 0) {
        run->params.max_model_len_tokens = info.max_position_tokens;
    }
    TRY(make_contexts(run, info.max_position_tokens, err));
    TRY(make_fits(run, err));
    if (v[OPT_JSON].integer != 0) {
        return print_json(run, err);
    }
    print_text(run, &info);
    return LS_OK;
}

int cmd_plan(int argc, char **argv) {
    plan_run run = {0};
    ls_error error = {0};
    ls_status st = plan_all(&run, argc, argv, &error);
    int code = st < 0 ? cli_fail(&error, run.options.value[OPT_VERBOSE].integer != 0) : EXIT_GOOD;
    ls_model_close(&run.model);
    options_deinit(&run.options);
    return code;
}
