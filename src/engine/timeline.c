/*
 * The timeline: what the steps took, what they read, and what the machine could have done.
 *
 * The limit is measured, not looked up: the same threads read the same weights, as fast as they can, in this process. So
 * it is the memory's rate for large models and the caches' for small ones, which is what a step of such a model could
 * reach.
 */
#include "base/clock.h"
#include "engine/engine.h"

/* Bytes of KV that the step's rows read on all ranks: whole sequences, or the window. */
static int64_t kv_bytes_read(const ls_engine *engine, const step_batch *batch) {
    const ls_spec *spec = &engine->model->spec;
    int n_windowed = 0;
    for (int i = 0; i < spec->n_layers; i++) {
        n_windowed += spec->layer_windowed[i];
    }
    int64_t token_layers = 0;
    for (int i = 0; i < batch->step.n_seqs; i++) {
        const ls_step_seq *seq = &batch->seq[i];
        int64_t full = (int64_t)seq->n_past + seq->n_rows;
        int64_t windowed = full < spec->window_tokens ? full : spec->window_tokens;
        token_layers += full * (spec->n_layers - n_windowed) + windowed * n_windowed;
    }
    return token_layers * (kv_page_bytes(&engine->config, spec) / LS_PAGE_TOKENS / spec->n_layers);
}

void stats_add_step(ls_engine *engine, const step_batch *batch, int64_t step_ns) {
    engine_stats *stats = &engine->stats;
    const ls_step *step = &batch->step;
    stats->prefill_tokens += step->n_pre;
    stats->decode_tokens += step->n_dec;
    if (step->n_pre > 0) {
        stats->prefill_ns += step_ns;
        stats->prefill_host_ns += batch->host_ns;
        stats->prefill_steps++;
        return;
    }
    stats->decode_ns += step_ns;
    stats->decode_host_ns += batch->host_ns;
    stats->decode_steps++;
    stats->decode_kv_bytes += kv_bytes_read(engine, batch);
    stats->exchange_ns += batch->exchange_ns;
}

/* ---- The limit ---- */

typedef struct read_job {
    const ls_engine *engine;
    int n_times;
    _Atomic uint64_t sink; /* keeps the reads from being dropped */
} read_job;

static void read_rank(void *arg, int local, const ls_team *team) {
    read_job *job = arg;
    const ls_arena *arena = &job->engine->rank_arena[first_rank(job->engine) + local];
    int64_t first, last;
    team_range(team, (int64_t)arena->by_tag[MEM_WEIGHTS], 4096, &first, &last);
    uint64_t all = 0;
    for (int i = 0; i < job->n_times; i++) {
        all += job->engine->isa->read(arena->base + first, (size_t)(last - first));
    }
    atomic_fetch_add(&job->sink, all);
}

double cpu_read_rate(ls_engine *engine) {
    enum { PASSES = 5 };
    const int64_t enough_bytes = (int64_t)1 << 28; /* of one timed pass: the start of a job must not show */
    int64_t bytes = 0;
    for (int r = first_rank(engine); r < end_rank(engine); r++) {
        bytes += (int64_t)engine->rank_arena[r].by_tag[MEM_WEIGHTS];
    }
    read_job job = {.engine = engine, .n_times = (int)(enough_bytes / (bytes + 1)) + 1};
    int64_t best_ns = INT64_MAX;
    for (int pass = 0; pass < PASSES; pass++) {
        int64_t start = clock_ns();
        rank_group_run(engine->group, read_rank, &job);
        int64_t ns = clock_ns() - start;
        best_ns = ns < best_ns ? ns : best_ns;
    }
    /* Other hosts are taken to read as fast as this one. */
    return (double)bytes * job.n_times * 1e9 / (double)best_ns * engine->config.n_hosts;
}

static void get_timeline(ls_engine *engine, ls_timeline *out) {
    if (engine->read_bytes_per_s == 0) {
        engine->read_bytes_per_s = engine->backend->read_rate(engine);
    }
    const engine_config *config = &engine->config;
    const engine_stats *stats = &engine->stats;
    ls_timeline line = {
        .struct_size = out->struct_size,
        .n_ranks = config->n_ranks,
        .n_threads = config->n_threads,
        .dtype = config->dtype,
        .kv_cache_dtype = config->kv_dtype,
        .isa = engine->isa->name,
        .device = engine->device_name[0] != '\0' ? engine->device_name : "CPU",
        .no_gpu = engine->no_gpu,
        .load_us = engine->model->load_us,
        .plan_us = engine->plan_us,
        .shard_us = engine->shard_us,
        .n_graphs = engine->n_graphs,
        .graphs_us = engine->graphs_us,
        .prefill_us = stats->prefill_ns / 1000,
        .decode_us = stats->decode_ns / 1000,
        .prefill_tokens = stats->prefill_tokens,
        .decode_tokens = stats->decode_tokens,
        .prefill_steps = stats->prefill_steps,
        .decode_steps = stats->decode_steps,
        .exchanges_per_step = engine->program[0]->n_exchanges,
        .exchange_us = stats->exchange_ns / 1000,
        .prefill_host_us = stats->prefill_host_ns / 1000,
        .decode_host_us = stats->decode_host_ns / 1000,
        .read_bytes_per_s = engine->read_bytes_per_s,
        .driver_us = engine->driver_us,
        .context_us = engine->context_us,
        .weights_us = engine->weights_us,
        .load_bytes = engine->progress.total_bytes,
        .first_token_us = engine->first_token_ns > 0 ? (engine->first_token_ns - engine->model->open_ns) / 1000 : -1,
        .age_us = (clock_ns() - engine->model->open_ns) / 1000,
    };
    for (int r = 0; r < config->n_ranks; r++) {
        const ls_arena *arena = &engine->rank_arena[r];
        line.weight_bytes_per_step += engine->program[r]->read_bytes;
        line.weights_memory_bytes += (int64_t)arena->by_tag[MEM_WEIGHTS];
        line.kv_memory_bytes += (int64_t)arena->by_tag[MEM_KV_CACHE];
        line.other_memory_bytes += (int64_t)(arena->used - arena->by_tag[MEM_WEIGHTS] - arena->by_tag[MEM_KV_CACHE]);
    }
    line.other_memory_bytes += (int64_t)engine->host_arena.used;
    if (stats->decode_steps > 0) {
        line.kv_bytes_per_step = stats->decode_kv_bytes / stats->decode_steps;
        line.limit_us_per_step =
            line.read_bytes_per_s <= 0
                ? 0
                : (double)(line.weight_bytes_per_step + line.kv_bytes_per_step) * 1e6 / line.read_bytes_per_s;
        line.limit_ratio = line.limit_us_per_step * 1000 * (double)stats->decode_steps / (double)stats->decode_ns;
    }
    memcpy(out, &line, out->struct_size < sizeof line ? out->struct_size : sizeof line);
}

ls_status ls_engine_get_profile(ls_engine *engine, ls_profile_line *out, size_t n_max, size_t *n, ls_error *err) {
    (void)err;
    const ls_profile_line *line;
    engine_lock_idle(engine);
    size_t n_lines = engine->backend->profile(engine, &line);
    *n = n_lines < n_max ? n_lines : n_max;
    for (size_t i = 0; i < *n; i++) {
        out[i] = line[i];
    }
    pthread_mutex_unlock(&engine->lock);
    return LS_OK;
}

ls_status ls_engine_get_timeline(ls_engine *engine, ls_timeline *out, ls_error *err) {
    TRY(check_struct_size("ls_timeline", out->struct_size, SIZE_MAX, err));
    pthread_mutex_lock(&engine->lock);
    bool measured = engine->read_bytes_per_s != 0;
    if (!measured) {
        pthread_mutex_unlock(&engine->lock);
        engine_lock_idle(engine); /* the ranks measure */
    }
    get_timeline(engine, out);
    pthread_mutex_unlock(&engine->lock);
    return LS_OK;
}
